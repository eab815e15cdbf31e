"""The stages behind ``adpfl plan`` and ``adpfl run``: plan, train, evaluate, account, report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folders, folds
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.metrics import DEFAULT_TOLERANCE_MM
from nnunet_adpfl.evaluation.report import write_report
from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
from nnunet_adpfl.experiments.memory import peak_memory_mib
from nnunet_adpfl.federation import dependent_runs, privacy_planning
from nnunet_adpfl.federation.expected_signal import base_features_of, expected_signal
from nnunet_adpfl.federation.planning import PlannedDataset, PlanningChoices, check_planning_choices, prepare_dataset
from nnunet_adpfl.federation.privacy_planning import PlannedPrivacy, PrivacyChoices
from nnunet_adpfl.federation.training import train
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.choices import Choice, explained_fields, to_json
from nnunet_adpfl.privacy.plan import PrivacyPlan
from nnunet_adpfl.privacy.planner import WIDTHS
from nnunet_adpfl.privacy.summary import summarise
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers.device import chosen_device
from nnunet_adpfl.trainers.prepared_fold import check_trainer, plans_digest


@dataclass(frozen=True)
class TrainingChoices:
    """How a run trains and is scored; None leaves a field to the privacy plan."""

    trainer: str = "nnUNetTrainerADP"
    rounds: int | None = None
    local_steps: int | None = None
    go_on: bool = False
    device: str = "cpu"
    tolerance_mm: float = DEFAULT_TOLERANCE_MM
    mirroring: bool = True


def plan(
    dataset: str, configurations: Sequence[str], planning: PlanningChoices, privacy: PrivacyChoices
) -> dict[str, Any]:
    """Plan, preprocess, split, and write the privacy plan of every configuration.

    A privacy plan that is there is kept where no privacy setting is asked for and it still fits, so that edits by hand
    are not lost.

    Returns ``{"dataset", "plans", "preprocessed", "configurations": {NAME: figures of its privacy plan, "choices", "signal"}}``.
    Raises InputError before anything is overwritten, also where an unfinished run needs the privacy plan that is there.
    """
    check_planning_choices(planning, configurations)
    cohort = cohorts.load(folders.raw_folder(dataset))
    privacy_planning.check_choices(cohort, planning.fingerprint_kind, privacy, planning.planned_release)
    planned = prepare_dataset(
        dataset, configurations, planning, width=lambda stock: _advised_width(stock, configurations, privacy)
    )
    written = {}
    for configuration in configurations:
        path = planned.preprocessed / privacy_plans.file_name(planned.plans["plans_name"], configuration)
        kept = _kept(path, planned, privacy)
        made = _as_kept(kept, path) if kept else _privacy_of(planned, configuration, privacy)
        if not kept:
            _refuse_orphans(path, made.plan, planned, configuration)
            made.plan.save(path)
        written[configuration] = {
            "privacy_plan": str(path),
            **privacy_planning.describe(made.plan),
            **_explained(made, planned, configuration, planning),
        }
    return {
        "dataset": planned.preprocessed.name,
        "plans": planned.plans["plans_name"],
        "preprocessed": str(planned.preprocessed),
        "configurations": written,
    }


def run(
    dataset: str, configuration: str, fold: str, planning: PlanningChoices, privacy: PrivacyChoices, choices: TrainingChoices
) -> dict[str, Any]:
    """Plan, train, evaluate, account and report in one go.

    Returns paths, the summaries of `adpfl evaluate` and `adpfl privacy`, seconds of each stage and peak memory. A fold
    ``all`` trained on every case, so it is not evaluated.
    """
    chosen_device(choices.device)
    check_trainer(choices.trainer)
    seconds: dict[str, float] = {}
    with _timed(seconds, "plan"):
        planned = plan(dataset, [configuration], planning, privacy)
    with _timed(seconds, "train"):
        folder = train(
            planned["dataset"], configuration, fold, trainer=choices.trainer, plans=planned["plans"],
            rounds=choices.rounds, local_steps=choices.local_steps, go_on=choices.go_on, device=choices.device,
        )  # fmt: skip
    evaluation = None
    if fold == folds.ALL:
        note("fold all trained on every case: there is no held-out case to evaluate on")
    else:
        with _timed(seconds, "evaluate"):
            evaluation = evaluate_run(
                folder, tolerance_mm=choices.tolerance_mm, device=choices.device, mirroring=choices.mirroring
            )
    with _timed(seconds, "report"):
        privacy_spent = summarise(folder)
        report = write_report(folder)
    return {
        "run": str(folder),
        "report": str(report),
        "evaluation": evaluation,
        "privacy": privacy_spent,
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "peak_memory_mib": peak_memory_mib(choices.device),
    }


def _privacy_of(planned: PlannedDataset, configuration: str, privacy: PrivacyChoices) -> PlannedPrivacy:
    return privacy_planning.plan_privacy(
        planned.plans, planned.cohort, planned.splits, planned.fingerprint, privacy, planned.release, configuration=configuration
    )


def _advised_width(stock: PlannedDataset, configurations: Sequence[str], privacy: PrivacyChoices) -> int:
    """Base features that suit all configurations: they share one plan."""
    made = {name: _privacy_of(stock, name, privacy).plan for name in configurations}
    found = [expected_signal(plan, stock.plans, name, stock.dataset_json) for name, plan in made.items()]
    return min((int(signal.advised.value) for signal in found if signal), default=max(WIDTHS))


def _as_kept(plan: PrivacyPlan, path: Path) -> PlannedPrivacy:
    content = plan.model_dump(mode="json")
    values = {}
    for name in explained_fields(plan.clipping.method):
        section, _, field = name.rpartition(".")
        values[name] = (content[section] if section else content)[field]
    return PlannedPrivacy(plan, {name: Choice(value, f"kept from {path.name}", given=True) for name, value in values.items()})


def _explained(
    made: PlannedPrivacy, planned: PlannedDataset, configuration: str, planning: PlanningChoices
) -> dict[str, Any]:
    """What was chosen and why, the width of the network included, and the signal to expect."""
    signal = expected_signal(made.plan, planned.plans, configuration, planned.dataset_json)
    choices = dict(made.choices)
    if (width := base_features_of(planned.plans, configuration)) is not None:
        choices["base_features"] = _why_width(width, signal.advised if signal else None, planning)
    return {"choices": to_json(choices), "signal": signal.to_json() if signal else None}


def _why_width(width: int, advised: Choice | None, planning: PlanningChoices) -> Choice:
    if planning.fixed_width is not None:
        return Choice(width, "given", given=True)
    if planning.base_features is None:
        return Choice(width, "nnU-Net's own; --base-features auto takes the advised width")
    return advised if advised and advised.value == width else Choice(width, "suits all configurations of these plans")


def _kept(path: Path, planned: PlannedDataset, privacy: PrivacyChoices) -> PrivacyPlan | None:
    """The privacy plan that is there, if nothing else is asked for and it belongs to this plan, cohort and splits."""
    if privacy != PrivacyChoices() or not path.is_file():
        return None
    found = privacy_plans.load(path)
    units = privacy_planning.units_of_folds(planned.cohort, planned.splits)
    belongs = (found.cohort_digest, found.plans_digest) == (planned.cohort.digest(), plans_digest(planned.plans))
    fingerprints = (found.fingerprint, found.fingerprint_release), (planned.fingerprint, planned.release)
    if not belongs or found.training_units != units or fingerprints[0] != fingerprints[1]:
        return None
    note(f"{path.name} is kept: no privacy setting was given")
    return found


def _refuse_orphans(path: Path, made: PrivacyPlan, planned: PlannedDataset, configuration: str) -> None:
    """An unfinished run can go on with its own privacy plan only."""
    if not path.is_file() or privacy_plans.load(path).digest() == made.digest():
        return
    results = folders.results_folder(planned.preprocessed.name)
    for run_folder in dependent_runs.of_plans(results, planned.plans["plans_name"], configuration):
        if not (run_folder / checkpoints.FINAL).is_file():
            raise InputError(
                f"{path.name} would change, but the run {run_folder} is not finished and needs it: finish it with "
                "--continue, move it away, or plan under another name"
            )
    note(f"{path.name} is replaced: its settings changed")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Notes the wall time of a stage. For the one who runs it: durations show how many patients were drawn."""
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began
