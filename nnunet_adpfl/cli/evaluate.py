"""``adpfl evaluate`` and ``adpfl report``: how good a trained model is, per site and class, and a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

Run = Annotated[Path, typer.Argument(help="A run's fold folder.")]


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.command()(report)


def evaluate(
    run: Run,
    tolerance_mm: opt.ToleranceMm = 1.0,
    device: opt.Device = "",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in the run folder.")] = "checkpoint_final.pth",
    mirroring: opt.Mirroring = True,
    matrix_with: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another run of the same data set and fold: print every model's score at every site. Repeatable."
        ),
    ] = None,
    matrix_metric: Annotated[str, typer.Option(help="Metric of the matrix: dice, hd95_mm, assd_mm or nsd.")] = "dice",
    as_json: opt.Json = False,
) -> None:
    """Predict the fold's held-out cases and score them per site and class: Dice, HD95, ASSD, NSD.

    Writes RUN/validation, RUN/metrics.csv and RUN/evaluation.json.

    Example: adpfl evaluate $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerADP__nnUNetPlans_f8__3d_fullres/fold_0
    """
    from nnunet_adpfl.evaluation import site_matrix
    from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
    from nnunet_adpfl.trainers.device import chosen_device

    chosen = str(chosen_device(device or opt.default_device()))
    runs = _named([run, *(matrix_with or [])])
    site_matrix.check_metric(matrix_metric)
    site_matrix.check_comparable(list(runs.values()))
    summaries = {
        name: evaluate_run(path, tolerance_mm=tolerance_mm, device=chosen, checkpoint=checkpoint, mirroring=mirroring)
        for name, path in runs.items()
    }
    summary = next(iter(summaries.values()))
    matrix = None
    if matrix_with:
        matrix = site_matrix.site_matrix_of_runs(runs, matrix_metric)
        site_matrix.write(matrix, run)
    if as_json:
        opt.print_json({**summary, **({"matrix": matrix} if matrix else {})})
        return
    tell(summary)
    if matrix:
        _tell_matrix(matrix)


def report(
    run: Run,
    for_release: Annotated[
        bool, typer.Option("--for-release", help="Leave out losses and case names, and private scores and pictures.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Write RUN/report.html: scores, pictures, learning curves, privacy spent; one file, no network needed.

    Example: adpfl report $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerADP__nnUNetPlans_f8__3d_fullres/fold_0
    """
    from nnunet_adpfl.evaluation.report import write_report

    path = write_report(run, for_release=for_release)
    if as_json:
        opt.print_json({"report": str(path)})
    else:
        typer.echo(str(path))


def _named(runs: list[Path]) -> dict[str, Path]:
    """Row names of the matrix: TRAINER__PLANS__CONFIG/fold_K, longer where that is not unique."""
    paths = [path.resolve() for path in runs]
    if len(set(paths)) < len(paths):
        raise InputError("--matrix-with names a run twice; name each run once")
    for parts in range(2, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, runs, strict=True))


def tell(summary: dict[str, Any]) -> None:
    """Table of sites and classes."""
    from rich.console import Console
    from rich.table import Table

    metrics = {
        "dice": "Dice",
        "hd95_mm": "HD95 (mm)",
        "assd_mm": "ASSD (mm)",
        "nsd": f"NSD ({summary['tolerance_mm']} mm)",
    }
    table = Table("", "cases", *metrics.values())
    rows = [*((f"site {name}", values) for name, values in summary["sites"].items())]
    rows += [(f"class {name}", {**values, "cases": summary["cases"]}) for name, values in summary["classes"].items()]
    for name, values in [*rows, ("mean", {**summary["mean"], "cases": summary["cases"]})]:
        table.add_row(name, str(values["cases"]), *(f"{values[metric]:.4f}" for metric in metrics))
    Console(width=100).print(table)


def _tell_matrix(matrix: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(f"{matrix['metric']} of model", *matrix["sites"], "mean")
    for name, row in matrix["models"].items():
        figures = [*(row["sites"][site] for site in matrix["sites"]), row["mean"]]
        table.add_row(name, *(f"{value:.4f}" for value in figures))
    Console(width=max(100, 40 + 12 * len(matrix["sites"]))).print(table)
