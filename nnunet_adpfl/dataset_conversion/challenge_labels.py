"""Classes and regions of a challenge, as nnU-Net's dataset.json has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class LabelledChallenge(Protocol):
    """Attributes: classes: name -> value; regions: name -> values; regions_class_order: what each region is painted as."""

    @property
    def classes(self) -> Mapping[str, int]: ...

    @property
    def regions(self) -> Mapping[str, tuple[int, ...] | int]: ...

    @property
    def regions_class_order(self) -> tuple[int, ...]: ...


def labels_of(challenge: LabelledChallenge, *, plain: bool) -> dict[str, Any]:
    """``labels`` and, unless ``plain``, ``regions_class_order`` of dataset.json."""
    if plain:
        return {"labels": {"background": 0, **challenge.classes}}
    regions = {name: list(value) if isinstance(value, tuple) else value for name, value in challenge.regions.items()}
    return {"labels": {"background": 0, **regions}, "regions_class_order": list(challenge.regions_class_order)}
