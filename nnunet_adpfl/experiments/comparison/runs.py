"""One run of a comparison: a method, a start and a seed, trained and scored in its own folder. Safe to call again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_adpfl import atomic_files, folders, folds, json_files
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation import scoring
from nnunet_adpfl.evaluation.round_dice import RoundDice, spread_over_sites
from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
from nnunet_adpfl.evaluation.run_records import read_lines
from nnunet_adpfl.experiments.comparison.methods import Method, plan_of
from nnunet_adpfl.federation.training import train_in
from nnunet_adpfl.nnunet_compat.prediction import TrainedModel
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_network
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.plan import InitialWeights
from nnunet_adpfl.privacy.summary import summarise
from nnunet_adpfl.trainers import central_training, prepared_fold
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.run_folder import RunFolder
from nnunet_adpfl.trainers.run_state import Observer

RESULT_FILE_NAME, CURVE_FILE_NAME = "result.json", "curve.jsonl"


@dataclass(frozen=True)
class RunTask:
    """Everything that one run needs; plain values, so that it can go to another process.

    Attributes:
        dataset, plans, configuration, fold: as for `adpfl train`.
        tuned: ``section.field`` -> value.
        init: public initial weights, for methods that start from them.
        folder: where the run lies, ``.../METHOD/seed_K``.
        curve_cases: held-out cases that are looked at after every round; 0: none.
        mirroring: test-time mirroring of the final scores.
        workers: processes that augment; None: as nnU-Net says.
    """

    dataset: str
    plans: str
    configuration: str
    fold: str
    method: Method
    seed: int
    folder: Path
    tuned: Mapping[str, Any] = field(default_factory=dict)
    init: InitialWeights = field(default_factory=InitialWeights)
    device: str = "cpu"
    curve_cases: int = 12
    mirroring: bool = False
    tolerance_mm: float = 1.0
    workers: int | None = None


def run(task: RunTask) -> dict[str, Any]:
    """Train and score, or go on where an earlier call stopped; what is done is not done again.

    Returns the content of result.json. Raises InputError where the folder holds a run with other settings.
    """
    prepared = _prepared(task)
    result = task.folder / RESULT_FILE_NAME
    settings = _settings(task, prepared)
    if result.is_file():
        found: dict[str, Any] = json_files.load(result)
        if found.get("settings") != settings:
            raise InputError(f"{task.folder} holds a run with other settings: compare under another --name, or move it away")
        return found
    _train(task, prepared)
    evaluation = evaluate_run(task.folder, tolerance_mm=task.tolerance_mm, device=task.device, mirroring=task.mirroring)
    spent = summarise(task.folder)
    found = {
        "method": task.method.name,
        "seed": task.seed,
        "settings": settings,
        "for_release": False,  # figures about held-out patients
        "tuned": dict(task.tuned),
        **{key: evaluation[key] for key in ("mean", "sites", "classes", "cases")},
        "dice_of_units": _dice_of_units(task.folder, prepared),
        "curve": [line["dice"] for line in _curve(task.folder)],
        "epsilon": spent["epsilon"],
        "guarantee": spent["guarantee"],
        "not_covered": spent["not_covered"],
    }
    atomic_files.write_json(result, found)
    return found


def _settings(task: RunTask, prepared: PreparedFold) -> dict[str, Any]:
    """What a kept result has to agree in: everything that its figures depend on."""
    held_out = hashlib.sha256("\0".join(sorted(prepared.fold.val)).encode()).hexdigest()
    return {
        "trainer": task.method.trainer, "place": task.method.place,
        "plan_hash": prepared.plan.digest(), "plans": task.plans, "configuration": task.configuration, "fold": task.fold,
        "held_out": held_out, "mirroring": task.mirroring, "tolerance_mm": task.tolerance_mm, "curve_cases": task.curve_cases,
    }  # fmt: skip


def _prepared(task: RunTask) -> PreparedFold:
    preprocessed = folders.preprocessed_folder(task.dataset)
    prepared = prepared_fold.load(preprocessed, task.plans, task.configuration, task.fold, "nnUNetTrainerADP")
    declared = privacy_plans.load(preprocessed / privacy_plans.file_name(task.plans, task.configuration))
    return prepared.with_plan(plan_of(declared, task.method, task.tuned, task.seed, task.init))


def _train(task: RunTask, prepared: PreparedFold) -> None:
    device = torch.device(task.device)
    folder = RunFolder(task.folder, prepared, task.method.trainer)
    observe = _observer(task, prepared, device) if task.curve_cases else None
    train = central_training.train_in if task.method.place == "central" else train_in
    train(folder, device, go_on=True, workers=task.workers, observe=observe)


def _observer(task: RunTask, prepared: PreparedFold, device: torch.device) -> Observer:
    """Writes the Dice of every round; a round that is taken again after an interruption replaces its line."""
    if prepared.fold.name == folds.ALL:
        raise InputError("fold all holds out no case to compare on: use a numbered fold")
    trainer = PlannedTrainer(prepared.plans, prepared.configuration, prepared.dataset_json, torch.device("cpu"))
    weights = build_network(trainer, 0).state_dict()
    model = TrainedModel(prepared.plans, prepared.dataset_json, prepared.configuration, weights)
    cases = spread_over_sites(sorted(prepared.fold.val), prepared.cohort, task.curve_cases)
    site_of = {case: prepared.cohort.cases[case].site for case in cases}
    measure = RoundDice(model, prepared.data_folder, cases, site_of, device)

    def observe(done: int, shared: Mapping[str, np.ndarray], own: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        line = {"round": done, "dice": measure.of(shared, own)}
        atomic_files.append_line(task.folder / CURVE_FILE_NAME, json.dumps(line))

    return observe


def _curve(folder: Path) -> list[dict[str, Any]]:
    latest = {int(line["round"]): line for line in read_lines(folder / CURVE_FILE_NAME)}
    return [latest[number] for number in sorted(latest)]


def _dice_of_units(folder: Path, prepared: PreparedFold) -> dict[str, float]:
    """Patient (or lesion) -> Dice, mean over its cases and their classes: what intervals are drawn over."""
    rows: dict[str, list[float]] = {}
    for score in scoring.read_table(folder / scoring.FILE_NAME):
        rows.setdefault(prepared.cohort.cases[score.case].unit, []).append(score.dice)
    return {unit: sum(values) / len(values) for unit, values in sorted(rows.items())}
