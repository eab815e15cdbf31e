"""Folds: which cases train and which validate, read from nnU-Net's ``splits_final.json`` and checked against the cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl import json_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError

FILE_NAME = "splits_final.json"
ALL = "all"
Split = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Fold:
    """Training and validation cases of one fold; the fold ``all`` has every case in both, as in nnU-Net."""

    name: str
    train: frozenset[str]
    val: frozenset[str]


def load_splits(preprocessed: Path, cohort: Cohort) -> list[Split]:
    """Read splits_final.json.

    Raises InputError when it is missing or damaged, names a case that the cohort does not know, or has a unit on both
    sides of a fold.
    """
    path = preprocessed / FILE_NAME
    try:
        splits = json_files.load(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `adpfl plan` for this data set") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): move it away and run `adpfl plan`") from None
    check_splits(splits, cohort, str(path))
    return list(splits)


def check_splits(splits: object, cohort: Cohort, origin: str) -> None:
    """InputError unless ``splits`` is a list of folds whose cases the cohort knows and whose units are on one side."""
    if not isinstance(splits, list) or not all(isinstance(s, dict) and {"train", "val"} <= set(s) for s in splits):
        raise InputError(f"{origin} is not a list of folds with train and val: move it away and run `adpfl plan`")
    for split in splits:
        if not all(isinstance(split[side], list) and all(isinstance(case, str) for case in split[side]) for side in ("train", "val")):
            raise InputError(f"{origin}: train and val of a fold must be lists of case names: move it away and run `adpfl plan`")
    for number, split in enumerate(splits):
        unknown = sorted((set(split["train"]) | set(split["val"])) - set(cohort.cases))
        if unknown:
            raise InputError(f"{origin}: fold {number} names case {unknown[0]}, which the cohort does not know")
        shared = {cohort.cases[case].unit for case in split["train"]} & {cohort.cases[case].unit for case in split["val"]}
        if shared:
            raise InputError(
                f"{origin}: {cohort.unit_kind} {sorted(shared)[0]} is in both training and validation of fold {number}; "
                "group the splits by unit"
            )


def make_fold(splits: Sequence[Split], cohort: Cohort, fold: str | int) -> Fold:
    """One fold of checked splits; InputError for a fold beyond them."""
    if str(fold) == ALL:
        return Fold(ALL, frozenset(cohort.cases), frozenset(cohort.cases))
    if not str(fold).isdigit() or int(fold) >= len(splits):
        raise InputError(f"fold {fold} is beyond the {len(splits)} splits (0 to {len(splits) - 1}, or all)")
    split = splits[int(fold)]
    return Fold(str(int(fold)), frozenset(split["train"]), frozenset(split["val"]))


def left_out_sites(cohort: Cohort, fold: Fold) -> set[str]:
    """Sites that only validate in a fold, with all of their cases: leave-one-site-out. None where nobody trains."""
    only_validating = fold.val - fold.train if fold.train else frozenset()
    return set(cohort.sites) - {entry.site for case, entry in cohort.cases.items() if case not in only_validating}


def training_units(cohort: Cohort, fold: Fold) -> dict[str, int]:
    """Site -> number of its units that train in a fold; sites without any are left out."""
    counts = {site: len(cohort.cases_by_unit(site, set(fold.train))) for site in cohort.sites}
    return {site: number for site, number in counts.items() if number}
