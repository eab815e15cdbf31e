"""``adpfl plan``: one nnU-Net plan for all sites, preprocessing, splits, and the privacy plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    dataset: opt.Dataset,
    configurations: Annotated[
        list[str], typer.Option("-c", help="nnU-Net configuration to prepare; repeat for several: -c 2d -c 3d_fullres")
    ],
    fingerprint: opt.Fingerprint = "pooled",
    fingerprint_noise: opt.FingerprintNoise = None,
    planner: opt.Planner = "ExperimentPlanner",
    plans: opt.PlansName = None,
    base_features: opt.BaseFeatures = None,
    folds: opt.Folds = None,
    small_sites: opt.SmallSites = "refuse",
    epsilon: opt.Epsilon = None,
    delta: opt.Delta = None,
    compute: opt.Compute = None,
    steps: opt.Steps = None,
    reserve_steps: opt.ReserveSteps = None,
    sampling_rate: opt.SamplingRate = None,
    patches_per_patient: opt.PatchesPerPatient = None,
    local_steps: opt.LocalSteps = None,
    validation: opt.Validation = None,
    initial_weights: opt.InitialWeights = None,
    seed: opt.Seed = None,
    settings: opt.Settings = None,
    as_json: opt.Json = False,
) -> None:
    """Make one plan from all sites, preprocess, split by patient, and write the privacy plan.

    Example: adpfl plan 4 -c 3d_fullres --base-features 8 --epsilon 8 --delta 1e-4
    """
    from nnunet_adpfl.experiments import pipeline

    choices = opt.privacy_choices(
        epsilon=epsilon, delta=delta, compute=compute, steps=steps, reserve_steps=reserve_steps, sampling_rate=sampling_rate,
        patches_per_unit=patches_per_patient, validation=validation, seed=seed, initial_weights=initial_weights,
        local_steps=local_steps, settings=settings,
    )  # fmt: skip
    planning = pipeline.PlanningChoices(
        fingerprint, planner, opt.base_features(base_features), folds, small_sites, plans, fingerprint_noise=fingerprint_noise
    )
    written = pipeline.plan(dataset, configurations, planning, choices)
    if as_json:
        opt.print_json(written)
        return
    for configuration, figures in written["configurations"].items():
        _tell(written["plans"], configuration, figures)


def _tell(plans_name: str, configuration: str, figures: dict[str, Any]) -> None:
    typer.echo(f"{plans_name} {configuration}: {figures['privacy_plan']}")
    noise = figures["noise_multiplier"]
    typer.echo(
        f"  epsilon {figures['epsilon']:g}, delta {figures['delta']:g} for each {figures['unit']}; q {figures['sampling_rate']:g}, "
        f"{figures['steps']} + {figures['reserve_steps']} steps, noise multiplier {'none' if noise is None else format(noise, 'g')}"
    )
    _tell_choices(figures["choices"])
    _tell_signal(figures["choices"], figures["signal"])


def _tell_choices(choices: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("choice", "value", "why")
    for name, choice in choices.items():
        value = choice["value"]
        table.add_row(name, f"{value:g}" if isinstance(value, float) else str(value), choice["why"])
    Console(width=140).print(table)


def _tell_signal(choices: dict[str, Any], signal: dict[str, Any] | None) -> None:
    if signal is None:
        return
    typer.echo(
        f"  expected signal to noise {signal['signal_to_noise']:g} on {signal['parameters']:,} parameters "
        f"(A {signal['accumulated_signal']:g}; docs/planner.md)"
    )
    width, advised = choices.get("base_features", {}).get("value"), signal["advised_base_features"]
    if width is not None and width != advised:
        typer.echo(f"  advised: --base-features {advised}, with signal to noise {signal['advised_signal_to_noise']:g}")
