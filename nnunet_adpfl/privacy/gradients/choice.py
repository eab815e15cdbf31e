"""Which engine a run uses. The fused engine is used only after it has agreed with the loop engine on random patches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.gradients import agreement, trial
from nnunet_adpfl.privacy.gradients.agreement import TOLERANCE, Draw
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import GradientEngine
from nnunet_adpfl.privacy.gradients.loop import LoopEngine, Loss

log = logging.getLogger(__name__)
_WORTH_IT = 0.95  # share of the loop's time; where they are equal, the simpler engine is used
_LONGEST = 1 + 1e-5


@dataclass(frozen=True)
class EngineChoice:
    """What was decided before a run's first step; it stays with the run.

    Attributes:
        engine: loop or fused.
        patches_at_once: of the fused engine.
        reason: one sentence.
        seconds: of one clipped sum of the trial's random units by each engine, where both were timed.
    """

    engine: Literal["loop", "fused"]
    patches_at_once: int
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)


def choose(
    kind: Literal["auto", "loop", "fused"],
    network: nn.Module,
    loss: Loss,
    trained: Mapping[str, nn.Parameter],
    *,
    draw: Draw,
    most_patches: int,
    autocast: bool = False,
    invert_activations: bool = False,
    earlier: EngineChoice | None = None,
) -> tuple[GradientEngine, EngineChoice]:
    """The engine of the privacy plan, and why.

    ``auto``: of the two the faster one on random units of the run's sizes, if the fused one is supported and agrees.

    Args:
        kind: field ``engine`` of the privacy plan.
        network, loss, trained, autocast, invert_activations: as for `FusedEngine`.
        draw: random units (no patients) of the sizes of the run; a function of the number that it gets.
        most_patches: how many patches may go through the network together, if there is memory for them.
        earlier: what was decided when the run began. It is kept; only the agreement is checked again.

    Raises PrivacyRefusedError where ``fused`` was asked for and does not agree.
    """
    loop = LoopEngine(network, loss, trained, autocast=autocast)
    if kind == "loop" or (earlier is not None and earlier.engine == "loop"):
        return loop, earlier or EngineChoice("loop", 0, "the privacy plan says so")
    units = draw(0)
    patches = min(earlier.patches_at_once, most_patches) if earlier else trial.patches_that_fit(network, units[0], most_patches)
    fused, fault = _verified(
        lambda half: FusedEngine(
            network, loss, trained, patches_at_once=patches, autocast=half, invert_activations=invert_activations
        ),
        LoopEngine(network, loss, trained), draw, autocast,
    )  # fmt: skip
    if fused.unsupported is not None:  # by its layers, or found so by running it; it has said so in the log
        return loop, EngineChoice("loop", 0, f"fused is not possible: {fused.unsupported}")
    if fault is not None:
        if kind == "fused":
            raise PrivacyRefusedError(f"engine fused {fault}; set engine: loop in the privacy plan")
        log.warning("engine auto: fused %s; the loop engine is used", fault)
        return loop, EngineChoice("loop", 0, f"fused {fault}")
    if earlier is not None:
        return fused, earlier
    if kind == "fused":
        return fused, EngineChoice("fused", patches, "the privacy plan says so")
    seconds = trial.seconds({"loop": loop, "fused": fused}, units)
    if seconds["fused"] > _WORTH_IT * seconds["loop"]:
        return loop, EngineChoice("loop", 0, "fused is not faster", seconds)
    return fused, EngineChoice("fused", patches, "fused is faster", seconds)


def _verified(
    make: Callable[[bool], FusedEngine], loop: LoopEngine, draw: Draw, autocast: bool
) -> tuple[FusedEngine, str | None]:
    """The fused engine for the run's precision, and how it fails the check; None where it does not, or is not supported.

    Agreement is a matter of float32; half precision differs from itself by percents. What must hold there is the bound.
    """
    fused = make(False)
    error = 0.0 if fused.unsupported is not None else agreement.disagreement(fused, loop, draw)
    if fused.unsupported is not None:
        return fused, None
    if not error <= TOLERANCE:
        return fused, f"differs from the loop engine by {error:.1e} on random patches, more than {TOLERANCE:.0e}"
    units = draw(0)
    if autocast:
        fused = make(True)
        if not agreement.longest(fused, units) <= _LONGEST:
            return fused, "gives a random patient more than the clip norm in half precision"
    if fused.unsupported is None and agreement.depends_on_others(fused, units):
        return fused, "rounds a patient's gradient in another way when others are drawn with it (on this device)"
    return fused, None
