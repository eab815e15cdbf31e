"""``adpfl compare``: the methods table, on your data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    dataset: opt.Dataset,
    configuration: opt.Configuration,
    fold: opt.FoldName,
    methods: Annotated[
        str,
        typer.Option(
            help="Some of local, central, np-fl, dp-fl, stock-dp, adp-fl, paper, paper-dp, local-adp, central-adp; NAME@public (--init)."
        ),
    ] = "local,central,np-fl,dp-fl,adp-fl",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    init: Annotated[
        Path | None, typer.Option("--init", help="Public start (see adpfl pretrain): every method is run with and without it.")
    ] = None,
    tune_on: Annotated[
        str | None, typer.Option(help="Planned data set of other patients: each method's grid of settings is tried there first.")
    ] = None,
    tuning: Annotated[Path | None, typer.Option(help="tuning.json of an earlier comparison.")] = None,
    tuning_seeds: Annotated[int, typer.Option(help="Seeds of each setting that is tried.")] = 1,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help='Another method, for ablations: "auto-s=adp-fl:clipping.method=auto_s;FIELD=VALUE"; repeatable.'),
    ] = None,
    plans: opt.Plans = "nnUNetPlans",
    name: Annotated[str | None, typer.Option(help="Name of the comparison and of its folder.")] = None,
    device: opt.Device = "",
    jobs: Annotated[int, typer.Option(help="Runs side by side, each in a process of its own.")] = 1,
    curve_cases: Annotated[int, typer.Option(help="Held-out cases that are scored after every round; 0: none.")] = 12,
    mirroring: opt.Mirroring = False,
    as_json: opt.Json = False,
) -> None:
    """Compare methods on one fold: same splits, start, steps and patches, each method with its own tuned settings.

    Every private run spends on the same patients: the odometer adds them up (adpfl privacy DATASET).

    Example: adpfl compare 4 2d 0 -p nnUNetPlans_f8 --methods np-fl,dp-fl,adp-fl --seeds 10 --tune-on 5
    """
    from nnunet_adpfl.experiments.comparison import comparison, table_text

    names = [part.strip() for part in methods.split(",") if part.strip()]
    settings = comparison.CompareSettings(
        dataset, configuration, fold, plans, names, variants or (), seeds, init, tune_on, tuning, tuning_seeds, name,
        device or opt.default_device(), jobs, curve_cases, mirroring,
    )  # fmt: skip
    found = comparison.compare(settings)
    if as_json:
        opt.print_json(found)
        return
    typer.echo(table_text.markdown(found))
    typer.echo(f"runs, table and pictures: {found['folder']}")
