"""``adpfl demo``: the whole pipeline on a cohort that it makes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    folder: Annotated[Path, typer.Argument(help="New folder for data, runs and release.")] = Path("adpfl_demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier demo.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of cohort, splits and initial weights; noise is always new.")] = 0,
    device: opt.Device = "",
    as_json: opt.Json = False,
) -> None:
    """Make a skin cohort of 240 lesions at 4 sites, train without privacy, with DP and with adaptive DP, and compare.

    Takes less than eight minutes on two cores. nnU-Net's own folders are not touched.

    Example: adpfl demo my_demo
    """
    from nnunet_adpfl.experiments.demo import DemoSettings
    from nnunet_adpfl.experiments.demo import demo as run_demo

    settings = DemoSettings(seed=seed, device=device or opt.default_device())
    found = run_demo(folder, settings, overwrite=overwrite)
    if as_json:
        opt.print_json(found)
    else:
        _tell(found, folder)


def _tell(found: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    methods = found["methods"]
    sites = list(next(iter(methods.values()))["dice_of_sites"])
    table = Table("Dice on held-out lesions", "all", *sites, "epsilon")
    table.add_row("best constant mask", f"{found['constant_mask_dice']:.3f}", *["" for _ in sites], "")
    table.add_row("initial weights", f"{found['initial_weights_dice']:.3f}", *["" for _ in sites], "")
    for name, figures in methods.items():
        epsilon = "none" if figures["epsilon"] is None else f"{figures['epsilon']:.2f}"
        values = [f"{figures['dice_of_sites'][site]:.3f}" for site in sites]
        table.add_row(name, f"{figures['dice']:.3f}", *values, epsilon)
    Console(width=110).print(table)
    typer.echo(f"report:  {methods['nnUNetTrainerADP']['report']}")
    typer.echo(f"release: {found['release']['zip']}")
    typer.echo(f"figures: {folder / 'demo.json'}   ({found['seconds']:.0f} s)")
