"""The classes that are scored: nnU-Net's labels, or its regions where the data set declares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.boundary import Mask

_NOT_SCORED = ("background", "ignore")


@dataclass(frozen=True)
class ScoredClasses:
    """What to score in a label map.

    Attributes:
        members: class or region -> label values that belong to it, in the order of dataset.json.
        ignore: label value whose pixels are left out of every mask, or None.
    """

    members: Mapping[str, tuple[int, ...]]
    ignore: int | None

    def masks(self, truth: np.ndarray, labels: np.ndarray) -> dict[str, Mask]:
        """Class -> mask in ``labels``, without the pixels that ``truth`` marks as to be ignored."""
        counted = np.ones(truth.shape, bool) if self.ignore is None else truth != self.ignore
        return {name: np.isin(labels, values) & counted for name, values in self.members.items()}


def scored_classes(dataset_json: Mapping[str, Any]) -> ScoredClasses:
    """Classes of a data set: every label but background and ignore; a list of labels is a region (they may overlap).

    Raises InputError when there is nothing to score.
    """
    labels = dataset_json.get("labels")
    if not isinstance(labels, Mapping):
        raise InputError("dataset.json has no labels: convert the data set again")
    members = {}
    for name, value in labels.items():
        values = tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
        if name not in _NOT_SCORED and values != (0,):
            members[str(name)] = values
    if not members:
        raise InputError("dataset.json declares no foreground label, so there is nothing to score")
    ignore = labels.get("ignore")
    return ScoredClasses(members, None if ignore is None else int(ignore))
