"""Options that several commands share, written once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_adpfl.errors import InputError

if TYPE_CHECKING:
    from nnunet_adpfl.federation.privacy_planning import PrivacyChoices

Dataset = Annotated[str, typer.Argument(help="Number or name of the data set, as in nnU-Net.")]
Configuration = Annotated[str, typer.Argument(help="nnU-Net configuration: 2d, 3d_fullres, ...")]
FoldName = Annotated[str, typer.Argument(help="0 to 4, or all.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone to standard output.")]
Trainer = Annotated[str, typer.Option("-tr", help="nnUNetTrainerADP, nnUNetTrainerDP or nnUNetTrainerNP.")]
Plans = Annotated[str, typer.Option("-p", help="Name of nnU-Net's plans.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps; by default cuda where there is one.")]

Fingerprint = Annotated[
    str,
    typer.Option(
        help="pooled (sums over all patients, outside the guarantee), dp (noisy histograms, paid for) or public:PLANS.json."
    ),
]
FingerprintNoise = Annotated[
    float | None, typer.Option(help="Noise multiplier of --fingerprint dp; less is dearer and truer. Default 2.")
]
Planner = Annotated[str, typer.Option(help="Any planner of nnU-Net: ExperimentPlanner, nnUNetPlannerResEncM, ...")]
BaseFeatures = Annotated[
    str | None,
    typer.Option(help="Features of the first stage, or auto; the plans then have their own name, nnUNetPlans_f8."),
]
PlansName = Annotated[
    str | None, typer.Option("-p", help="Another name for the plans, as nnU-Net's -overwrite_plans_name.")
]
Folds = Annotated[
    str | None,
    typer.Option(
        help="patients: five folds, stratified by site. sites: fold k leaves out the k-th site and validates on it. "
        "Default: as those that are there, else patients."
    ),
]
SmallSites = Annotated[
    str,
    typer.Option(help="Sites with fewer units than folds: refuse, or other: share them out over the folds together."),
]

Epsilon = Annotated[float | None, typer.Option(help="Target epsilon of each site's patients. Default 8.")]
Delta = Annotated[
    float | None, typer.Option(help="Target delta, below 1/N. Default: power of ten at or below 1/(10 N).")
]
Compute = Annotated[
    int | None,
    typer.Option(help="Most patches to process over the training of all sites. Default: each training patient is drawn 50 times."),
]
Steps = Annotated[int | None, typer.Option(help="Steps of each site over the whole training. Default: planned.")]
ReserveSteps = Annotated[
    int | None,
    typer.Option(help="Paid for beforehand, for interrupted rounds. Default: 10 % of the steps, at least two rounds."),
]
SamplingRate = Annotated[
    float | None, typer.Option(help="q, chance of each patient to be drawn in a step. Default: planned.")
]
PatchesPerPatient = Annotated[int | None, typer.Option(help="K, patches of a drawn patient. Default: planned, 2 to 16.")]
LocalSteps = Annotated[
    int | None,
    typer.Option(help="S, steps of a site between two averages. Default: the privacy plan's (5 in a new one)."),
]
Strategy = Annotated[
    str | None,
    typer.Option(help="fedavg, fedprox, fedavgm, fedadam, fedbn, or local (nothing is shared). Default: as the privacy plan says."),
]
Validation = Annotated[str | None, typer.Option(help="Are validation patients private or public? Default private.")]
ToleranceMm = Annotated[float, typer.Option(help="Boundaries this close agree (NSD), in mm; pixels for PNG.")]
Mirroring = Annotated[
    bool,
    typer.Option("--mirroring/--no-mirroring", help="Average over flips as nnU-Net does; off is 4 to 8 times faster."),
]
Seed = Annotated[int | None, typer.Option(help="Fixes all but noise and draws. Default 0.")]
InitialWeights = Annotated[
    Path | None,
    typer.Option(
        "--initial-weights", "--init",
        help="Checkpoint to start from (of `adpfl pretrain`, or any of nnU-Net's that fits); you declare it public, its sha256 goes "
        "into the plan.",
    ),
]
# Other fields have options of their own.
FIELDS_TO_SET = (
    "noise_multiplier", "noise_source", "noise_terms", "oversample_foreground", "mirroring", "augmentation", "engine",
    "invert_activations",
)  # fmt: skip
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A field of the privacy plan: clipping.method=auto_s, noise_source=secure, ... (docs/privacy_plan.md)."
    ),
]


def base_features(text: str | None) -> int | str | None:
    """A whole number, or ``auto``."""
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--base-features {text!r} must be a whole number of 1 or more, or auto") from None


def privacy_choices(**values: Any) -> PrivacyChoices:
    """Options -> choices for the privacy plan; ``settings`` are ``section.field=value`` texts."""
    from nnunet_adpfl.federation.privacy_planning import PrivacyChoices

    sections = _sections(values.pop("settings") or [])
    local_steps = values.pop("local_steps")
    if local_steps is not None:
        sections.setdefault("rounds", {})["local_steps"] = local_steps
    return PrivacyChoices(**values, sections=sections)


def _sections(settings: list[str]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for text in settings:
        path, separator, value = text.partition("=")
        section, dot, field = path.partition(".")
        if separator and path in FIELDS_TO_SET:
            sections[path] = _value(value)
        elif separator and dot and section and field:
            sections.setdefault(section, {})[field] = _value(value)
        else:
            raise InputError(
                f"--set {text!r}: write SECTION.FIELD=VALUE, for example clipping.method=auto_s, or one of "
                f"{', '.join(FIELDS_TO_SET)}=VALUE"
            )
    return sections


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def default_device() -> str:
    """cuda where torch can use one, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def print_json(value: Any) -> None:
    """The one thing that goes to standard output of a ``--json`` command."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
