"""What the planner of a privacy plan is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnunet_adpfl.privacy.accounting import Event
from nnunet_adpfl.privacy.planned_images import PlannedImages
from nnunet_adpfl.privacy.signal import effective_units

DEFAULT_EPSILON = 8.0
DRAWS_PER_UNIT = 50  # default compute: how often each training unit is drawn (q T), with K patches each time
RESERVE_SHARE = 0.1  # of the steps, but at least two rounds: enough for a few interrupted rounds
CHOSEN = (  # all fields that a plan may say why of, but for the width of the network
    "epsilon", "delta", "patches_per_unit", "oversample_foreground", "mirroring", "augmentation", "sampling_rate", "steps",
    "reserve_steps", "noise_multiplier", "noise_decay.final_ratio", "clipping.method", "clipping.quantile", "optimizer.name",
    "optimizer.learning_rate", "optimizer.ema_decay", "rounds.weights",
)  # fmt: skip

OF_IMAGES = ("oversample_foreground", "mirroring")  # chosen by what nnU-Net's plan says about images


def explained_fields(clipping_method: str) -> list[str]:
    """Those of CHOSEN that mean something with this clipping: only percentile clipping has a quantile."""
    return [name for name in CHOSEN if name != "clipping.quantile" or clipping_method == "percentile"]


@dataclass(frozen=True)
class Choice:
    """One field of the plan.

    Attributes:
        value: as the privacy plan has it.
        why: one sentence.
        given: whether the user chose it.
    """

    value: float | int | str
    why: str
    given: bool = False

    def to_json(self) -> dict[str, object]:
        return {"value": self.value, "why": self.why, "given": self.given}


def given(value: float | int | str | bool | None) -> Choice | None:
    """The choice that a user made; None where it is open."""
    return None if value is None else Choice(value, "given", given=True)


@dataclass(frozen=True)
class Request:
    """What is known, and what the user chose already; None is open.

    Attributes:
        units: declared number of training units of each site, 1 or more.
        images: what nnU-Net's plan says about them; None: nothing is known yet.
        compute: the most patches to process (forward and backward) over the training of all sites together.
        spent: events that the plan pays for besides training: a noisy fingerprint.
        local_steps: steps of a round; the steps are whole rounds.
        folds: units of the sites in every fold, where the plan is for several.
        strategy: as `rounds.strategy`.
        weighting: of the sites in the average, as `rounds.weights`; while it is open, units are counted as with ``declared``.
        count_noise_ratio: sigma_b / z of percentile clipping.
        momentum, tail_share: of the optimizer section; nobody but the user sets them.
    """

    units: Sequence[int]
    epsilon: float
    delta: float
    images: PlannedImages | None = None
    compute: int | None = None
    spent: Sequence[Event] = ()
    local_steps: int = 5
    folds: Sequence[Sequence[int]] = ()
    strategy: str = "fedavg"
    weighting: str | None = None
    count_noise_ratio: float = 2.5
    steps: int | None = None
    reserve_steps: int | None = None
    sampling_rate: float | None = None
    patches_per_unit: int | None = None
    oversample_foreground: float | None = None
    mirroring: bool | None = None
    augmentation: str | None = None
    noise_decay: float | None = None
    clipping_method: str | None = None
    clipping_quantile: float | None = None
    optimizer: str | None = None
    noise_multiplier: float | None = None
    learning_rate: float | None = None
    momentum: float = 0.0
    ema_decay: float | None = None
    tail_share: float = 0.0

    @property
    def total_units(self) -> int:
        return sum(self.units)

    @property
    def effective_units(self) -> float:
        return effective_units(self.units, self.weighting or "declared", self.strategy)

    def allowed(self, patches_per_unit: int) -> int:
        """Patches of the whole training."""
        return DRAWS_PER_UNIT * patches_per_unit * self.total_units if self.compute is None else self.compute

    def reserve(self, steps: int) -> int:
        return default_reserve(steps, self.local_steps) if self.reserve_steps is None else self.reserve_steps


def default_delta(units: int) -> float:
    """The power of ten at or below 1/(10 N)."""
    return float(10.0 ** math.floor(math.log10(1 / (10 * units))))


def default_reserve(steps: int, local_steps: int) -> int:
    """Steps to pay for beforehand, for rounds that are interrupted and taken again."""
    return max(math.ceil(RESERVE_SHARE * steps), 2 * local_steps)


def to_json(choices: Mapping[str, Choice]) -> dict[str, dict[str, object]]:
    return {name: choice.to_json() for name, choice in choices.items()}
