"""Scores of cases, their table ``metrics.csv``, and their means per site, per class and over all.

Every mean is taken over cases: a case's figure is the mean over its classes, a site's the mean over its cases, the
overall one the mean over all cases (so a large site weighs more, as in nnU-Net's own summary).
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.classes import ScoredClasses
from nnunet_adpfl.evaluation.metrics import METRICS, score_masks
from nnunet_adpfl.nnunet_compat.prediction import LabelReader
from nnunet_adpfl.progress import track

FILE_NAME = "metrics.csv"


@dataclass(frozen=True)
class CaseScore:
    """One class of one case. Volumes are numbers of voxels; ``case`` and figures are private where validation is."""

    case: str
    site: str
    label: str
    dice: float
    hd95_mm: float
    assd_mm: float
    nsd: float
    tolerance_mm: float
    truth_voxels: int
    predicted_voxels: int


def score_folder(
    predictions: Path,
    truths: Path,
    cases: Sequence[str],
    *,
    cohort: Cohort,
    classes: ScoredClasses,
    reader: LabelReader,
    file_ending: str,
    tolerance_mm: float,
) -> list[CaseScore]:
    """Score label files ``CASE + file_ending`` of two folders, case by case and class by class.

    Raises InputError for a file that is missing or a pair that differs in shape or spacing.
    """
    scores: list[CaseScore] = []
    for case in track(sorted(cases), "scoring"):
        if case not in cohort.cases:
            raise InputError(f"case {case} is not in the cohort, so its site is unknown: run `adpfl cohort` again")
        truth, prediction = truths / f"{case}{file_ending}", predictions / f"{case}{file_ending}"
        missing = next((path for path in (truth, prediction) if not path.is_file()), None)
        if missing:
            raise InputError(f"{missing} is missing, so case {case} cannot be scored")
        scores += _score_case(case, cohort.cases[case].site, truth, prediction, classes, reader, tolerance_mm)
    return scores


def write_table(scores: Sequence[CaseScore], path: Path) -> None:
    """Write one line per case and class, atomically."""
    with atomic_files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(CaseScore)])
        writer.writeheader()
        writer.writerows(asdict(score) for score in scores)


def read_table(path: Path) -> list[CaseScore]:
    """Read what `write_table` wrote; InputError when it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            scores = [_parsed(row) for row in csv.DictReader(file)]
        _check_complete(scores)
        return scores
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `adpfl evaluate` for this run first") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path} is damaged ({error}): run `adpfl evaluate` again") from None


def summarise(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Means over cases: ``{"mean": .., "sites": {..}, "classes": {..}, "cases": N}``, as `adpfl evaluate --json` prints."""
    if not scores:
        raise InputError("there is no scored case to take a mean of")
    sites = sorted({score.site for score in scores})
    labels = list(dict.fromkeys(score.label for score in scores))
    return {
        "mean": means(scores),
        "sites": {site: _site_summary([s for s in scores if s.site == site], labels) for site in sites},
        "classes": {label: means([s for s in scores if s.label == label]) for label in labels},
        "cases": len({score.case for score in scores}),
    }


def means(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Mean of each metric; every case has the same classes, so this is the mean over cases as well."""
    return {metric: fmean(getattr(score, metric) for score in scores) for metric in METRICS}


def case_dice_by_site(scores: Sequence[CaseScore]) -> dict[str, list[float]]:
    """Site -> Dice of each of its cases (mean over classes), sites and cases in sorted order."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for score in sorted(scores, key=lambda score: (score.site, score.case)):
        grouped.setdefault(score.site, {}).setdefault(score.case, []).append(score.dice)
    return {site: [fmean(values) for values in cases.values()] for site, cases in grouped.items()}


def _site_summary(scores: Sequence[CaseScore], labels: Sequence[str]) -> dict[str, Any]:
    by_class = {label: means([s for s in scores if s.label == label]) for label in labels}
    return {**means(scores), "classes": by_class, "cases": len({score.case for score in scores})}


def _score_case(
    case: str, site: str, truth_file: Path, prediction_file: Path,
    classes: ScoredClasses, reader: LabelReader, tolerance_mm: float,
) -> list[CaseScore]:  # fmt: skip
    truth, spacing = reader.labels(truth_file)
    prediction, predicted_spacing = reader.labels(prediction_file)
    if truth.shape != prediction.shape or any(
        abs(a - b) > 1e-3 * a for a, b in zip(spacing, predicted_spacing, strict=True)
    ):
        raise InputError(f"{prediction_file} has not the shape and spacing of {truth_file}: predict the case again")
    truth_masks, predicted_masks = classes.masks(truth, truth), classes.masks(truth, prediction)
    rows = []
    for label, mask in truth_masks.items():
        predicted = predicted_masks[label]
        figures: Mapping[str, float] = asdict(score_masks(mask, predicted, spacing, tolerance_mm))
        rows.append(
            CaseScore(
                case, site, label, **figures, tolerance_mm=tolerance_mm,
                truth_voxels=int(mask.sum()), predicted_voxels=int(predicted.sum()),
            )
        )  # fmt: skip
    return rows


def _check_complete(scores: Sequence[CaseScore]) -> None:
    """ValueError unless every case is at one site and has every class once: the means would be of something else."""
    rows = Counter((score.case, score.label) for score in scores)
    sites = {(score.case, score.site) for score in scores}
    cases, labels = {score.case for score in scores}, {score.label for score in scores}
    if len(rows) != len(scores) or len(rows) != len(cases) * len(labels) or len(sites) != len(cases):
        raise ValueError("not every case has every class once")


def _parsed(row: Mapping[str, str]) -> CaseScore:
    numbers = {name: float(row[name]) for name in (*METRICS, "tolerance_mm")}
    if not all(math.isfinite(value) for value in numbers.values()):
        raise ValueError("a figure is not finite")
    voxels = {name: int(row[name]) for name in ("truth_voxels", "predicted_voxels")}
    return CaseScore(row["case"], row["site"], row["label"], **numbers, **voxels)  # type: ignore[arg-type]
