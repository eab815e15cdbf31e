"""The privacy plan: every setting that the privacy claim or the training of a private run depends on.

It is the twin of nnU-Net's plans file: ``PLANS__CONFIG.privacy.json`` beside it, editable by hand, validated on load
and frozen with its hash into the run folder. Field by field explanation: ``docs/privacy_plan.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.errors import InputError

FROZEN_FILE_NAME = "privacy_plan.json"
MAX_NOISE_LEVELS = 20

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotTiny = Annotated[float, Field(ge=1e-12, allow_inf_nan=False)]  # its inverse still fits a float32
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Clipping(_Section):
    """How one unit's gradient is bounded before the sum (design section 5, rules 3 and 8)."""

    method: Literal["percentile", "auto_s", "fixed", "none"] = "percentile"
    clip_norm: Positive = 1.0  # C, fixed; the starting value where it adapts
    clip_norm_min: NotTiny = 1e-3  # public limits of the adaptive C
    clip_norm_max: Positive = 1e3
    quantile: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5  # share of units to stay below C
    count_noise_ratio: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 2.5  # sigma_b / z
    max_log_step_noise: Positive = 0.1  # the rate of C is such that noise moves log C by at most this (one deviation) a round
    stabiliser: NotTiny = 0.01  # gamma of AUTO-S

    @model_validator(mode="after")
    def _limits_in_order(self) -> Clipping:
        if not self.clip_norm_min <= self.clip_norm <= self.clip_norm_max:
            raise ValueError("clip_norm must lie between clip_norm_min and clip_norm_max")
        return self


class NoiseDecay(_Section):
    """Declared decay of the noise in plateaus; fixed before the run, so ordinary composition holds (rule 10)."""

    plateaus: Annotated[int, Field(ge=1, le=MAX_NOISE_LEVELS)] = 1
    final_ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0  # last noise level / first one

    @model_validator(mode="after")
    def _both_or_none(self) -> NoiseDecay:
        if (self.plateaus > 1) != (self.final_ratio < 1):
            raise ValueError("noise decays with plateaus of 2 or more and a final_ratio below 1: give both, or neither")
        return self


class Adaptation(_Section):
    """Noise and stopping that follow the training itself, under an RDP filter (rule 10); off by default.

    The noise starts at ``noise_multiplier`` and is lowered by ``noise_factor``, at most ``levels`` - 1 times, each time
    that the signal was weak for ``patience`` rounds in a row; weak at the last level, training stops. Signals:
    ``update_agreement``, the cosine of the last two changes of the global weights (made from private outputs alone), or
    ``public_loss``, the relative fall of the loss on validation units that the plan declares public.
    """

    kind: Literal["declared", "data_driven"] = "declared"
    order: Annotated[float, Field(gt=1, le=512, allow_inf_nan=False)] | None = None  # of the filter; None: chosen with z
    signal: Literal["update_agreement", "public_loss"] = "update_agreement"
    weak_below: Annotated[float, Field(allow_inf_nan=False)] = 0.02
    patience: Annotated[int, Field(ge=1)] = 3
    noise_factor: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.8
    levels: Annotated[int, Field(ge=1, le=MAX_NOISE_LEVELS)] = 4


class FingerprintRelease(_Section):
    """The noisy fingerprint that nnU-Net's plan was made from: one Gaussian event at each site (rule 13)."""

    release: str  # its name in the sites' ledgers
    noise_multiplier: Positive  # standard deviation / joint L2 sensitivity of one unit


class Optimizer(_Section):
    name: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.1  # of gradients with norm 1 or less (divided by the clip norm)
    learning_rate_non_private: Positive = 0.5  # of nnUNetTrainerNP, whose gradients are as they are
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-5  # applied after the noise
    schedule: Literal["constant", "poly"] = "poly"
    adam_correction: bool = True  # of adam: the noise's known variance is taken off the second moment
    adam_floor: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1  # of that difference, in noise variances
    ema_decay: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.95  # average of weights, per step; 0: off
    tail_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0  # plain mean over the last steps instead
    keep_fraction: Fraction = 1.0  # sparsification of the noisy update: largest coordinates kept (post-processing)

    @property
    def averages_weights(self) -> bool:
        """Whether the model that is kept is an average of the weights on the way (post-processing)."""
        return self.ema_decay > 0 or self.tail_share > 0


class Phase(_Section):
    """A declared part of the training in which some layers rest: they get neither gradient nor noise meanwhile."""

    until: Fraction  # share of the steps at which the phase ends
    freeze_patterns: tuple[str, ...]  # glob patterns on parameter names


class Trainable(_Section):
    """Which parameters are trained; the others get neither gradient nor noise."""

    freeze_irrelevant: bool = True  # conv biases before InstanceNorm, heads without loss weight
    freeze_patterns: tuple[str, ...] = ()  # glob patterns on parameter names
    random_mask: Fraction = 1.0  # share of the coordinates of every weight tensor that is trained, drawn from the seed
    phases: tuple[Phase, ...] = ()  # in order; after the last one everything is trained

    @property
    def masks(self) -> bool:
        """Whether the clipped sum has fewer coordinates than the trained parameters."""
        return self.random_mask < 1 or bool(self.phases)

    @model_validator(mode="after")
    def _phases_in_order(self) -> Trainable:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError("phases must be in order, each with a larger `until` than the one before")
        return self


class Projection(_Section):
    """Projection of every unit's gradient, before the clip, onto the span of gradients on generated images."""

    dimensions: Annotated[int, Field(ge=0)] = 0  # of the subspace; 0: off
    public_gradients: Annotated[int, Field(ge=1)] = 200  # from which its directions are found
    public_batch: Annotated[int, Field(ge=1)] = 4  # generated patches of each
    refresh_steps: Annotated[int, Field(ge=1)] = 50  # after so many steps they are found anew, at the weights of then

    @model_validator(mode="after")
    def _enough_gradients(self) -> Projection:
        if self.dimensions > self.public_gradients:
            raise ValueError("dimensions cannot exceed public_gradients: they span no more")
        return self


class InitialWeights(_Section):
    """Where training starts (rule 16): random from ``seed``, or a file declared public by its sha256."""

    kind: Literal["random", "public"] = "random"
    file: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _public_is_complete(self) -> InitialWeights:
        if self.kind == "public" and not (self.file and self.sha256):
            raise ValueError("public initial weights need both file and sha256")
        return self


class Rounds(_Section):
    """Default division of the steps into rounds; a round is also the block that one ledger line pays for."""

    local_steps: Annotated[int, Field(ge=1)] = 5
    strategy: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedbn", "local"] = "fedavg"
    weights: Literal["declared", "equal", "precision"] = "declared"  # FedAvg by declared sizes, equal, or by their squares
    optimizer_state: Literal["reset", "kept"] = "reset"  # at the start of a round
    proximal_mu: Positive = 0.1  # of fedprox: pull towards the weights that the round began with
    server_learning_rate: Positive = 1.0  # of fedavgm and fedadam
    server_momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.9  # of fedavgm and fedadam
    server_adaptivity: Positive = 1e-3  # tau of fedadam
    local_patterns: tuple[str, ...] = ("*norm*",)  # of fedbn: parameters whose values stay each site's own


class UpdateFilter(_Section):
    """Paper mode: a filter on a site's whole update, to compare with. It gives NO patient-level guarantee; only runs
    without clip and noise (clipping none) can have one, and their ledger says that nothing is promised."""

    kind: Literal["none", "paper", "svt"] = "none"
    fraction: Fraction = 0.9  # of the coordinates that is sent
    percentile: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 90.0  # of paper: threshold among magnitudes
    gamma: Positive = 1e-4  # of svt: threshold, per local step
    tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6  # of svt
    epsilon: Positive = 1e-3  # of svt: of the choice of coordinates; NVIDIA FLARE's number, and the paper's
    release_epsilon: Positive = 1.0  # of each coordinate that is sent; NVIDIA FLARE's noise_var


class PrivacyPlan(_Section):
    """All of it. Unknown keys are refused, so that a misspelt setting cannot be ignored silently."""

    format: Literal[1] = 1
    unit: Literal["patient", "lesion", "case"]
    adjacency: Literal["zero_out"] = "zero_out"
    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    training_units: dict[str, dict[str, Annotated[int, Field(ge=1)]]]  # fold -> site -> declared number of units
    sampling_rate: Fraction
    steps: Annotated[int, Field(ge=1)]  # of each site, over the whole training
    reserve_steps: Annotated[int, Field(ge=0)]  # paid for beforehand, for steps that must be taken again
    noise_multiplier: Positive | None = None  # z of the first plateau; None: calibrate when the run starts
    noise_decay: NoiseDecay = NoiseDecay()
    adaptation: Adaptation = Adaptation()
    clipping: Clipping = Clipping()
    patches_per_unit: Annotated[int, Field(ge=1)] = 2
    oversample_foreground: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.33
    mirroring: bool = True  # of nnU-Net's augmentation; without it predictions are not averaged over flips either
    augmentation: Literal["nnunet", "none"] = "nnunet"  # all but flips
    optimizer: Optimizer = Optimizer()
    trainable: Trainable = Trainable()
    projection: Projection = Projection()
    initial_weights: InitialWeights = InitialWeights()
    rounds: Rounds = Rounds()
    update_filter: UpdateFilter = UpdateFilter()
    engine: Literal["auto", "loop", "fused"] = "loop"
    invert_activations: bool = False  # of the fused engine: less memory for a little more time
    noise_source: Literal["os_seeded", "secure"] = "os_seeded"
    noise_terms: Literal[1, 4] = 1  # Gaussians that are added up for each number of noise
    validation: Literal["private", "public"] = "private"
    fingerprint: Literal["pooled", "dp", "public"] = "pooled"
    fingerprint_release: FingerprintRelease | None = None
    seed: Annotated[int, Field(ge=0)] = 0  # everything but noise and draws
    cohort_digest: str
    plans_digest: str

    @model_validator(mode="after")
    def _delta_below_one_over_n(self) -> PrivacyPlan:
        for fold, sites in self.training_units.items():
            total = sum(sites.values())
            if total and self.delta >= 1 / total:
                raise ValueError(f"delta {self.delta:g} is not below 1/N = 1/{total} (training units of fold {fold})")
        return self

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> PrivacyPlan:
        if (self.fingerprint == "dp") != (self.fingerprint_release is not None):
            raise ValueError("fingerprint dp and fingerprint_release belong together; make them with `adpfl plan --fingerprint dp`")
        if self.update_filter.kind != "none" and self.is_private:
            raise ValueError("update_filter gives no guarantee and is for runs without clip and noise (clipping.method none)")
        if self.update_filter.kind != "none" and self.rounds.strategy in ("fedbn", "local"):
            raise ValueError("update_filter needs a strategy without layers of each site's own (not fedbn or local)")
        if self.projection.dimensions and (self.trainable.masks or (self.optimizer.name, self.optimizer.adam_correction) == ("adam", True)):
            raise ValueError("projection does not fit trainable.random_mask, trainable.phases or optimizer.adam_correction")
        if self.projection.dimensions and self.rounds.strategy in ("fedbn", "local"):
            raise ValueError("projection shares its directions among sites: it does not fit strategies fedbn and local")
        if self.optimizer.keep_fraction < 1 and (self.optimizer.name, self.optimizer.adam_correction) == ("adam", True):
            raise ValueError("optimizer.keep_fraction changes the noise that optimizer.adam_correction takes off: use one of them")
        if self.projection.dimensions and self.engine == "fused":
            raise ValueError("projection needs engine loop (or auto)")
        if self.trainable.masks and self.engine == "fused":
            raise ValueError("trainable.random_mask and trainable.phases need engine loop (or auto)")
        if self.is_data_driven:
            if self.noise_decay != NoiseDecay():
                raise ValueError("adaptation data_driven chooses the noise by itself: leave noise_decay out")
            if self.adaptation.signal == "public_loss" and self.validation != "public":
                raise ValueError("adaptation.signal public_loss looks at validation units: it needs validation public")
        return self

    @property
    def is_data_driven(self) -> bool:
        """Whether noise and stopping depend on what came before, so that only a filter's bound holds (rule 10)."""
        return self.is_private and self.adaptation.kind == "data_driven"

    @property
    def is_private(self) -> bool:
        return self.clipping.method != "none"

    @property
    def site_weighting(self) -> str:
        """How sites are weighed in the average: `rounds.weights`, but by numbers of units where there is no noise to be precise about."""
        return self.rounds.weights if self.is_private or self.rounds.weights != "precision" else "declared"

    @property
    def fewest_units(self) -> tuple[int, ...]:
        """Units of each site in the fold that has the fewest, which the planner goes by."""
        return tuple(min(self.training_units.values(), key=lambda sites: sum(sites.values())).values())

    def digest(self) -> str:
        """sha256 of the content; part of every ledger, checkpoint and update."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def units_at(self, fold: str | int) -> dict[str, int]:
        """Declared number of training units of each site in a fold."""
        try:
            return self.training_units[str(fold)]
        except KeyError:
            known = ", ".join(self.training_units)
            raise InputError(
                f"fold {fold} is not in the privacy plan (it has {known}); run `adpfl plan` again"
            ) from None

    def save(self, path: Path) -> None:
        atomic_files.write_json(path, self.model_dump(mode="json"))


def file_name(plans_name: str, configuration: str) -> str:
    """Name of the privacy plan in nnUNet_preprocessed/DATASET."""
    return f"{plans_name}__{configuration}.privacy.json"


def load(path: Path) -> PrivacyPlan:
    """Read and validate a privacy plan; InputError names the first field that is wrong."""
    try:
        content = json_files.load(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `adpfl plan` for this data set and configuration first") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): mend it or run `adpfl plan` again") from None
    return parse(content, str(path))


def parse(content: object, origin: str = "privacy plan") -> PrivacyPlan:
    try:
        return PrivacyPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "plan"
        raise InputError(f"{origin}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def check_positive(**values: float) -> None:
    """InputError for a number that is not finite and above zero; the message names the argument."""
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a finite number above 0, not {value}")
