"""Which labels belong together, read off dataset.json's labels or regions: labels within labels, or side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Family = list[list[int]]  # levels from the outermost to the innermost; labels of one level lie side by side
_LARGEST = 3  # labels in a family, where the data set does not say


def of_labels(random: np.random.Generator, labels: Sequence[int]) -> list[Family]:
    """Neighbouring labels in random families; within one they are nested, or parts of one body."""
    families, rest = [], sorted(labels)
    while rest:
        size = _LARGEST if random.random() < 0.6 else int(random.integers(1, _LARGEST + 1))
        group, rest = rest[:size], rest[size:]
        families.append([[label] for label in group] if random.random() < 0.5 else [group])
    return families


def of_regions(regions: Sequence[int | tuple[int, ...]]) -> list[Family]:
    """Labels that share a region are a family; the more regions a label is in, the further inside it lies."""
    sets = [{region} if isinstance(region, int) else set(region) for region in regions]
    groups: list[set[int]] = []
    for region in sets:
        joined = region.union(*(group for group in groups if group & region))
        groups = [group for group in groups if not group & region] + [joined]
    families = []
    for group in sorted(groups, key=min):
        depth = {label: sum(label in region for region in sets) for label in group}
        families.append([sorted(x for x in group if depth[x] == d) for d in sorted(set(depth.values()))])
    return families
