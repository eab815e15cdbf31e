"""``adpfl convert``: data sets into nnU-Net's form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

if TYPE_CHECKING:
    from nnunet_adpfl.dataset_conversion.raw_dataset import WrittenDataset

# Set -> module with a function `convert`, imported when its turn comes.
CONVERTERS: Mapping[str, str] = {
    "ham10000": "nnunet_adpfl.dataset_conversion.ham10000",
    "msd": "nnunet_adpfl.dataset_conversion.msd",
}

def register(app: typer.Typer) -> None:
    app.command()(convert)


def convert(
    data_set: Annotated[str, typer.Argument(metavar="SET", help=f"Kind of data set: {', '.join(CONVERTERS)}.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the data set as downloaded and unpacked.")],
    dataset_id: Annotated[int, typer.Argument(metavar="DATASET_ID", help="Number it gets in nnU-Net, 1 to 999.")],
    sites: Annotated[
        Path | None, typer.Option(help="CSV table with the columns case, site and, where known, patient.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name it gets in nnU-Net; default: the set's own.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of this number and name.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Convert a data set to nnU-Net's raw form, with cohort.json: the patient or lesion and the site of every case.

    The data set appears in nnUNet_raw as a whole or not at all; a second call that finds it complete does nothing.

    Example: adpfl convert msd Task04_Hippocampus 4 --sites sites.csv

    Example: adpfl convert ham10000 HAM10000 120
    """
    converter = import_module(_known(CONVERTERS, data_set, "convert"))
    written = converter.convert(source, dataset_id, sites=sites, name=name, overwrite=overwrite)
    _tell_converted(written, as_json)


def _known(table: Mapping[str, Any], data_set: str, command: str) -> Any:
    if data_set not in table:
        raise InputError(f"{command}: data set {data_set!r} is unknown; use one of {', '.join(table)}")
    return table[data_set]


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
