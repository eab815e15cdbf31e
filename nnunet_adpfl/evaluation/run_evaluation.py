"""Evaluation of trained weights on held-out cases: predict, score, write the table and the summary."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation import run_records, scoring
from nnunet_adpfl.evaluation.classes import scored_classes
from nnunet_adpfl.evaluation.metrics import DEFAULT_TOLERANCE_MM, check_tolerance
from nnunet_adpfl.evaluation.run_records import RunRecords
from nnunet_adpfl.evaluation.scoring import CaseScore
from nnunet_adpfl.nnunet_compat.prediction import CasePredictor, LabelReader, TrainedModel, data_identifier, load_model
from nnunet_adpfl.progress import note, track

PREDICTIONS_FOLDER = "validation"
SUMMARY_FILE_NAME = "evaluation.json"
FINAL_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class EvaluationSettings:
    """How to predict and score.

    Attributes:
        tolerance_mm: of the normalised surface Dice.
        device: cpu, cuda or mps.
        mirroring: test-time mirroring as nnU-Net does it; off is 4 (2D) or 8 (3D) times faster.
    """

    tolerance_mm: float = DEFAULT_TOLERANCE_MM
    device: str = "cpu"
    mirroring: bool = True

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance_mm)


def evaluate_run(
    run: Path,
    *,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    device: str = "cpu",
    checkpoint: str = FINAL_CHECKPOINT,
    mirroring: bool = True,
) -> dict[str, Any]:
    """Predict the fold's validation cases into RUN/validation, score them, write metrics.csv and evaluation.json.

    Returns the summary: means over cases in all, per site and per class, and how it was made.
    Raises InputError for a folder that is no run, a run without this checkpoint, the fold ``all``, changed plans.
    """
    settings = EvaluationSettings(tolerance_mm, device, mirroring)
    records = run_records.load(run)
    cases = records.held_out_cases()
    scores = []
    for path, group in _models(run, checkpoint, cases, records.cohort).items():
        model = load_model(path)
        scores += score_model(model, records.preprocessed, group, records.cohort, settings, run / PREDICTIONS_FOLDER)
    scores.sort(key=lambda score: score.case)
    scoring.write_table(scores, run / scoring.FILE_NAME)
    summary = {
        **scoring.summarise(scores),
        "fold": records.manifest["fold"],
        "checkpoint": checkpoint,
        "checkpoint_sha256": file_digest(run / checkpoint),
        "tolerance_mm": tolerance_mm,
        "mirroring": mirroring,
        "for_release": is_public(records),
    }
    atomic_files.write_json(run / SUMMARY_FILE_NAME, summary)
    if not summary["for_release"]:
        note("these figures come from private validation cases: not for release")
    return summary


def score_weights(
    run: Path, weights: Mapping[str, torch.Tensor], settings: EvaluationSettings | None = None
) -> dict[str, Any]:
    """Summary of other weights (the initial ones, another round's) on a run's validation cases; keeps no file.

    Args:
        weights: name -> tensor, all of the network of the run's plan.
    """
    records = run_records.load(run)
    found = next((run / name for name in (FINAL_CHECKPOINT, "checkpoint_latest.pth") if (run / name).is_file()), None)
    if found is None:
        raise InputError(f"{run} holds no checkpoint that says which plan its network has")
    model = dataclasses.replace(load_model(found), weights=weights)
    cases = records.held_out_cases()
    with tempfile.TemporaryDirectory() as folder:
        scores = score_model(
            model, records.preprocessed, cases, records.cohort, settings or EvaluationSettings(), Path(folder)
        )
    return scoring.summarise(scores)


def score_model(
    model: TrainedModel,
    preprocessed: Path,
    cases: Sequence[str],
    cohort: Cohort,
    settings: EvaluationSettings,
    predictions: Path,
) -> list[CaseScore]:
    """Predict cases of a preprocessed data set into a folder and score them against its gt_segmentations."""
    data_folder = _data_folder(model, preprocessed)
    predictor = CasePredictor(model, data_folder, torch.device(settings.device), mirroring=settings.mirroring)
    missing = sorted(set(cases) - predictor.cases)
    if missing:
        raise InputError(f"{data_folder}: case {missing[0]} is not preprocessed; run `adpfl plan` again")
    predictions.mkdir(parents=True, exist_ok=True)
    for case in track(cases, "predicting"):
        predictor.predict_to_file(case, predictions)
    return scoring.score_folder(
        predictions,
        preprocessed / "gt_segmentations",
        cases,
        cohort=cohort,
        classes=scored_classes(model.dataset_json),
        reader=LabelReader(model.plans),
        file_ending=str(model.dataset_json["file_ending"]),
        tolerance_mm=settings.tolerance_mm,
    )


def _models(run: Path, checkpoint: str, cases: Sequence[str], cohort: Cohort) -> dict[Path, list[str]]:
    """Checkpoint -> the cases that it predicts: a site's own model for its cases, where layers stayed local (fedbn)."""
    found: dict[Path, list[str]] = {}
    for case in cases:
        own = run / "sites" / cohort.cases[case].site / checkpoint
        found.setdefault(own if own.is_file() else run / checkpoint, []).append(case)
    return found


def file_digest(path: Path) -> str:
    """sha256 of a file: says which checkpoint the scores are of."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_public(records: RunRecords) -> bool:
    """Whether the privacy plan declares validation cases public, so that figures about them may be released."""
    return records.privacy_plan.validation == "public"


def _data_folder(model: TrainedModel, preprocessed: Path) -> Path:
    """Folder of the model's preprocessed cases; refused where they were preprocessed by another plan since."""
    path = preprocessed / f"{model.plans['plans_name']}.json"
    folder = preprocessed / data_identifier(model)
    if path.is_file():
        try:
            configurations = json_files.load(path)["configurations"]
        except (ValueError, KeyError, TypeError):
            configurations = None
        if configurations != model.plans["configurations"]:
            raise InputError(f"{path} is not the plan that these weights were trained with: restore it, or train again")
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the data set is not preprocessed on this machine")
    return folder
