"""``adpfl pretrain``: a public start, from images that a program draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(pretrain)


def pretrain(
    dataset: opt.Dataset,
    configuration: opt.Configuration,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint to write, NAME.pth; NAME.json beside it says how it was made.")],
    plans: opt.Plans = "nnUNetPlans",
    steps: Annotated[int, typer.Option(help="Steps of AdamW, each on one batch of new patches.")] = 600,
    batch_size: Annotated[int | None, typer.Option(help="Patches of a step. Default: the plan's, on a CPU at most 8, in 3D 2.")] = None,
    learning_rate: Annotated[float, typer.Option(help="The highest on the way.")] = 6e-3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights on the same machine.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that draw patches; 0: none beside this one. The result is the same.")] = 0,
    device: opt.Device = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Train the planned network on generated images: a start that no patient has a part in, for `adpfl plan --init`.

    Example: adpfl pretrain 4 3d_fullres start.pth -p nnUNetPlans_f8

    Then: adpfl plan 4 -c 3d_fullres --base-features 8 --init start.pth
    """
    from nnunet_adpfl.pretraining.pretraining import PretrainingSettings
    from nnunet_adpfl.pretraining.pretraining import pretrain as run_pretraining

    settings = PretrainingSettings(steps, seed, batch_size, learning_rate, workers, device or opt.default_device())
    made = run_pretraining(dataset, configuration, out, settings, plans=plans, overwrite=overwrite)
    if as_json:
        opt.print_json(made)
        return
    fresh = made["fresh_patches"]
    dice = "none with a label" if fresh["dice"] is None else f"{fresh['dice']:.3f}"
    typer.echo(f"{made['file']}: sha256 {made['sha256'][:12]}..., {steps} steps in {made['seconds']:.0f} s")
    typer.echo(f"  on {fresh['count']} generated patches that it has not seen: loss {fresh['loss']:.3f}, Dice {dice}")
    typer.echo(f"  adpfl plan {dataset} -c {configuration} --init {made['file']} ...")
