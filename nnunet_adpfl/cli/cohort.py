"""``adpfl cohort``: which case is from which patient and site, from a table or simulated; and whether that is sound."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

if TYPE_CHECKING:
    from nnunet_adpfl.cohort import Cohort
    from nnunet_adpfl.federation.cohort_check import CohortFacts
    from nnunet_adpfl.federation.cohort_privacy import NoiseAtEpsilon
    from nnunet_adpfl.federation.raw_cases import RawCases


def register(app: typer.Typer) -> None:
    app.command()(cohort)


def cohort(
    dataset: opt.Dataset,
    sites: Annotated[Path | None, typer.Option(help="CSV table with the columns case, site and, where known, patient.")] = None,
    simulate_sites: Annotated[int | None, typer.Option(help="Number of sites to make up, for a data set without any.")] = None,
    skew: Annotated[str, typer.Option(help="How simulated sites differ: equal, quantity:A or dirichlet:A.")] = "equal",
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated sites.")] = 0,
    unit: Annotated[
        str | None,
        typer.Option(help="What the units are: patient, lesion or case. Default: as known, else patient (case without ids)."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at every image: duplicates, damage, how sites differ, what N means for privacy.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cohort.json that differs.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Write cohort.json of a raw data set: the patient and the site of every case.

    Patients are taken from the table, else from the cohort.json that is there, else every case is a unit of its own.

    Example: adpfl cohort 4 --sites sites.csv

    Example: adpfl cohort 4 --simulate-sites 3 --skew dirichlet:0.5 --seed 1

    --check alone writes nothing and prints what it finds, for the site's own eyes; it ends with 1 where there are problems.

    Example: adpfl cohort 4 --check
    """
    from nnunet_adpfl import cohort as cohorts
    from nnunet_adpfl import folders, progress
    from nnunet_adpfl.federation import raw_cases

    if check and sites is None and simulate_sites is None:
        _check(dataset, as_json)
        return
    if check:
        raise InputError("--check looks at the cohort that is there: write it first, then give --check alone")
    if (sites is None) == (simulate_sites is None):
        raise InputError("give either --sites FILE.csv or --simulate-sites N, or --check")
    if unit is not None and unit not in cohorts.UNIT_KINDS:
        raise InputError(f"--unit {unit!r} is unknown; use one of {', '.join(cohorts.UNIT_KINDS)}")
    folder = folders.raw_folder(dataset)
    raw = raw_cases.load(folder)
    old = _existing(folder, overwrite)
    if sites is not None:
        new = _from_table(sites, raw, old, unit)
    else:
        new = _simulated(simulate_sites or 0, skew, seed, raw, old, unit)
    if old is not None and old.digest() != new.digest() and not overwrite:
        raise InputError(f"{folder / cohorts.FILE_NAME} exists and differs: give --overwrite to replace it")
    if new.unit_kind == "case" and unit is None:
        progress.note("no patients are known: every case is a unit of its own (--unit patient if each patient has one case)")
    path = new.save(folder)
    _tell(path, new, as_json)


def _check(dataset: str, as_json: bool) -> None:
    from nnunet_adpfl import cohort as cohorts
    from nnunet_adpfl import folders
    from nnunet_adpfl.federation import cohort_check, cohort_privacy, raw_cases

    raw_folder = folders.raw_folder(dataset)
    entries, raw = cohorts.load(raw_folder), raw_cases.load(raw_folder)
    places = [folders.preprocessed_folder(dataset), raw_folder] if "nnUNet_preprocessed" in os.environ else [raw_folder]
    found = cohort_check.check(raw, entries, places)
    delta, noise = cohort_privacy.noise_at_epsilons(entries)
    if as_json:
        privacy = {"delta": delta, "at_epsilon": [level.to_json() for level in noise]}
        opt.print_json({"unit": found.unit_kind, "problems": list(found.problems), "sites": dict(found.sites), "privacy": privacy})
    else:
        _tell_check(found, delta, noise)
    if found.problems:
        raise typer.Exit(1)


def _tell_check(found: CohortFacts, delta: float, noise: Sequence[NoiseAtEpsilon]) -> None:
    for problem in found.problems:
        typer.echo(f"PROBLEM: {problem}")
    for site, figures in found.sites.items():
        most = figures["most_cases_of_a_unit"]
        typer.echo(f"{site}: {figures['units']} {found.unit_kind}s, {figures['cases']} cases, at most {most} of one")
        for name in ("shape", "spacing_mm"):
            if name in figures:
                spread = figures[name]
                typer.echo(f"  {name}: median {_sizes(spread['median'])}, from {_sizes(spread['lowest'])} to {_sizes(spread['highest'])}")
        for channel, values in figures.get("intensities", {}).items():
            typer.echo(f"  {channel}: mean {values['mean']:g}, standard deviation {values['standard_deviation']:g}")
        labels = ", ".join(f"{label} in {number}" for label, number in figures.get("cases_with_label", {}).items())
        typer.echo(f"  foreground {figures.get('foreground_share', 0):.2%}; labels: {labels or 'none'}")
    typer.echo(f"privacy (200 steps at sampling rate 0.25, delta {delta:g}): noise on a step's average gradient, in clip norms")
    for level in noise:
        sites = ", ".join(f"{site} {value:.3g}" for site, value in level.sites.items())
        typer.echo(f"  epsilon {level.epsilon:g}: {level.federation:.3g} over all sites ({sites})")
    if not found.problems:
        typer.echo("no problem found")


def _sizes(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)


def _existing(folder: Path, overwrite: bool) -> Cohort | None:
    """The cohort that is there; without one, units that the conversion knew must not be lost by writing another."""
    from nnunet_adpfl import cohort as cohorts
    from nnunet_adpfl.dataset_conversion import raw_dataset

    try:
        if (folder / cohorts.FILE_NAME).is_file():
            return cohorts.load(folder)
        problem = f"{folder / cohorts.FILE_NAME} is missing"
    except InputError as error:
        if not overwrite:
            raise InputError(f"{error} --overwrite") from None
        problem = f"{folder / cohorts.FILE_NAME} is damaged"
    if raw_dataset.knows_units(folder):
        raise InputError(
            f"{problem}, and it knew which images are of one patient or lesion: run `adpfl convert ... --overwrite` again first"
        )
    return None


def _known_units(raw: RawCases, old: Cohort | None) -> tuple[dict[str, str], str]:
    """Case -> unit, as far as is known, and what a unit is."""
    if old is None:
        return {case: case for case in raw.files}, "case"
    unknown = sorted(set(raw.files) ^ set(old.cases))
    if unknown:
        raise InputError(f"cohort.json does not have the cases of the data set ({unknown[0]} ...): move it away, or convert again")
    return {case: old.cases[case].unit for case in raw.files}, old.unit_kind


def _named(cohort: Cohort, unit: str | None) -> Cohort:
    """The cohort with its units called ``unit``: a user may know that every case is another patient, and nothing else."""
    from dataclasses import replace

    if unit in (None, cohort.unit_kind):
        return cohort
    if cohort.unit_kind != "case":
        raise InputError(
            f"--unit {unit}: the units of this cohort are {cohort.unit_kind}s; leave it out, or give a table with a column of patients"
        )
    return replace(cohort, unit_kind=unit)


def _from_table(table: Path, raw: RawCases, old: Cohort | None, unit: str | None) -> Cohort:
    from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned
    from nnunet_adpfl.dataset_conversion.sites_table import check_known, read_sites_table

    rows = read_sites_table(table)
    check_known(rows, raw.files, table)
    unit_of, kind = _known_units(raw, old)
    return _named(assigned(unit_of, kind, rows, SitesChoice(), table), unit)


def _simulated(number: int, skew: str, seed: int, raw: RawCases, old: Cohort | None, unit: str | None) -> Cohort:
    from nnunet_adpfl.cohort import Cohort, CohortEntry
    from nnunet_adpfl.federation import partition

    parsed = partition.parse_skew(skew)
    unit_of, kind = _known_units(raw, old)
    foreground = _foreground(raw, unit_of) if parsed.needs_foreground else None
    site_of = partition.simulate_sites(sorted(set(unit_of.values())), number, parsed, seed, foreground)
    return _named(Cohort(kind, {case: CohortEntry(name, site_of[name]) for case, name in unit_of.items()}), unit)


def _foreground(raw: RawCases, unit_of: dict[str, str]) -> dict[str, float]:
    from nnunet_adpfl.federation.examination import foreground_shares

    shares = foreground_shares(raw)
    numbers = Counter(unit_of.values())
    sums = dict.fromkeys(numbers, 0.0)
    for case, share in shares.items():
        sums[unit_of[case]] += share
    return {name: total / numbers[name] for name, total in sums.items()}


def _tell(path: Path, new: Cohort, as_json: bool) -> None:
    cases = Counter(entry.site for entry in new.cases.values())
    found = {site: {"units": len(new.units(site)), "cases": cases[site]} for site in new.sites}
    if as_json:
        opt.print_json({"cohort": str(path), "unit": new.unit_kind, "sites": found})
        return
    typer.echo(f"{path}: {len(new.units())} {new.unit_kind}s, {len(new.cases)} cases, {len(found)} sites")
    for site, numbers in found.items():
        typer.echo(f"  {site}: {numbers['units']} {new.unit_kind}s, {numbers['cases']} cases")
