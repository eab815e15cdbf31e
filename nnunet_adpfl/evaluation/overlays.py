"""One picture per site: a slice of a typical held-out case with the contours of truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from nnunet_adpfl.evaluation import figures
from nnunet_adpfl.evaluation.classes import ScoredClasses
from nnunet_adpfl.evaluation.scoring import CaseScore
from nnunet_adpfl.nnunet_compat.prediction import LabelReader, raw_images

MAX_SITES = 12


@dataclass(frozen=True)
class Overlay:
    """A picture with its caption. ``case`` must not leave the site."""

    site: str
    case: str
    dice: float
    picture: str


def typical_cases(scores: Sequence[CaseScore]) -> dict[str, tuple[str, float]]:
    """Site -> the case whose Dice (mean over classes) is the site's median, and that Dice."""
    by_site: dict[str, dict[str, list[float]]] = {}
    for score in scores:
        by_site.setdefault(score.site, {}).setdefault(score.case, []).append(score.dice)
    typical = {}
    for site, cases in sorted(by_site.items()):
        ordered = sorted((fmean(values), case) for case, values in cases.items())
        value, case = ordered[(len(ordered) - 1) // 2]
        typical[site] = (case, value)
    return typical


def make_overlays(
    scores: Sequence[CaseScore], predictions: Path, preprocessed: Path, classes: ScoredClasses, reader: LabelReader,
    file_ending: str, raw: Path | None,
) -> list[Overlay]:  # fmt: skip
    """Pictures for at most `MAX_SITES` sites; a site whose prediction file is gone is left out.

    Args:
        raw: raw data set with the images; where it is not on this machine, contours alone are shown.
    """
    images = raw_images(raw) if raw else {}
    overlays = []
    for site, (case, value) in list(typical_cases(scores).items())[:MAX_SITES]:
        files = [folder / f"{case}{file_ending}" for folder in (preprocessed / "gt_segmentations", predictions)]
        if all(path.is_file() for path in files):
            picture = _picture(images.get(case), files[0], files[1], classes, reader)
            overlays.append(Overlay(site, case, value, picture))
    return overlays


def _picture(
    images: Sequence[Path] | None, truth_file: Path, prediction_file: Path, classes: ScoredClasses, reader: LabelReader
) -> str:
    truth, spacing = reader.labels(truth_file)
    prediction, _ = reader.labels(prediction_file)
    masks, predicted = classes.masks(truth, truth), classes.masks(truth, prediction)
    index = _telling_slice(np.any(list(masks.values()), axis=0), np.any(list(predicted.values()), axis=0))
    background = np.zeros(truth.shape[1:])
    if images:
        channels = reader.image(images)[:, index]
        background = np.moveaxis(channels, 0, -1) if len(images) == 1 and len(channels) == 3 else channels[0]
    return figures.overlay(
        background,
        [mask[index] for mask in masks.values()],
        [mask[index] for mask in predicted.values()],
        (spacing[1], spacing[2]),
    )


def _telling_slice(truth: np.ndarray, prediction: np.ndarray) -> int:
    """Slice with most truth; without truth, with most prediction; else the middle one."""
    for mask in (truth, prediction):
        if mask.any():
            return int(mask.sum(axis=(1, 2)).argmax())
    return len(truth) // 2
