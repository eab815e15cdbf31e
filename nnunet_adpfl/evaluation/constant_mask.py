"""What a prediction that never looks at the image can reach: the floor that a trained model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nnunet_adpfl.evaluation.classes import ScoredClasses
from nnunet_adpfl.evaluation.metrics import dice
from nnunet_adpfl.nnunet_compat.prediction import LabelReader

LARGEST_SIDE = 64
THRESHOLDS = np.linspace(0.05, 0.95, 19)


def best_constant_mask_dice(
    truths: Path,
    training_cases: Sequence[str],
    evaluated_cases: Sequence[str],
    *,
    classes: ScoredClasses,
    reader: LabelReader,
    file_ending: str,
) -> dict[str, Any]:
    """Mean Dice of the best mask that is the same for every image.

    All label maps are brought to one grid (the median shape, at most 64 along an axis); per class the training masks
    are averaged and cut at the threshold that is best on the evaluated cases, so the figure is on the generous side.

    Args:
        truths: folder of label files, gt_segmentations.

    Returns ``{"mean": .., "classes": {NAME: ..}}``.
    """
    maps = {case: reader.labels(truths / f"{case}{file_ending}")[0] for case in {*training_cases, *evaluated_cases}}
    median = np.median([labels.shape for labels in maps.values()], axis=0)
    shape = [int(np.clip(side, 1, LARGEST_SIDE)) for side in median]
    masks = {case: classes.masks(small, small) for case, small in ((c, _resized(m, shape)) for c, m in maps.items())}
    reached = {}
    for label in classes.members:
        frequency = np.mean([masks[case][label] for case in training_cases], axis=0)
        reached[label] = max(
            fmean(dice(masks[case][label], frequency > threshold) for case in evaluated_cases)
            for threshold in THRESHOLDS
        )
    return {"mean": fmean(reached.values()), "classes": reached}


def _resized(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Nearest neighbour: labels stay labels."""
    picks = [((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, labels.shape, strict=True)]
    return labels[np.ix_(*picks)]
