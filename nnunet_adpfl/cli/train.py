"""``adpfl train`` and ``adpfl trainer-path``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command("trainer-path")(trainer_path)


def train(
    dataset: opt.Dataset,
    configuration: opt.Configuration,
    fold: opt.FoldName,
    trainer: opt.Trainer = "nnUNetTrainerADP",
    plans: opt.Plans = "nnUNetPlans",
    rounds: Annotated[int | None, typer.Option(help="R, rounds in all. Default: all steps of the privacy plan.")] = None,
    local_steps: opt.LocalSteps = None,
    strategy: opt.Strategy = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Go on from the newest checkpoint.")] = False,
    device: opt.Device = "",
    as_json: opt.Json = False,
) -> None:
    """Train one fold, site by site on this machine, averaging the sites' weights after every round.

    Example: adpfl train 4 3d_fullres 0 -p nnUNetPlans_f8
    """
    from nnunet_adpfl.federation.training import train as run_training
    from nnunet_adpfl.privacy.summary import summarise

    folder = run_training(
        dataset, configuration, fold, trainer=trainer, plans=plans, rounds=rounds, local_steps=local_steps, strategy=strategy,
        go_on=go_on, device=device or opt.default_device(),
    )  # fmt: skip
    if as_json:
        opt.print_json({"run": str(folder), "privacy": summarise(folder)})
    else:
        typer.echo(str(folder))


def trainer_path() -> None:
    """Print the value for nnU-Net's own variable nnUNet_extTrainer.

    Example: export nnUNet_extTrainer=$(adpfl trainer-path)
    """
    typer.echo(str(Path(__file__).resolve().parents[1] / "trainers" / "discovery"))
