"""``adpfl run``: plan, train, evaluate, account and report in one go."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_adpfl.cli import options as opt
from nnunet_adpfl.errors import InputError

if TYPE_CHECKING:
    from nnunet_adpfl.federation.privacy_planning import PrivacyChoices


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    dataset: opt.Dataset,
    configuration: opt.Configuration,
    fold: opt.FoldName,
    trainer: opt.Trainer = "nnUNetTrainerADP",
    rounds: Annotated[int | None, typer.Option(help="R, rounds of S local steps; the plan then has R x S steps.")] = None,
    local_steps: opt.LocalSteps = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Go on from the newest checkpoint.")] = False,
    device: opt.Device = "",
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
    validation: opt.Validation = None,
    initial_weights: opt.InitialWeights = None,
    seed: opt.Seed = None,
    settings: opt.Settings = None,
    tolerance_mm: opt.ToleranceMm = 1.0,
    mirroring: opt.Mirroring = True,
    as_json: opt.Json = False,
) -> None:
    """Plan, train, evaluate, account for the privacy spent and write the report, in one go.

    Example: adpfl run 4 3d_fullres 0 --base-features 8 --epsilon 8 --delta 1e-4
    """
    choices = opt.privacy_choices(
        epsilon=epsilon, delta=delta, compute=compute, steps=steps, reserve_steps=reserve_steps, sampling_rate=sampling_rate,
        patches_per_unit=patches_per_patient, validation=validation, seed=seed, initial_weights=initial_weights,
        local_steps=local_steps, settings=settings,
    )  # fmt: skip
    from nnunet_adpfl.experiments import pipeline

    if rounds is not None:
        choices = _with_rounds(choices, rounds, local_steps)
    done = pipeline.run(
        dataset,
        configuration,
        fold,
        pipeline.PlanningChoices(
            fingerprint, planner, opt.base_features(base_features), folds, small_sites, plans, fingerprint_noise=fingerprint_noise
        ),
        choices,
        pipeline.TrainingChoices(
            trainer, rounds, local_steps, go_on, device or opt.default_device(), tolerance_mm, mirroring
        ),
    )
    if as_json:
        opt.print_json(done)
    else:
        _tell(done)


def _with_rounds(choices: PrivacyChoices, rounds: int, local_steps: int | None) -> PrivacyChoices:
    """The plan's steps are those of the rounds, unless more are asked for."""
    from nnunet_adpfl.federation.privacy_planning import DEFAULT_LOCAL_STEPS

    if rounds < 1:
        raise InputError(f"--rounds {rounds} must be 1 or more")
    wanted = rounds * (local_steps or DEFAULT_LOCAL_STEPS)
    if choices.steps is None:
        return replace(choices, steps=wanted)
    if choices.steps < wanted:
        raise InputError(f"--rounds {rounds} need {wanted} steps, --steps allows {choices.steps}: raise it or leave it out")
    return choices


def _tell(done: dict[str, Any]) -> None:
    from nnunet_adpfl.cli import evaluate, privacy

    if done["evaluation"]:
        evaluate.tell(done["evaluation"])
    privacy.tell(done["privacy"])
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in done["seconds"].items())
    typer.echo(f"{stages}; peak memory {done['peak_memory_mib']['process']:.0f} MiB")
    typer.echo(f"run:    {done['run']}")
    typer.echo(f"report: {done['report']}")
