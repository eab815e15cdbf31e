"""``adpfl convert`` and ``adpfl synth``: data sets into nnU-Net's form, and made-up ones to try everything with."""

from __future__ import annotations

import re
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
# Set -> module with a function `generate`, and what --cases counts.
GENERATORS: Mapping[str, tuple[str, str]] = {
    "ham10000": ("nnunet_adpfl.dataset_conversion.synthetic.ham10000", "lesions"),
}


def register(app: typer.Typer) -> None:
    app.command()(convert)
    app.command()(synth)


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


def synth(
    data_set: Annotated[str, typer.Argument(metavar="SET", help=f"Data set to imitate: {', '.join(GENERATORS)}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist or be empty.")],
    cases: Annotated[int, typer.Option(help="How many lesions (ham10000); a lesion has one to six images.")],
    sites: Annotated[int, typer.Option(help="How many sites; the first four are those of HAM10000.")] = 4,
    heterogeneity: Annotated[float, typer.Option(help="0: all sites alike, 1: as different as can be.")] = 0.5,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    size: Annotated[str, typer.Option(metavar="HxW", help="Rows and columns; HAM10000 itself has 450x600.")] = "96x128",
    as_json: opt.Json = False,
) -> None:
    """Write a made-up cohort in the folder layout of a real data set, to convert and train on; no patient data.

    Example: adpfl synth ham10000 synthetic_ham --cases 200 --heterogeneity 0.7

    Then: adpfl convert ham10000 synthetic_ham 120 --name SyntheticHAM
    """
    module, counted = _known(GENERATORS, data_set, "synth")
    made = import_module(module).generate(
        out, **{counted: cases}, sites=sites, heterogeneity=heterogeneity, seed=seed, size=_size(size)
    )
    units, images = getattr(made, counted), made.images
    if as_json:
        found = {site: {counted: number, "images": images[site]} for site, number in units.items()}
        opt.print_json(
            {"folder": str(made.folder), counted: sum(units.values()), "images": sum(images.values()), "sites": found}
        )
        return
    typer.echo(f"{made.folder}: {sum(units.values())} {counted}, {sum(images.values())} images, {len(units)} sites")
    for site, number in units.items():
        typer.echo(f"  {site}: {number} {counted}, {images[site]} images")


def _known(table: Mapping[str, Any], data_set: str, command: str) -> Any:
    if data_set not in table:
        raise InputError(f"{command}: data set {data_set!r} is unknown; use one of {', '.join(table)}")
    return table[data_set]


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if match is None:
        raise InputError(f"--size {text!r}: write rows x columns, for example 96x128")
    return int(match.group(1)), int(match.group(2))


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
