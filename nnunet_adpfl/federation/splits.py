"""Makes nnU-Net's splits: grouped by unit, so that no patient is on both sides, and stratified by site; or one fold for each site."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_adpfl import atomic_files, folds
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.folds import Split
from nnunet_adpfl.progress import note

N_FOLDS = 5
SPLIT_SEED = 12345  # nnU-Net's
SMALL_SITES = ("refuse", "other")
KINDS = ("patients", "sites")
_OWN = ".adpfl/splits_final.sha256"  # present and equal: the splits were made here and not edited


def make_splits(
    cohort: Cohort, *, n_folds: int = N_FOLDS, seed: int = SPLIT_SEED, small_sites: str = "refuse"
) -> list[Split]:
    """Deal each site's units to the folds in turn: every unit validates once, every fold holds its share of each site.

    The folds' numbers of units of one site differ by at most one, and so do their numbers of all units.

    Args:
        small_sites: what to do with sites that have fewer units than folds. ``refuse`` them, or pool them as ``other``:
            they then validate in some of the folds only, each fold getting its share of all of them together. This
            concerns the splits alone: such a site still trains as a site of its own, in every fold.

    Raises InputError naming a site that is too small, with its number of units.
    """
    if small_sites not in SMALL_SITES:
        raise InputError(f"--small-sites {small_sites!r} is unknown; use refuse or other")
    if n_folds < 2:
        raise InputError(f"{n_folds} folds cannot be made; use 2 or more")
    generator = np.random.default_rng(seed)
    fold_of_unit: dict[str, int] = {}
    for site in _large_sites_first(cohort, n_folds, small_sites):
        # Dealing goes on where the last site ended. A site of fewer units than folds never has two in one fold, so
        # that it always keeps a unit to train with.
        for unit in generator.permutation(cohort.units(site)):
            fold_of_unit[str(unit)] = len(fold_of_unit) % n_folds
    return [_split(cohort, fold_of_unit, fold) for fold in range(n_folds)]


def new_splits(cohort: Cohort, kind: str, *, n_folds: int, seed: int, small_sites: str) -> list[Split]:
    """Of ``patients`` (`make_splits`) or of ``sites`` (`leave_one_site_out`). InputError for another kind."""
    check_kind(kind)
    if kind == "sites":
        return leave_one_site_out(cohort)
    return make_splits(cohort, n_folds=n_folds, seed=seed, small_sites=small_sites)


def check_kind(kind: str | None) -> None:
    """InputError for a kind of folds that is neither known nor open."""
    if kind not in (None, *KINDS):
        raise InputError(f"--folds {kind!r} is unknown; use {' or '.join(KINDS)}")


def kind_of(folder: Path, cohort: Cohort) -> str:
    """Kind of the splits in a folder; ``patients`` where there are none, others, or those of another cohort."""
    if len(cohort.sites) < 2:
        return "patients"
    try:
        return "sites" if folds.load_splits(folder, cohort) == leave_one_site_out(cohort) else "patients"
    except InputError:
        return "patients"


def leave_one_site_out(cohort: Cohort) -> list[Split]:
    """Fold k trains on all sites but the k-th in alphabetical order, and validates on that one.

    Raises InputError for a cohort of one site.
    """
    if len(cohort.sites) < 2:
        raise InputError(f"--folds sites leaves out a site in turn, but the cohort has {cohort.sites[0]} alone: use --folds patients")
    return [
        {
            "train": [case for case, entry in cohort.cases.items() if entry.site != site],
            "val": [case for case, entry in cohort.cases.items() if entry.site == site],
        }
        for site in sorted(cohort.sites)
    ]


def chosen_splits(
    made: list[Split], cohort: Cohort, places: Sequence[Path], *, replace_own: bool, asked_for: bool = False
) -> list[Split]:  # fmt: skip
    """The splits to use: those found in the first of ``places`` that has any, as nnU-Net keeps them, else ``made``.

    Args:
        places: nnUNet_preprocessed/DATASET, and nnUNet_raw/DATASET, where a user may put splits of his own.
        replace_own: found splits that were made here, and not edited, give way to ``made``.
        asked_for: the user wants ``made`` and nothing else.

    Raises InputError for found splits that do not fit the cohort, or stand in the way of those asked for.
    """
    for folder in places:
        path = folder / folds.FILE_NAME
        if not path.is_file() or (replace_own and _is_own(folder)):
            continue
        found = folds.load_splits(folder, cohort)
        if {case for split in found for case in (*split["train"], *split["val"])} != set(cohort.cases):
            raise InputError(f"{path} does not cover the cases of the cohort: move it away to have new splits made")
        if found != made and asked_for:
            raise InputError(
                f"--folds sites: {path} has other splits, and runs were made with them, or they are your own: convert the data under "
                "another data set number"
            )
        if found != made:
            note(f"{path} is kept; move it away to have new splits made, grouped by unit and stratified by site")
        return found
    return made


def save_splits(preprocessed: Path, splits: Sequence[Split], *, made_here: bool) -> None:
    """Write splits_final.json, and whether it may be replaced when the cohort changes."""
    atomic_files.write_json(preprocessed / folds.FILE_NAME, list(splits))
    if made_here:
        atomic_files.write_text(preprocessed / _OWN, _digest(preprocessed))


def _is_own(folder: Path) -> bool:
    own = folder / _OWN
    return own.is_file() and own.read_bytes() == _digest(folder).encode()


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / folds.FILE_NAME).read_bytes()).hexdigest()


def _large_sites_first(cohort: Cohort, n_folds: int, small_sites: str) -> list[str]:
    numbers = {site: len(cohort.units(site)) for site in cohort.sites}
    kind = cohort.unit_kind
    for site, number in numbers.items():
        if number < 2:
            raise InputError(
                f"site {site} has {number} {kind}: it cannot both train and validate; merge it with another site or leave "
                "it out"
            )
        if number < n_folds and small_sites == "refuse":
            raise InputError(
                f"site {site} has {number} {kind}s, fewer than the {n_folds} folds: pool small sites with --small-sites "
                "other, merge it with another site, or leave it out"
            )
    if sum(numbers.values()) < n_folds:
        raise InputError(f"the cohort has {sum(numbers.values())} {kind}s, fewer than the {n_folds} folds: add {kind}s")
    return sorted(numbers, key=lambda site: (numbers[site] < n_folds, site))


def _split(cohort: Cohort, fold_of_unit: Mapping[str, int], fold: int) -> Split:
    held_out = {case: fold_of_unit[entry.unit] == fold for case, entry in cohort.cases.items()}
    return {
        "train": [case for case, validates in held_out.items() if not validates],
        "val": [case for case, validates in held_out.items() if validates],
    }
