"""Overlap and boundary metrics of one pair of masks, in millimetres, for images (2D) and volumes (3D).

Empty masks follow the rule of the BraTS challenges, so that every case has figures and can be averaged:

| truth | prediction | dice | nsd | hd95_mm, assd_mm |
|---|---|---|---|---|
| empty | empty | 1 | 1 | 0 |
| empty | not empty | 0 | 0 | diagonal of the image in mm |
| not empty | empty | 0 | 0 | diagonal of the image in mm |

>>> import numpy as np
>>> truth = np.zeros((6, 6), bool)
>>> truth[2:4, 2:4] = True
>>> score_masks(truth, np.roll(truth, 1, axis=0), (1.0, 1.0), tolerance_mm=1.0)
Scores(dice=0.5, hd95_mm=1.0, assd_mm=0.5, nsd=1.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.boundary import Mask, surface_distances

METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")
DEFAULT_TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class Scores:
    """Metrics of one prediction.

    Attributes:
        dice: overlap of the masks, 0 to 1.
        hd95_mm: the larger of the two directed 95th percentiles of boundary distances.
        assd_mm: average symmetric surface distance: mean over both boundaries together.
        nsd: normalised surface Dice: share of both boundaries within the tolerance of the other one, 0 to 1.
    """

    dice: float
    hd95_mm: float
    assd_mm: float
    nsd: float


def score_masks(truth: Mask, prediction: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> Scores:
    """All metrics of a prediction; the module's docstring says what empty masks give.

    Args:
        truth, prediction: boolean masks of one shape, 2D or 3D; a volume of a single slice counts as an image.
        spacing_mm: distance of neighbouring pixels along each axis.
        tolerance_mm: boundaries this close agree (nsd); 0 or more.

    Raises InputError for shapes, types, spacings or a tolerance that do not fit.
    """
    _check(truth, prediction, spacing_mm, tolerance_mm)
    truth, prediction, spacing = _as_image_if_single_slice(truth, prediction, tuple(spacing_mm))
    if not truth.any() and not prediction.any():
        return Scores(dice=1.0, hd95_mm=0.0, assd_mm=0.0, nsd=1.0)
    if not truth.any() or not prediction.any():
        worst = diagonal_mm(truth.shape, spacing)
        return Scores(dice=0.0, hd95_mm=worst, assd_mm=worst, nsd=0.0)
    distances = surface_distances(truth, prediction, spacing)
    return Scores(
        dice=dice(truth, prediction),
        hd95_mm=distances.hausdorff_mm(0.95),
        assd_mm=distances.average_mm(),
        nsd=distances.share_within(tolerance_mm),
    )


def dice(truth: Mask, prediction: Mask) -> float:
    """2 |T and P| / (|T| + |P|), 0 to 1; 1 when both masks are empty."""
    total = int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(truth & prediction)) / total if total else 1.0


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the image's diagonal: the declared distance where one of the boundaries does not exist."""
    return math.hypot(*(size * step for size, step in zip(shape, spacing_mm, strict=True)))


def check_tolerance(tolerance_mm: float) -> None:
    """InputError unless it is a finite number, 0 or more."""
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"tolerance_mm must be a finite number, 0 or more, not {tolerance_mm}")


def _as_image_if_single_slice(
    truth: Mask, prediction: Mask, spacing: tuple[float, ...]
) -> tuple[Mask, Mask, tuple[float, ...]]:
    """A volume of one slice has no surface worth measuring above and below: its contour is what counts."""
    if truth.ndim == 3 and 1 in truth.shape:
        axis = truth.shape.index(1)
        return np.squeeze(truth, axis), np.squeeze(prediction, axis), spacing[:axis] + spacing[axis + 1 :]
    return truth, prediction, spacing


def _check(truth: Mask, prediction: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> None:
    if truth.shape != prediction.shape:
        raise InputError(f"the prediction has shape {prediction.shape}, the truth {truth.shape}: they must be equal")
    if truth.dtype != np.bool_ or prediction.dtype != np.bool_:
        raise InputError(f"masks must be boolean, not {truth.dtype} and {prediction.dtype}")
    if truth.ndim not in (2, 3) or len(spacing_mm) != truth.ndim:
        raise InputError(f"masks must be 2D or 3D with a spacing per axis, not {truth.shape} with {tuple(spacing_mm)}")
    if not all(math.isfinite(step) and step > 0 for step in spacing_mm):
        raise InputError(f"spacing must be finite and above 0 along every axis, not {tuple(spacing_mm)}")
    check_tolerance(tolerance_mm)
