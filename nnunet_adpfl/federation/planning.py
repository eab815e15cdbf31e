"""One nnU-Net plan for all sites, and everything that training expects to find in nnUNet_preprocessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files, folders, folds
from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import dependent_runs, raw_cases
from nnunet_adpfl.federation.examination import examined_fingerprint
from nnunet_adpfl.federation.preprocessing import Preprocessing, copy_labels
from nnunet_adpfl.federation.raw_cases import RawCases
from nnunet_adpfl.federation.splits import N_FOLDS, SPLIT_SEED, chosen_splits, make_splits, save_splits
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.nnunet_compat.training import check_supported
from nnunet_adpfl.progress import note

FINGERPRINT_FILE_NAME = "dataset_fingerprint.json"
PUBLIC_PREFIX = "public:"
_REMEDY = "move those results away, or convert the data under another data set number"


@dataclass(frozen=True)
class PlanningChoices:
    """How the plan and the splits are made.

    Attributes:
        fingerprint: ``pooled`` (exact sums over all patients) or ``public:PLANS.json`` (no patient used).
        planner: name of any stock planner class.
        base_features: features of the first stage; the plans then get the name PLANS_fN. None: as the planner says.
        small_sites: ``refuse`` or ``other`` (see make_splits).
        plans_name: as nnU-Net's -overwrite_plans_name. None: the planner's own.
        n_folds, seed: of the splits, where none exist yet.
    """

    fingerprint: str = "pooled"
    planner: str = "ExperimentPlanner"
    base_features: int | None = None
    small_sites: str = "refuse"
    plans_name: str | None = None
    n_folds: int = N_FOLDS
    seed: int = SPLIT_SEED

    @property
    def fingerprint_kind(self) -> str:
        """``pooled`` or ``public``, as the privacy plan has it."""
        return "public" if self.fingerprint.startswith(PUBLIC_PREFIX) else self.fingerprint


@dataclass(frozen=True)
class PlannedDataset:
    """What planning wrote.

    Attributes:
        preprocessed: nnUNet_preprocessed/DATASET, which now has cohort.json, dataset.json, PLANS.json, splits_final.json,
            gt_segmentations and the preprocessed cases.
        plans: nnU-Net's plan.
        fingerprint: ``pooled`` or ``public``.
    """

    preprocessed: Path
    plans: dict[str, Any]
    cohort: Cohort
    splits: list[folds.Split]
    fingerprint: str


def prepare_dataset(
    dataset: str | int,
    configurations: Sequence[str],
    choices: PlanningChoices | None = None,
    *,
    processes: int | None = None,
) -> PlannedDataset:
    """Check, fingerprint, plan, split and preprocess a raw data set that has a cohort. Safe to call again: what is done
    and unchanged is kept, an interrupted call goes on where it stopped.

    Args:
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
    made = make_splits(cohort, n_folds=choices.n_folds, seed=choices.seed, small_sites=choices.small_sites)
    splits = chosen_splits(made, cohort, [preprocessed, raw_folder], replace_own=not dependent_runs.any_run(results))
    plans, merged = _plans(name, preprocessed, raw, cohort, choices, processes)
    for configuration in configurations:
        check_supported(plans, configuration)
    jobs = [Preprocessing(preprocessed, raw, plans, configuration) for configuration in configurations]
    _refuse_orphans(preprocessed, results, plans, cohort, jobs)
    atomic_files.write_json(preprocessed / "dataset.json", json.loads((raw_folder / "dataset.json").read_text(encoding="utf-8")))
    if merged is not None:
        atomic_files.write_json(preprocessed / FINGERPRINT_FILE_NAME, merged)
    atomic_files.write_json(preprocessed / f"{plans['plans_name']}.json", plans)
    cohort.save(preprocessed)
    save_splits(preprocessed, splits, made_here=splits is made)
    copy_labels(preprocessed, raw)
    for job in jobs:
        job.run(processes)
    return PlannedDataset(preprocessed, plans, cohort, splits, choices.fingerprint_kind)


def make_plans(
    dataset: str,
    raw: RawCases,
    merged: Mapping[str, Any],
    *,
    planner: str = "ExperimentPlanner",
    base_features: int | None = None,
    plans_name: str | None = None,
) -> dict[str, Any]:
    """The stock planner's plan from nnU-Net's fingerprint ``merged``, adapted (see adapted_plans); nothing is written."""
    return adapted_plans(stock.run_planner(planner, dataset, merged, raw.files, plans_name=plans_name), base_features)


def public_plans(path: Path, dataset: str, raw: RawCases) -> dict[str, Any]:
    """Plans of another, public data set for this one: of our patients only the file format is used.

    The plans get the name PLANSPublic and their own preprocessed data. Raises InputError when the file is not nnU-Net's
    plan, or was made for another number of channels.
    """
    try:
        plans: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        base, suffix = re.fullmatch(r"(.*?)((?:_f\d+)?)", plans["plans_name"]).groups()  # type: ignore[union-attr]
        base = base if base.endswith("Public") else f"{base}Public"
        channels = len(plans["foreground_intensity_properties_per_channel"])
        for configuration, settings in plans["configurations"].items():
            if "data_identifier" in settings:
                settings["data_identifier"] = f"{base}_{configuration}"
                channels = min(channels, len(settings["normalization_schemes"]))
    except OSError as error:
        raise InputError(f"--fingerprint public:{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--fingerprint public:{path} is not a plans file of nnU-Net ({error!r})") from None
    if plans.get("dataset_name") == dataset:
        raise InputError(f"--fingerprint public:{path} was made from {dataset} itself, so it is not public; use another data set's plan")
    if channels != len(raw.dataset_json["channel_names"]):
        raise InputError(
            f"--fingerprint public:{path} was made for {channels} channels, {dataset} has "
            f"{len(raw.dataset_json['channel_names'])}; use the plan of a data set with the same channels"
        )
    reader = stock.reader_name(raw.dataset_json, next(iter(raw.files.values()))["images"][0])
    return {**plans, "dataset_name": dataset, "plans_name": base + suffix, "image_reader_writer": reader}


def adapted_plans(plans: dict[str, Any], base_features: int | None) -> dict[str, Any]:
    """The plan with batch_dice off everywhere (it would mix patients) and, on request, another width of the network.

    Feature numbers of all stages, the cap included, are scaled alike; the name gets ``_fN``, the preprocessed data is
    shared with the unscaled plan.
    """
    plans = json.loads(json.dumps(plans))
    for settings in plans["configurations"].values():
        if "batch_dice" in settings:
            settings["batch_dice"] = False
        if base_features is not None and "architecture" in settings:
            arguments = settings["architecture"]["arch_kwargs"]
            first = arguments["features_per_stage"][0]
            arguments["features_per_stage"] = [
                max(1, round(number * base_features / first)) for number in arguments["features_per_stage"]
            ]
    if base_features is not None:
        plans["plans_name"] = re.sub(r"_f\d+$", "", plans["plans_name"]) + f"_f{base_features}"
    return dict(plans)


def _plans(
    name: str, preprocessed: Path, raw: RawCases, cohort: Cohort, choices: PlanningChoices, processes: int | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The plan, and the fingerprint that it was made from (None for public plans)."""
    if choices.fingerprint_kind == "public":
        given = public_plans(Path(choices.fingerprint.removeprefix(PUBLIC_PREFIX)), name, raw)
        plans = adapted_plans(given, choices.base_features)
        examined_fingerprint(preprocessed, raw, cohort, pooled=False, processes=processes)
        return plans, None
    merged = examined_fingerprint(preprocessed, raw, cohort, pooled=True, processes=processes)
    return make_plans(
        name, raw, merged, planner=choices.planner, base_features=choices.base_features, plans_name=choices.plans_name
    ), merged  # fmt: skip


def check_planning_choices(choices: PlanningChoices, configurations: Sequence[str]) -> None:
    """InputError for choices that are wrong whatever the data is."""
    if not configurations:
        raise InputError("no configuration given: add -c 2d or -c 3d_fullres")
    if choices.base_features is not None and choices.base_features < 1:
        raise InputError(f"--base-features {choices.base_features} must be 1 or more")
    if choices.fingerprint_kind not in ("pooled", "public"):
        raise InputError(f"--fingerprint {choices.fingerprint!r} is unknown; use pooled or public:PLANS.json")


def _cohort_of(raw_folder: Path, raw: RawCases) -> Cohort:
    cohort = cohorts.load(raw_folder)
    unknown, missing = sorted(set(cohort.cases) - set(raw.files)), sorted(set(raw.files) - set(cohort.cases))
    if unknown:
        raise InputError(f"{raw_folder / cohorts.FILE_NAME} names case {unknown[0]}, which the data set lacks: run `adpfl cohort` again")
    if missing:
        raise InputError(f"{raw_folder / cohorts.FILE_NAME} does not name case {missing[0]}: run `adpfl cohort` again")
    return cohort


def _refuse_orphans(
    preprocessed: Path, results: Path, plans: dict[str, Any], cohort: Cohort, jobs: Sequence[Preprocessing]
) -> None:  # fmt: skip
    """Nothing that a run depends on is overwritten: it could neither go on nor be reproduced."""
    path = preprocessed / cohorts.FILE_NAME
    if path.is_file() and cohorts.load(preprocessed).digest() != cohort.digest():
        if runs := dependent_runs.of_cohort(results):
            raise InputError(f"{path} would change, but {runs[0]} was trained with it: {_REMEDY}")
        if odometers := sorted(preprocessed.glob("sites/*/privacy_odometer.jsonl")):
            raise InputError(
                f"{path} would change, but {odometers[0]} counts what was spent on its sites and patients: restore the "
                "cohort, or convert the data under another data set number"
            )
    path = preprocessed / f"{plans['plans_name']}.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != plans:
        if runs := dependent_runs.of_plans(results, plans["plans_name"]):
            raise InputError(f"{path} would change, but {runs[0]} was trained with it: {_REMEDY}, or plan under another name")
        note(f"{path.name} is replaced: the images or the planner's settings changed")
    for job in jobs:
        if job.would_change() and (runs := dependent_runs.of_data(results, preprocessed, job.data_identifier)):
            raise InputError(f"{job.folder} would change, but {runs[0]} was trained on it: {_REMEDY}")
