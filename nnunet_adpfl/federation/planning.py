"""One nnU-Net plan for all sites, and everything that training expects to find in nnUNet_preprocessed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files, folders, folds, json_files
from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import denoising, dependent_runs, raw_cases
from nnunet_adpfl.federation.examination import examined_fingerprint
from nnunet_adpfl.federation.noisy_fingerprint import DEFAULT_NOISE, Asked, noisy_fingerprint, questions_about
from nnunet_adpfl.federation.plans import adapted_plans, make_plans, public_plans
from nnunet_adpfl.federation.preprocessing import Preprocessing, copy_labels, data_identifier, resolved
from nnunet_adpfl.federation.raw_cases import RawCases
from nnunet_adpfl.federation.splits import (
    N_FOLDS,
    SPLIT_SEED,
    check_kind,
    chosen_splits,
    kind_of,
    new_splits,
    save_splits,
)
from nnunet_adpfl.nnunet_compat.training import check_supported
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.plan import FingerprintRelease
from nnunet_adpfl.privacy.planned_images import planned_images
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import site_ledger
from nnunet_adpfl.trainers.prepared_fold import plans_digest

FINGERPRINT_FILE_NAME = "dataset_fingerprint.json"
PUBLIC_PREFIX = "public:"
AUTO = "auto"  # base features: as many as the expected signal to noise allows
_REMEDY = "move those results away, or convert the data under another data set number"


@dataclass(frozen=True)
class PlanningChoices:
    """How the plan and the splits are made.

    Attributes:
        fingerprint: ``pooled`` (exact sums over all patients), ``dp`` (noisy histograms) or ``public:PLANS.json`` (no
            patient used).
        planner: name of any stock planner class.
        base_features: features of the first stage, or AUTO; the plans then get the name PLANS_fN. None: as the planner says.
        folds: ``patients``: stratified by site; ``sites``: leave-one-site-out. None: as those that are there, else patients.
        small_sites: ``refuse`` or ``other`` (see make_splits).
        plans_name: as nnU-Net's -overwrite_plans_name. None: the planner's own.
        n_folds, seed: of the splits, where none exist yet.
        fingerprint_noise: noise multiplier of ``dp``. None: DEFAULT_NOISE.
    """

    fingerprint: str = "pooled"
    planner: str = "ExperimentPlanner"
    base_features: int | str | None = None
    folds: str | None = None
    small_sites: str = "refuse"
    plans_name: str | None = None
    n_folds: int = N_FOLDS
    seed: int = SPLIT_SEED
    fingerprint_noise: float | None = None

    @property
    def fixed_width(self) -> int | None:
        return self.base_features if isinstance(self.base_features, int) else None

    @property
    def fingerprint_kind(self) -> str:
        """``pooled``, ``dp`` or ``public``, as the privacy plan has it."""
        return "public" if self.fingerprint.startswith(PUBLIC_PREFIX) else self.fingerprint

    @property
    def planned_release(self) -> FingerprintRelease | None:
        """What a noisy fingerprint will cost, before it has a name."""
        if self.fingerprint_kind != "dp":
            return None
        noise = DEFAULT_NOISE if self.fingerprint_noise is None else self.fingerprint_noise
        return FingerprintRelease(release="planned", noise_multiplier=noise)


@dataclass(frozen=True)
class PlannedDataset:
    """What planning wrote.

    Attributes:
        preprocessed: nnUNet_preprocessed/DATASET, which now has cohort.json, dataset.json, PLANS.json, splits_final.json,
            gt_segmentations and the preprocessed cases.
        plans: nnU-Net's plan.
        dataset_json: nnU-Net's dataset.json.
        fingerprint: ``pooled``, ``dp`` or ``public``.
        release: the noisy fingerprint that was paid for, where it is ``dp``.
    """

    preprocessed: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    cohort: Cohort
    splits: list[folds.Split]
    fingerprint: str
    release: FingerprintRelease | None = None


ChooseWidth = Callable[[PlannedDataset], int]


def prepare_dataset(
    dataset: str | int,
    configurations: Sequence[str],
    choices: PlanningChoices | None = None,
    *,
    width: ChooseWidth | None = None,
    processes: int | None = None,
) -> PlannedDataset:
    """Check, fingerprint, plan, split and preprocess a raw data set that has a cohort. Safe to call again: what is done
    and unchanged is kept, an interrupted call goes on where it stopped.

    Args:
        width: chooses the base features where they are AUTO, from the plan of stock width.
        processes: None for nnUNet_def_n_proc.

    Raises InputError, before anything is overwritten, for a missing cohort, broken cases, unknown planner or
    configuration, sites too small to split, and for changes that would orphan a run.
    """
    choices = choices or PlanningChoices()
    name = folders.dataset_name(dataset)
    raw_folder, preprocessed, results = folders.raw_folder(name), folders.preprocessed_folder(name), folders.results_folder(name)
    check_planning_choices(choices, configurations)
    raw = raw_cases.load(raw_folder)
    cohort = _cohort_of(raw_folder, raw)
    kind = choices.folds or kind_of(preprocessed, cohort)
    made = new_splits(cohort, kind, n_folds=choices.n_folds, seed=choices.seed, small_sites=choices.small_sites)
    replace_own, asked_for = not dependent_runs.any_run(results), choices.folds == "sites"
    splits = chosen_splits(made, cohort, [preprocessed, raw_folder], replace_own=replace_own, asked_for=asked_for)
    _refuse_changed_cohort(preprocessed, results, cohort)
    plans, merged, release = _plans(name, configurations, preprocessed, raw, cohort, choices, processes)
    for configuration in configurations:
        check_supported(plans, configuration)
        planned_images(plans, resolved(plans, configuration))  # refused before the long work
    if choices.base_features == AUTO and width is not None:
        stock = PlannedDataset(preprocessed, plans, raw.dataset_json, cohort, splits, choices.fingerprint_kind, release)
        plans = adapted_plans(plans, width(stock))
    jobs = [Preprocessing(preprocessed, raw, plans, configuration) for configuration in configurations]
    _refuse_orphans(preprocessed, results, plans, jobs)
    atomic_files.write_json(preprocessed / "dataset.json", json_files.load(raw_folder / "dataset.json"))
    if merged is not None:
        atomic_files.write_json(preprocessed / FINGERPRINT_FILE_NAME, merged)
    atomic_files.write_json(preprocessed / f"{plans['plans_name']}.json", plans)
    site_ledger.note_plan(preprocessed, cohort.sites, plans_digest(plans), choices.fingerprint_kind)
    cohort.save(preprocessed)
    save_splits(preprocessed, splits, made_here=splits is made)
    copy_labels(preprocessed, raw)
    for job in jobs:
        job.run(processes)
    return PlannedDataset(preprocessed, plans, raw.dataset_json, cohort, splits, choices.fingerprint_kind, release)


def _plans(
    name: str,
    configurations: Sequence[str],
    preprocessed: Path,
    raw: RawCases,
    cohort: Cohort,
    choices: PlanningChoices,
    processes: int | None,
) -> tuple[dict[str, Any], dict[str, Any] | None, FingerprintRelease | None]:
    """The plan, the fingerprint that it was made from (None for public plans), and what was paid for it."""
    if choices.fingerprint_kind == "public":
        given = public_plans(Path(choices.fingerprint.removeprefix(PUBLIC_PREFIX)), name, raw)
        plans = adapted_plans(given, choices.fixed_width)
        examined_fingerprint(preprocessed, raw, cohort, pooled=False, processes=processes)
        return plans, None, None
    make = functools.partial(
        make_plans, name, raw, planner=choices.planner, base_features=choices.fixed_width, plans_name=choices.plans_name
    )
    if choices.planned_release is None:
        merged = examined_fingerprint(preprocessed, raw, cohort, pooled=True, processes=processes)
        return make(merged), merged, None
    make = functools.partial(make, declared_cases=len(cohort.units()))  # how many cases a patient has is not public

    def before_paying() -> None:
        _refuse_new_release(preprocessed, make(denoising.prior(questions_about(raw)).fingerprint()), configurations)
        cohort.save(preprocessed)  # from now on the odometers count for it

    asked = Asked(choices.planned_release.noise_multiplier, before_paying)
    merged, release = noisy_fingerprint(preprocessed, raw, cohort, asked, processes)
    return make(merged), merged, release


def _refuse_new_release(preprocessed: Path, plans: Mapping[str, Any], configurations: Sequence[str]) -> None:
    """Another noisy fingerprint gives other plans: refused before it is paid for where a run needs those that are there.

    Args:
        plans: made from no patient, for their names; with them the planner has been tried, too.
    """
    results = folders.results_folder(preprocessed.name)
    known = [name for name in configurations if name in plans["configurations"]]
    runs = dependent_runs.of_plans(results, plans["plans_name"])
    for identifier in (data_identifier(dict(plans), name) for name in known):
        runs += dependent_runs.of_data(results, preprocessed, identifier)
    if runs:
        raise InputError(
            f"a new noisy fingerprint would change {plans['plans_name']}.json, but {runs[0]} was trained with it: {_REMEDY}, or plan under "
            "another name (nothing was spent)"
        )


def check_planning_choices(choices: PlanningChoices, configurations: Sequence[str]) -> None:
    """InputError for choices that are wrong whatever the data is."""
    if not configurations:
        raise InputError("no configuration given: add -c 2d or -c 3d_fullres")
    check_kind(choices.folds)
    features = choices.base_features
    if features not in (None, AUTO) and not (isinstance(features, int) and features >= 1):
        raise InputError(f"--base-features {features} must be a whole number of 1 or more, or auto")
    if choices.fingerprint_kind not in ("pooled", "dp", "public"):
        raise InputError(f"--fingerprint {choices.fingerprint!r} is unknown; use pooled, dp or public:PLANS.json")
    noise = choices.fingerprint_noise
    if noise is not None and choices.fingerprint_kind != "dp":
        raise InputError(f"--fingerprint-noise {noise:g} is for --fingerprint dp; leave it out")
    if noise is not None and not accounting.LEAST_NOISE <= noise < math.inf:
        raise InputError(f"--fingerprint-noise {noise:g} must be a finite number of {accounting.LEAST_NOISE:g} or more")


def _cohort_of(raw_folder: Path, raw: RawCases) -> Cohort:
    cohort = cohorts.load(raw_folder)
    unknown, missing = sorted(set(cohort.cases) - set(raw.files)), sorted(set(raw.files) - set(cohort.cases))
    if unknown:
        raise InputError(f"{raw_folder / cohorts.FILE_NAME} names case {unknown[0]}, which the data set lacks: run `adpfl cohort` again")
    if missing:
        raise InputError(f"{raw_folder / cohorts.FILE_NAME} does not name case {missing[0]}: run `adpfl cohort` again")
    return cohort


def _known_plans(path: Path) -> Any:
    """Plans that are there; damaged ones differ from any."""
    try:
        return json_files.load(path)
    except ValueError:
        return None


def _refuse_changed_cohort(preprocessed: Path, results: Path, cohort: Cohort) -> None:
    path = preprocessed / cohorts.FILE_NAME
    used = [odometer for odometer in site_ledger.odometers_in(preprocessed) if odometer.runs()]
    if unknown := next((odometer for odometer in used if odometer.path.parent.name not in cohort.sites), None):
        raise InputError(
            f"{unknown.path} counts what was spent at a site that the cohort does not know: restore the cohort, or convert the "
            "data under another data set number"
        )
    if path.is_file() and cohorts.load(preprocessed).digest() != cohort.digest():
        if runs := dependent_runs.of_cohort(results):
            raise InputError(f"{path} would change, but {runs[0]} was trained with it: {_REMEDY}")
        if used:
            raise InputError(
                f"{path} would change, but {used[0].path} counts what was spent on its sites and patients: restore the "
                "cohort, or convert the data under another data set number"
            )


def _refuse_orphans(preprocessed: Path, results: Path, plans: dict[str, Any], jobs: Sequence[Preprocessing]) -> None:
    """Nothing that a run depends on is overwritten: it could neither go on nor be reproduced."""
    path = preprocessed / f"{plans['plans_name']}.json"
    if path.is_file() and _known_plans(path) != plans:
        if runs := dependent_runs.of_plans(results, plans["plans_name"]):
            raise InputError(f"{path} would change, but {runs[0]} was trained with it: {_REMEDY}, or plan under another name")
        note(f"{path.name} is replaced: the images or the planner's settings changed")
    for job in jobs:
        if job.would_change() and (runs := dependent_runs.of_data(results, preprocessed, job.data_identifier)):
            raise InputError(f"{job.folder} would change, but {runs[0]} was trained on it: {_REMEDY}")
