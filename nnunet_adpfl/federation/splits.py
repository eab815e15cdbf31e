"""Makes nnU-Net's splits: grouped by unit, so that no patient is on both sides, and stratified by site."""

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


def chosen_splits(
    made: list[Split], cohort: Cohort, places: Sequence[Path], *, replace_own: bool
) -> list[Split]:  # fmt: skip
    """The splits to use: those found in the first of ``places`` that has any, as nnU-Net keeps them, else ``made``.

    Args:
        places: nnUNet_preprocessed/DATASET, and nnUNet_raw/DATASET, where a user may put splits of his own.
        replace_own: found splits that were made here, and not edited, give way to ``made``.

    Raises InputError for found splits that do not fit the cohort.
    """
    for folder in places:
        path = folder / folds.FILE_NAME
        if not path.is_file() or (replace_own and _is_own(folder)):
            continue
        found = folds.load_splits(folder, cohort)
        if {case for split in found for case in (*split["train"], *split["val"])} != set(cohort.cases):
            raise InputError(f"{path} does not cover the cases of the cohort: move it away to have new splits made")
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
