"""``adpfl synth``: made-up cohorts in the folder layout of real data sets, to try everything with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

# Set -> module with a function `generate`, imported when its turn comes.
GENERATORS: Mapping[str, str] = {
    "ham10000": "nnunet_adpfl.dataset_conversion.synthetic.ham10000",
    "kits23": "nnunet_adpfl.dataset_conversion.synthetic.kits23",
    "brats2024": "nnunet_adpfl.dataset_conversion.synthetic.brats2024",
}
TAKES_MASKS = ("kits23",)


def register(app: typer.Typer) -> None:
    app.command()(synth)


def synth(
    data_set: Annotated[str, typer.Argument(metavar="SET", help=f"Data set to imitate: {', '.join(GENERATORS)}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist or be empty.")],
    cases: Annotated[int, typer.Option(help="How many units: lesions (ham10000) or patients; a unit may have several images.")],
    sites: Annotated[int, typer.Option(help="How many sites; the first ones are those of the real set.")] = 4,
    heterogeneity: Annotated[float, typer.Option(help="0: all sites alike, 1: as different as can be.")] = 0.5,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="AxB[xC]", help="Pixels or voxels along each axis; default: small, quick to train on.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="kits23: draw over real KiTS segmentation files that you have.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write a made-up cohort in the folder layout of a real data set, to convert and train on; no patient data.

    Example: adpfl synth ham10000 synthetic_ham --cases 200 --heterogeneity 0.7

    Then: adpfl convert ham10000 synthetic_ham 120 --name SyntheticHAM
    """
    if data_set not in GENERATORS:
        raise InputError(f"synth: data set {data_set!r} is unknown; use one of {', '.join(GENERATORS)}")
    if masks is not None and data_set not in TAKES_MASKS:
        raise InputError(f"--masks is for {', '.join(TAKES_MASKS)} alone: leave it out for {data_set}")
    made = import_module(GENERATORS[data_set]).generate(
        out,
        units=cases,
        sites=sites,
        heterogeneity=heterogeneity,
        seed=seed,
        size=None if size is None else _size(size),
        **({} if masks is None else {"masks": masks}),
    )
    kind = f"{made.unit_kind}s"
    if as_json:
        found = {site: {kind: number, "images": made.images[site]} for site, number in made.units.items()}
        totals = {kind: sum(made.units.values()), "images": sum(made.images.values())}
        opt.print_json({"folder": str(made.folder), **totals, "sites": found})
        return
    images = sum(made.images.values())
    typer.echo(f"{made.folder}: {sum(made.units.values())} {kind}, {images} images, {len(made.units)} sites")
    for site, number in made.units.items():
        typer.echo(f"  {site}: {number} {kind}, {made.images[site]} images")


def _size(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}(x\d{1,5}){1,2}", text.strip().lower()):
        raise InputError(f"--size {text!r}: write the lengths of the axes, for example 96x128")
    return tuple(int(side) for side in text.strip().lower().split("x"))
