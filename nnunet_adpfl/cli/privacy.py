"""``adpfl privacy``: what was spent, recomputed from the ledgers; ``adpfl export``: what may leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(privacy)
    app.command()(export)


def privacy(
    run: Annotated[str, typer.Argument(help="A run's fold folder, one ledger file, or a data set: number or name.")],
    as_json: opt.Json = False,
) -> None:
    """Say what epsilon was spent: by a run, recomputed from its ledgers, or by all runs ever made on a data set.

    Example: adpfl privacy $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerADP__nnUNetPlans_f8__3d_fullres/fold_0
    Example: adpfl privacy 4
    """
    from nnunet_adpfl import folders
    from nnunet_adpfl.privacy.summary import summarise

    is_run = Path(run).exists()
    if is_run:
        found = summarise(Path(run))
    else:
        from nnunet_adpfl.trainers.patient_totals import dataset_totals

        found = dataset_totals(folders.preprocessed_folder(run))
    if as_json:
        opt.print_json(found)
    elif is_run:
        tell(found)
    else:
        _tell_totals(found)


def _tell_totals(totals: dict[str, Any]) -> None:
    """The sum over all runs in words, and a table of them."""
    from rich.console import Console
    from rich.table import Table

    unit, count = totals["unit"], totals["runs"]
    if not count:
        typer.echo(f"{totals['dataset']}: nothing was trained on its {unit}s yet.")
        return
    if totals["epsilon"] is None:
        typer.echo(f"{totals['dataset']}: no bound for its {unit}s: a run without privacy is among the {count} made on them.")
    else:
        typer.echo(
            f"{totals['dataset']}: over all its runs ({count}), each {unit} has epsilon {totals['epsilon']:.4f} at delta "
            f"{totals['delta']:g} ({totals['accountant']}; guarantee: {totals['guarantee']})."
        )
    table = Table("site", "run", "steps", "units", "epsilon alone", "complete")
    for name, site in totals["sites"].items():
        for entry in site["runs"]:
            alone = "none" if entry["epsilon"] is None else f"{entry['epsilon']:.4f}"
            table.add_row(name, entry["run"], str(entry["steps"]), str(entry["units"]), alone, "yes" if entry["complete"] else "no")
    Console(width=140).print(table)


def tell(summary: dict[str, Any]) -> None:
    """The statement in words and a table of sites."""
    from rich.console import Console
    from rich.table import Table

    epsilon = summary["epsilon"]
    if epsilon is None:
        typer.echo("No privacy guarantee: training was not private (epsilon is not defined).")
    else:
        typer.echo(f"Each {summary['unit']} is protected with epsilon {epsilon:.4f} at delta {summary['delta']:g}.")
    typer.echo(f"Neighbouring data sets: one {summary['unit']}'s record replaced by nothing ({summary['adjacency']}).")
    typer.echo(f"Sampler: {summary['sampler']}. Noise: {summary['noise']}. Accountant: {summary['accountant']}.")
    typer.echo(f"Guarantee: {summary['guarantee']}. Not covered:")
    for item in summary["not_covered"]:
        typer.echo(f"  - {item}")
    if any(site["epsilon"] != site["epsilon_spent"] for site in summary["sites"].values()):
        typer.echo("It stopped early, repeated a round or chose its noise on the way: epsilon is the target, not what it spent.")
    table = Table("site", "steps", "epsilon", "spent (PLD)", "spent (PRV)", "target")
    for name, site in summary["sites"].items():
        figures = (site["epsilon"], site["epsilon_spent"], site["epsilon_prv"], site["target_epsilon"])
        table.add_row(name, str(site["steps"]), *("-" if value is None else f"{value:.4f}" for value in figures))
    Console(width=100).print(table)


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's fold folder.")],
    out: Annotated[Path, typer.Argument(help="New folder for the release.")],
    as_json: opt.Json = False,
) -> None:
    """Write a release: weights, plans, privacy statement and ledger, and a zip that stock nnU-Net installs.

    Example: adpfl export RUN release && nnUNetv2_install_pretrained_model_from_zip release/Dataset004_Hippocampus.zip
    """
    from nnunet_adpfl.trainers.release import export_run

    written = export_run(run, out)
    if as_json:
        opt.print_json(written)
    else:
        typer.echo(f"{written['zip']} (epsilon {written['epsilon']}, guarantee {written['guarantee']})")
