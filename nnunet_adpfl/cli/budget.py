"""``adpfl budget``: what a number of patients can learn at a given epsilon, before any data is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError


def register(app: typer.Typer) -> None:
    app.command()(budget)


def budget(
    patients: Annotated[list[int], typer.Option(help="Training patients of a site; repeat for several sites.")],
    sites: Annotated[int, typer.Option(help="Number of sites of this size, with a single --patients.")] = 1,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Target epsilon; the first is planned for, more are compared. Default 8.")
    ] = None,
    delta: opt.Delta = None,
    compute: opt.Compute = None,
    parameters: Annotated[
        list[int] | None, typer.Option(help="Trained parameters of a network; repeat for several.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the figure to this PNG or SVG file.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Noise and expected signal for a number of patients, epsilon and delta; no data is read.

    Example: adpfl budget --patients 48 --sites 4 --epsilon 8 --plot budget.png
    """
    from nnunet_adpfl.experiments import budget as experiment
    from nnunet_adpfl.experiments import budget_figure

    if sites < 1 or (sites > 1 and len(patients) > 1):
        raise InputError(f"--sites {sites} must be 1 or more, and goes with a single --patients: repeat --patients for sites that differ")
    if plot is not None:
        budget_figure.check_name(plot)
    epsilons = tuple(epsilon or (experiment.DEFAULT_EPSILON,))
    numbers = tuple(parameters or experiment.PARAMETERS)
    found = experiment.budget(experiment.Question(tuple(patients) * sites, epsilons, delta, compute, numbers))
    if plot is not None:
        budget_figure.write(found, plot)
    if as_json:
        opt.print_json(found)
    else:
        _tell(found)


def _tell(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=120)
    patients = " + ".join(map(str, found["units"]))
    typer.echo(f"{patients} training patients, epsilon {found['epsilon']:g}, delta {found['delta']:g}; by privacy loss distributions")
    console.print(_table("q", found["table"], lambda row: f"{row['sampling_rate']:g}"))
    typer.echo("* the planner's choice:")
    for name, choice in found["choices"].items():
        typer.echo(f"  {name} {choice['value']}: {choice['why']}")
    typer.echo("other epsilons at that choice:")
    console.print(_table("epsilon", found["epsilons"], lambda row: f"{row['epsilon']:g}"))
    typer.echo("A = q N sqrt(T) / z; signal to noise A / sqrt(d) says what to expect, not what will be (docs/planner.md)")


def _table(first: str, rows: list[dict[str, Any]], label: Any) -> Any:
    from rich.table import Table

    sizes = [_short(int(number)) for number in rows[0]["signal_to_noise"]]
    compared = "share_of_best" in rows[0]
    headings = [first, "steps", "z", "A", *(["of best"] if compared else []), *(f"d = {size}" for size in sizes), "patches"]
    table = Table(*headings)
    for row in rows:
        share = [f"{row['share_of_best']:.0%}"] if compared else []
        mark = "*" if row.get("chosen") else ""
        ratios = [f"{ratio:.2g}" for ratio in row["signal_to_noise"].values()]
        figures = [f"{row['noise_multiplier']:.3g}", f"{row['accumulated_signal']:.0f}", *share, *ratios]
        table.add_row(label(row) + mark, str(row["steps"]), *figures, f"{row['patches']:,}")
    return table


def _short(number: int) -> str:
    """1000000 -> 1M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)
