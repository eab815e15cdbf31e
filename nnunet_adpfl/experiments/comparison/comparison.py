"""`adpfl compare`: tune on others, run every method with every start and seed, write one table and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files, folders, folds
from nnunet_adpfl.cohort import names_a_file
from nnunet_adpfl.errors import AdpflError, DivergedError, InputError
from nnunet_adpfl.experiments.comparison import methods as known_methods
from nnunet_adpfl.experiments.comparison import plots, side_by_side, table, table_text, tuning
from nnunet_adpfl.experiments.comparison.methods import PUBLIC, Method
from nnunet_adpfl.experiments.comparison.runs import RunTask
from nnunet_adpfl.federation.privacy_planning import declared_public
from nnunet_adpfl.federation.training import chosen_device
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.plan import InitialWeights
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import patient_totals, prepared_fold
from nnunet_adpfl.trainers.central_run import check_no_site_is_left_out
from nnunet_adpfl.trainers.patient_totals import COMPARISONS

_NOTHING_FOUND: dict[str, Any] = {"mean": {"dice": 0.0}}  # of a setting that tuning tried and that diverged
RESULT_FILE_NAME, TEXT_FILE_NAME = "comparison.json", "comparison.md"


@dataclass(frozen=True)
class CompareSettings:
    """What to compare, on what, and how.

    Attributes:
        methods, variants: see `methods.chosen`.
        seeds: number of seeds, from 0.
        init: public initial weights; every method is then run with and without them.
        tune_on: planned data set of other patients, on which each method's grid is tried.
        tuning: tuning.json of an earlier comparison, instead.
        tuning_seeds: seeds of each setting that is tried.
        name: of the comparison; its runs lie in ``nnUNet_results/DATASET/adpfl_compare/NAME/METHOD/seed_K``.
        jobs: runs side by side, each in its own process.
        curve_cases, mirroring, workers: see `runs.RunTask`.
    """

    dataset: str
    configuration: str
    fold: str
    plans: str = "nnUNetPlans"
    methods: Sequence[str] = ("local", "central", "np-fl", "dp-fl", "adp-fl")
    variants: Sequence[str] = ()
    seeds: int = 3
    init: Path | None = None
    tune_on: str | None = None
    tuning: Path | None = None
    tuning_seeds: int = 1
    name: str | None = None
    device: str = "cpu"
    jobs: int = 1
    curve_cases: int = 12
    mirroring: bool = False
    workers: int | None = None


def compare(settings: CompareSettings) -> dict[str, Any]:
    """Run what is missing and write comparison.json, comparison.md and pictures; safe to call again after an interruption.

    Returns the figures, as ``adpfl compare --json`` prints them.
    Raises InputError before the first run for anything that is wrong; AdpflError at the end when runs failed, with all that
    succeeded kept.
    """
    chosen = _checked(settings)
    init = InitialWeights.model_validate(declared_public(settings.init)) if settings.init else InitialWeights()
    folder = _folder(settings, settings.dataset)
    tuned = _tuned(settings, chosen, init, folder)
    tasks = [
        _task(settings, settings.dataset, method, tuned.get(method.tuned_as, {}), init, folder / method.name / f"seed_{seed}", seed)
        for seed in range(settings.seeds)
        for method in chosen
    ]
    done: dict[str, list[dict[str, Any]]] = {method.name: [] for method in chosen}
    for task, result in _run_all(tasks, settings.jobs):
        done[task.method.name].append(result)
        _write(settings, folder, done)
    found = _write(settings, folder, done, total=patient_totals.dataset_totals(folders.preprocessed_folder(settings.dataset)))
    plots.draw(done, folder)
    return found


def _checked(settings: CompareSettings) -> list[Method]:
    """Everything that can be wrong, before anything is run."""
    chosen_device(settings.device)
    if settings.seeds < 1 or settings.jobs < 1 or settings.tuning_seeds < 1:
        raise InputError("--seeds, --tuning-seeds and --jobs must be 1 or more")
    if settings.fold == folds.ALL:
        raise InputError("fold all holds out no case to compare on: use a numbered fold")
    if settings.tune_on and settings.tuning:
        raise InputError("--tune-on and --tuning: give one of them")
    if settings.name is not None and not names_a_file(settings.name):
        raise InputError(f"--name {settings.name!r} is not a name for a folder")
    chosen = known_methods.chosen(settings.methods, settings.variants)
    if settings.init:
        both = [start for method in chosen for start in (method, method.from_public()) if method.start != PUBLIC]
        chosen = list({method.name: method for method in [*both, *chosen]}.values())
    elif any(method.start == PUBLIC for method in chosen):
        raise InputError("a method with the public start needs --init FILE (see `adpfl pretrain`)")
    for dataset in filter(None, (settings.dataset, settings.tune_on)):
        preprocessed = folders.preprocessed_folder(dataset)
        prepared = prepared_fold.load(preprocessed, settings.plans, settings.configuration, settings.fold, "nnUNetTrainerADP")
        declared = privacy_plans.load(preprocessed / privacy_plans.file_name(settings.plans, settings.configuration))
        for method in chosen:
            plan = known_methods.plan_of(declared, method, {}, 0, InitialWeights())  # refuses fields that no plan has
            prepared.check_models_for_all(plan)
            if method.place == "central":
                check_no_site_is_left_out(prepared)
    if settings.tune_on:
        tuning.check_other_patients(settings.dataset, settings.tune_on, settings.plans)
    return chosen


def _folder(settings: CompareSettings, dataset: str) -> Path:
    name = settings.name or f"{settings.plans}__{settings.configuration}__fold_{settings.fold}"
    return folders.results_folder(folders.dataset_name(dataset)) / COMPARISONS / name


def _tuned(settings: CompareSettings, chosen: Sequence[Method], init: InitialWeights, folder: Path) -> dict[str, dict[str, Any]]:
    """Method -> settings: loaded, or tried now; nothing where neither is asked for."""
    if settings.tuning:
        tuned_on, known = tuning.load(settings.tuning)
        tuning.check_other_patients(settings.dataset, tuned_on, settings.plans)
        _refuse_missing(settings.tuning, known, chosen)
        return known
    if not settings.tune_on:
        return {}
    place = _folder(settings, settings.tune_on)
    place = place.with_name(f"{place.name}__tuning")
    tasks, of_task = [], {}
    for method in {method.tuned_as: known_methods.untuned(method) for method in chosen}.values():
        for index, values in enumerate(tuning.candidates(method)):
            for seed in range(settings.tuning_seeds):
                path = place / f"{method.tuned_as}__{index:02d}" / f"seed_{seed}"
                task = _task(settings, settings.tune_on, method, values, init, path, seed)
                tasks.append(replace(task, curve_cases=0))
                of_task[path] = (method.tuned_as, index)
    note(f"tuning on {settings.tune_on}: {len(tasks)} runs")
    dice: dict[tuple[str, int], list[float]] = {}
    values_of = {of_task[task.folder]: task.tuned for task in tasks}
    for task, result in _run_all(tasks, settings.jobs, diverged=_NOTHING_FOUND):
        dice.setdefault(of_task[task.folder], []).append(float(result["mean"]["dice"]))
    scores: dict[str, list[tuple[Any, list[float]]]] = {}
    for (name, index), tried in sorted(values_of.items()):
        scores.setdefault(name, []).append((tried, dice[name, index]))
    return tuning.save(folder / tuning.FILE_NAME, folders.dataset_name(settings.tune_on), scores)


def _refuse_missing(path: Path, known: Mapping[str, Any], chosen: Sequence[Method]) -> None:
    """InputError for a method whose settings the file does not have: tuned and not tuned side by side compare the care taken."""
    missing = [method.tuned_as for method in chosen if method.grid and method.tuned_as not in known]
    if missing:
        raise InputError(
            f"--tuning {path} has no settings of {missing[0]} (it has {', '.join(sorted(known))}): tune it too (--tune-on), or leave it out"
        )


def _task(
    settings: CompareSettings, dataset: str, method: Method, tuned: Any, init: InitialWeights, folder: Path, seed: int
) -> RunTask:
    return RunTask(
        folders.dataset_name(dataset), settings.plans, settings.configuration, settings.fold, method, seed, folder,
        {path: value for path, value in tuned.items() if path in method.grid},
        init, settings.device, settings.curve_cases, settings.mirroring, workers=settings.workers,
    )  # fmt: skip


def _run_all(
    tasks: Sequence[RunTask], jobs: int, diverged: dict[str, Any] | None = None
) -> Iterator[tuple[RunTask, dict[str, Any]]]:
    """Every task with its result, as they are done; what fails is said, and ends the comparison after the others.

    Args:
        diverged: result of a run whose weights diverged; None: that fails like anything else.
    """
    failed: list[str] = []
    for number, (task, outcome) in enumerate(side_by_side.outcomes(tasks, jobs), start=1):
        what = f"{task.folder.parent.name}, seed {task.seed} ({number} of {len(tasks)})"
        if diverged is not None and isinstance(outcome, DivergedError):
            note(f"{what}: diverged, counts as Dice 0")
            yield task, diverged
            continue
        if isinstance(outcome, AdpflError):
            failed.append(f"{what}: {outcome}")
            note(failed[-1])
            continue
        note(f"{what}: Dice {outcome['mean']['dice']:.4f}")
        yield task, outcome
    if failed:
        raise AdpflError(f"{len(failed)} of {len(tasks)} runs failed, the others are kept; first: {failed[0]}")


def _write(
    settings: CompareSettings, folder: Path, done: dict[str, list[dict[str, Any]]], total: dict[str, Any] | None = None
) -> dict[str, Any]:
    finished = {name: sorted(results, key=lambda result: int(result["seed"])) for name, results in done.items() if results}
    found = {
        "dataset": settings.dataset,
        "configuration": settings.configuration,
        "plans": settings.plans,
        "fold": settings.fold,
        "for_release": False,  # figures about held-out patients
        "all_runs_on_these_patients": total and {key: total[key] for key in ("epsilon", "delta", "unit", "guarantee", "runs")},
        **table.figures(finished),
    }
    atomic_files.write_json(folder / RESULT_FILE_NAME, found)
    atomic_files.write_text(folder / TEXT_FILE_NAME, table_text.markdown(found))
    return {**found, "folder": str(folder)}
