"""Puts every unit of a data set at one site, by the table that knows the sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl import progress
from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.dataset_conversion.sites_table import SHOWN, SiteRow, read_sites_table
from nnunet_adpfl.errors import InputError

ONE_SITE = "all"
POOLED = "other"


@dataclass(frozen=True)
class SitesChoice:
    """What the user says about sites.

    Attributes:
        table: file that knows the sites; None: the data set's own, where it has one.
        drop_unassigned: leave out cases without a site.
        unassigned_site: or give them all to a site of this name.
        smallest_site: sites with fewer units are pooled as ``other``.
    """

    table: Path | None = None
    drop_unassigned: bool = False
    unassigned_site: str | None = None
    smallest_site: int = 1

    def __post_init__(self) -> None:
        if self.drop_unassigned and self.unassigned_site is not None:
            raise InputError("give --drop-unassigned or --unassigned-site, not both")
        if self.smallest_site < 1:
            raise InputError(f"--smallest-site {self.smallest_site}: give 1 or more")

    def refuse_without_table(self) -> None:
        if self.drop_unassigned or self.unassigned_site is not None or self.smallest_site > 1:
            raise InputError("--drop-unassigned, --unassigned-site and --smallest-site need to know the sites: give --sites TABLE")


def assigned(
    unit_of: Mapping[str, str],
    unit_kind: str,
    rows: Sequence[SiteRow],
    choice: SitesChoice,
    origin: Path | str,
    *,
    key: Callable[[str], str] = str.casefold,
    majority: bool = False,
) -> Cohort:
    """The cohort of those cases that have a site.

    Args:
        unit_of: case -> unit, as far as the data set itself tells.
        rows: of the table; a column of patients makes the patient the unit, who may have several of the set's own units.
        origin: the table's file, for messages.
        key: what a case and a row have in common where names differ between years of a challenge.
        majority: a unit that the table has at two sites goes whole to the one of most of its cases; else it is refused.

    Raises InputError for cases without a site (unless ``choice`` says what to do), repeated rows that contradict each
    other, units at two sites, and a patient column that splits a unit.
    """
    row_of = _rows_by_key(rows, key, origin)
    if not row_of.keys() & {key(case) for case in unit_of}:
        ours, theirs = _some(sorted(unit_of)), _some([row.case for row in rows])
        raise InputError(f"{origin} names none of the cases (they are {ours}; it has {theirs}): correct the names")
    found = {case: row_of[key(case)] for case in unit_of if key(case) in row_of}
    unused = len(row_of.keys() - {key(case) for case in unit_of})
    if unused:
        progress.note(f"{unused} rows of {Path(origin).name} are about cases that are not there")
    if choice.drop_unassigned:
        unit_of = _with_site(unit_of, unit_kind, {unit_of[case] for case in found})
    units, unit_kind = _with_patients(unit_of, unit_kind, found, origin)
    site_of = _sites_of_units(units, unit_kind, found, origin, majority)
    site_of.update(_unassigned(units, unit_kind, site_of, choice, origin))
    site_of = _pooled(site_of, unit_kind, choice.smallest_site)
    return Cohort(unit_kind, {case: CohortEntry(unit, site_of[unit]) for case, unit in units.items() if unit in site_of})


def by_table(unit_of: Mapping[str, str], unit_kind: str, choice: SitesChoice) -> Cohort:
    """Sites of the user's table; without one, all units at one site."""
    if choice.table is None:
        return at_one_site(unit_of, unit_kind, choice)
    return assigned(unit_of, unit_kind, read_sites_table(choice.table), choice, choice.table)


def at_one_site(unit_of: Mapping[str, str], unit_kind: str, choice: SitesChoice) -> Cohort:
    """All units at the site ``all``: the data set's units are known, its sites are not.

    Raises InputError for choices that need a table.
    """
    choice.refuse_without_table()
    progress.note(
        f"no sites are known: all {unit_kind}s are put at one site; give --sites TABLE, or deal them out with "
        "`adpfl cohort DATASET --simulate-sites N --overwrite`"
    )
    return Cohort(unit_kind, {case: CohortEntry(unit, ONE_SITE) for case, unit in unit_of.items()})


def _rows_by_key(rows: Sequence[SiteRow], key: Callable[[str], str], origin: Path | str) -> dict[str, SiteRow]:
    row_of: dict[str, SiteRow] = {}
    for row in rows:
        earlier = row_of.setdefault(key(row.case), row)
        if (earlier.site, earlier.patient) != (row.site, row.patient):
            raise InputError(f"{origin} lists {row.case} twice, differently ({earlier.site} and {row.site}): keep one row")
    return row_of


def _with_patients(
    unit_of: Mapping[str, str], unit_kind: str, found: Mapping[str, SiteRow], origin: Path | str
) -> tuple[dict[str, str], str]:
    """Units by the table's patient column; a unit of the data set itself must not be split by it."""
    patients: dict[str, str] = {}
    for case, row in found.items():
        if row.patient is not None and patients.setdefault(unit_of[case], row.patient) != row.patient:
            raise InputError(
                f"{origin} gives {unit_kind} {unit_of[case]} to two patients ({patients[unit_of[case]]} and {row.patient}): "
                f"give each {unit_kind} to one patient"
            )
    units = {case: patients.get(unit, unit) for case, unit in unit_of.items()}
    # A promise to patients needs the patient of every case; else it is the weaker one that holds for all.
    all_known = all(unit in patients for unit in unit_of.values())
    kind = next((row.kind for row in found.values()), unit_kind)
    return units, kind if patients and all_known and unit_kind != "patient" else unit_kind


def _with_site(unit_of: Mapping[str, str], unit_kind: str, units: Collection[str]) -> dict[str, str]:
    without = sorted({unit for unit in unit_of.values() if unit not in units})
    if without:
        progress.note(f"{len(without)} {unit_kind}s without a site are left out ({_some(without)})")
    return {case: unit for case, unit in unit_of.items() if unit in units}


def _sites_of_units(
    units: Mapping[str, str], unit_kind: str, found: Mapping[str, SiteRow], origin: Path | str, majority: bool
) -> dict[str, str]:
    votes: dict[str, list[str]] = {}
    for case, row in found.items():
        votes.setdefault(units[case], []).append(row.site)
    shared = sorted(unit for unit, sites in votes.items() if len(set(sites)) > 1)
    if shared and not majority:
        sites = " and ".join(sorted(set(votes[shared[0]])))
        raise InputError(f"{origin} has {unit_kind} {shared[0]} at two sites ({sites}): give each {unit_kind} to one site")
    if shared:
        progress.note(
            f"{len(shared)} {unit_kind}s have images from two sites ({_some(shared)}): each goes whole to the site of most of "
            "its images, the first where they are equal"
        )
    return {unit: Counter(sites).most_common(1)[0][0] for unit, sites in votes.items()}


def _unassigned(
    units: Mapping[str, str], unit_kind: str, site_of: Mapping[str, str], choice: SitesChoice, origin: Path | str
) -> dict[str, str]:
    """Sites of those that the table does not know."""
    cases = [case for case, unit in units.items() if unit not in site_of]
    without = {units[case] for case in cases}
    if not without:
        return {}
    if choice.unassigned_site is not None:
        progress.note(f"{len(without)} {unit_kind}s without a site go to {choice.unassigned_site} ({_some(sorted(without))})")
        return dict.fromkeys(without, choice.unassigned_site)
    raise InputError(
        f"{origin} lacks cases of the data set ({len(cases)}: {_some(sorted(cases))}): add a row for each, or give "
        "--drop-unassigned or --unassigned-site NAME"
    )


def _pooled(site_of: Mapping[str, str], unit_kind: str, smallest: int) -> dict[str, str]:
    numbers = Counter(site_of.values())
    small = sorted(site for site, number in numbers.items() if number < smallest)
    if small:
        progress.note(f"{len(small)} sites with fewer than {smallest} {unit_kind}s are pooled as {POOLED!r} ({_some(small)})")
    pooled = {unit: POOLED if site in small else site for unit, site in site_of.items()}
    left = Counter(pooled.values())[POOLED]
    if small and left < smallest:
        raise InputError(
            f"--smallest-site {smallest}: the sites with fewer {unit_kind}s have only {left} together; give a smaller number, or leave "
            "them out of the table and give --drop-unassigned"
        )
    return pooled


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
