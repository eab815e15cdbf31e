"""``adpfl audit``: attack the shipped code, and bound epsilon from below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

if TYPE_CHECKING:
    from nnunet_adpfl.experiments.audit import AuditResult

DatasetOrNone = Annotated[str | None, typer.Argument(help="Number or name of a planned data set; none with --quick.")]
ConfigurationOrNone = Annotated[str | None, typer.Argument(help="nnU-Net configuration: 2d, 3d_fullres, ...")]
FoldOrNone = Annotated[str | None, typer.Argument(help="0 to 4, or all.")]


def register(app: typer.Typer) -> None:
    app.command()(audit)


def audit(
    dataset: DatasetOrNone = None,
    configuration: ConfigurationOrNone = None,
    fold: FoldOrNone = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small real networks and random patches; no data set.")] = False,
    trainer: opt.Trainer = "nnUNetTrainerADP",
    plans: opt.Plans = "nnUNetPlans",
    steps: Annotated[
        int | None, typer.Option(help="T, steps of training that are attacked and that the claim is for. Default 10.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="R, trainings with and trainings without the canary.")] = 200,
    units: Annotated[int, typer.Option(help="Real units that train beside the canary.")] = 4,
    releases: Annotated[
        int | None, typer.Option(help="Releases with and releases without the canary. Default 2000 z^2, 20000 at most.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="z. Default: 1 with --quick, else the privacy plan's.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Default: 1e-5 with --quick, else the privacy plan's.")] = None,
    membership: Annotated[
        list[Path] | None,
        typer.Option(help="A finished run to attack by its losses, a demonstration only; give it once for each run."),
    ] = None,
    device: opt.Device = "",
    plot: Annotated[Path | None, typer.Option(help="Write the figure to this PNG file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write audit.json and audit.png into this folder.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Attack the shipped mechanism and compare what an adversary can show with the claimed epsilon; 1 if it is violated.

    An audit can refute a claim, not prove it. Nothing is released, so no ledger or odometer is written. With a data set
    the audit computes patients' gradients: they cancel in its figures, but keep the result at the site. --membership is
    computed from patients and always for the site's own eyes.

    Example: adpfl audit --quick --json    adpfl audit 4 3d_fullres 0 -p nnUNetPlans_f8 --steps 10 --repeats 200
    """
    if quick == (dataset is not None) and not (membership and not quick):
        raise InputError("give either --quick or DATASET CONFIG FOLD (or --membership RUN alone)")
    if dataset is not None and (configuration is None or fold is None):
        raise InputError("DATASET needs CONFIG and FOLD beside it, for example: adpfl audit 4 3d_fullres 0")
    result: AuditResult | None = None
    if quick:
        result = _quick(noise_multiplier, delta, releases)
    elif dataset is not None:
        from nnunet_adpfl.experiments import audit_training

        choices = audit_training.Choices(
            trainer, plans, steps, repeats, units, noise_multiplier, releases, delta, device or opt.default_device()
        )
        result = audit_training.full(dataset, str(configuration), str(fold), choices)
    report: dict[str, Any] = dict(result.report) if result else {}
    if membership:
        from nnunet_adpfl.experiments import membership as demonstration

        report["membership"] = demonstration.demonstrate(membership)
    _write(result, report, plot, out)
    if as_json:
        opt.print_json(report)
    else:
        tell(report)
    if result is not None and not result.consistent:
        raise typer.Exit(1)


def _quick(noise_multiplier: float | None, delta: float | None, releases: int | None) -> AuditResult:
    from nnunet_adpfl.experiments import audit as experiment

    z = 1.0 if noise_multiplier is None else noise_multiplier
    return experiment.quick(noise_multiplier=z, delta=experiment.DELTA if delta is None else delta, releases=releases)


def _write(result: AuditResult | None, report: dict[str, Any], plot: Path | None, out: Path | None) -> None:
    from nnunet_adpfl import atomic_files

    if out is not None:
        atomic_files.write_json(out / "audit.json", report)
    pictures = [path for path in (plot, out and out / "audit.png") if path]
    if result is None or not pictures:
        return
    from nnunet_adpfl.experiments import audit_figure

    for path in pictures:
        audit_figure.write(result, path)


def tell(report: dict[str, Any]) -> None:
    """The audit in words."""
    if "verdict" in report:
        _tell_audit(report)
    if "membership" in report:
        _tell_membership(report["membership"])


def _tell_audit(report: dict[str, Any]) -> None:
    from nnunet_adpfl.experiments.audit_figure import headline

    typer.echo(headline(report))
    for sentence in report["violations"]:
        typer.echo(f"violated: {sentence}")
    for part in [*report.get("networks", []), *(report[name] for name in ("release", "training") if name in report)]:
        title = f"{part['dims']}D network" if "dims" in part else f"{part['steps']} steps, q = {part['sampling_rate']:g}"
        if "per_tensor" in part:
            ratios = [row["noise_ratio"] for row in part["per_tensor"]]
            typer.echo(
                f"{title}: sensitivity {part['sensitivity']:.6f} of 1 over {len(ratios)} tensors and counts, noise "
                f"{min(ratios):.4f} to {max(ratios):.4f} of the claimed, mu >= {part['mu_lower_bound']:.3f} (claimed "
                f"{part['mu_claimed']:.3f}, estimated {part['mu_estimate']['value']:.3f})"
            )
        else:
            typer.echo(f"{title}: epsilon >= {part['epsilon_lower_bound']:.3g}, claimed {part['epsilon_claimed']:.3g}")
        noticed = "would" if part["power"]["would_detect_half_the_noise"] else "would NOT (take more repeats)"
        typer.echo(f"  half the noise {noticed} have been noticed")
    if "note" in report:
        typer.echo(report["note"])
    typer.echo("An audit can refute a claim, not prove it.")


def _tell_membership(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    typer.echo(f"Membership inference by loss: {found['note']}.")
    table = Table("run", "DP", "epsilon", "AUC (95 %)", "members found at 10 % false alarms")
    for run in found["runs"]:
        low, high = run["auc_ci95"]
        epsilon = "-" if run["epsilon"] is None else f"{run['epsilon']:.3g}"
        share = run["true_positive_rate_at_10_percent_false_positives"]
        table.add_row(
            run["run"], "with" if run["private"] else "without", epsilon, f"{run['auc']:.3f} ({low:.3f} to {high:.3f})", f"{share:.1%}"
        )
    Console(width=140).print(table)
