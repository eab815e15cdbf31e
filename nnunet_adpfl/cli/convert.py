"""``adpfl convert``: data sets into nnU-Net's form, and predictions back into the challenge's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

if TYPE_CHECKING:
    from nnunet_adpfl.dataset_conversion.raw_dataset import WrittenDataset

SETS = "ham10000, isic2018, kits19, kits23 (and kits21), brats2020, brats2021, brats2023, brats2024, fets2022, msd"


def register(app: typer.Typer) -> None:
    app.command()(convert)


def convert(
    data_set: Annotated[str, typer.Argument(metavar="SET", help=f"Kind of data set: {SETS}.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the data set as unpacked; with --back: of the predictions.")],
    target: Annotated[
        str, typer.Argument(metavar="DATASET_ID", help="Number it gets in nnU-Net, 1 to 999; with --back: the folder to write.")
    ],
    sites: Annotated[
        Path | None,
        typer.Option(help="Table (CSV or .xlsx) with the columns case, site and, where known, patient; or the set's published one."),
    ] = None,
    drop_unassigned: Annotated[bool, typer.Option("--drop-unassigned", help="Leave out cases that have no site.")] = False,
    unassigned_site: Annotated[str | None, typer.Option(metavar="SITE", help="Or put them at a site of this name.")] = None,
    smallest_site: Annotated[int, typer.Option(help="Sites with fewer patients are pooled as 'other'.")] = 1,
    name: Annotated[str | None, typer.Option(help="Name it gets in nnU-Net; default: the set's own.")] = None,
    plain_labels: Annotated[
        bool, typer.Option("--plain-labels", help="The set's classes, instead of the regions that the challenge evaluates.")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help="Link files that need no change (NIfTI) instead of copying them.")] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out cases that lack a file or are damaged, and say which.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of this number and name.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Predictions in SRC -> labels and names of the challenge.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Convert a data set to nnU-Net's raw form, with cohort.json: the patient or lesion and the site of every case.

    The data set appears in nnUNet_raw as a whole or not at all; a second call that finds it complete does nothing; a
    call that was killed is taken up where it stopped.

    Example: adpfl convert ham10000 HAM10000 120

    Example: adpfl convert kits23 kits23 220 --sites kits19_sites.csv --drop-unassigned --smallest-site 10 --link

    Example: adpfl convert brats2021 predictions for_the_challenge --back
    """
    from nnunet_adpfl.dataset_conversion import converters, labels_back
    from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
    from nnunet_adpfl.dataset_conversion.source_set import Options

    if back:
        number = labels_back.convert_back(data_set, source, Path(target))
        if as_json:
            opt.print_json({"folder": target, "predictions": number})
        else:
            typer.echo(f"{target}: {number} predictions with the labels of {data_set}")
        return
    choice = SitesChoice(sites, drop_unassigned, unassigned_site, smallest_site)
    written = converters.convert(
        data_set, source, _number(target), sites=choice, name=name, overwrite=overwrite, skip_broken=skip_broken,
        options=Options(link, plain_labels),
    )  # fmt: skip
    _tell_converted(written, as_json)


def _number(text: str) -> int:
    if not text.lstrip("-").isdecimal():
        raise InputError(f"DATASET_ID {text!r} is no number: give one from 1 to 999 (or --back, to convert predictions)")
    return int(text)


def _tell_converted(written: WrittenDataset, as_json: bool) -> None:
    cohort = written.cohort
    cases = Counter(entry.site for entry in cohort.cases.values()) if cohort is not None else Counter[str]()
    found = (
        {site: {"units": len(cohort.units(site)), "cases": cases[site]} for site in cohort.sites}
        if cohort is not None
        else {}
    )
    unit, units = (cohort.unit_kind, len(cohort.units())) if cohort is not None else (None, None)
    if as_json:
        head = {
            "folder": str(written.folder),
            "dataset": written.number,
            "cases": written.cases,
            "written": written.written,
            "left_out": dict(written.left_out),
        }
        opt.print_json({**head, "unit": unit, "units": units, "sites": found})
        return
    already = "" if written.written else " (complete already, made from the same files: nothing to do)"
    if cohort is None:
        typer.echo(
            f"{written.folder}: {written.cases} cases{already}; sites and patients: adpfl cohort {written.number} --help"
        )
        return
    typer.echo(f"{written.folder}: {written.cases} cases, {units} {unit}s, {len(found)} sites{already}")
    for site, numbers in found.items():
        typer.echo(f"  {site}: {numbers['units']} {unit}s, {numbers['cases']} cases")
