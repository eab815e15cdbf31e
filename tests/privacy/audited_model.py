"""A small network whose loss takes canaries, audited by the package's own functions; faults are put in from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from injected_randomness import InjectedRandomness
from small_model import make_mechanism, unit
from torch import nn

from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.audit import canary
from nnunet_adpfl.privacy.audit.canary import CanaryLoss, Difference
from nnunet_adpfl.privacy.audit.release_audit import ReleaseAudit, audit_release
from nnunet_adpfl.privacy.clipping import ClipRule, NoClip
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, GradientEngine, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.mechanism import Mechanism, NoisyUpdate, Permit
from nnunet_adpfl.privacy.noise import Randomness

SITE, DELTA, FAILURE = "a", 1e-3, 1e-3
OTHERS = [unit(1), unit(2, scale=30.0), unit(3)]


def one_step(noise_multiplier: float = 1.0, method: str = "percentile") -> Mechanism:
    """All units take part in one step."""
    return make_mechanism(
        sampling_rate=1.0, steps=1, reserve_steps=0, noise_multiplier=noise_multiplier, epsilon=500.0,
        clipping={"method": method},
    )  # fmt: skip


def make_engine() -> tuple[LoopEngine, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.Conv2d(3, 1, 3))
    trained = dict(network.named_parameters())

    def squares(output: torch.Tensor | list[torch.Tensor], target: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        assert isinstance(output, torch.Tensor)
        assert isinstance(target, torch.Tensor)
        return ((output - target) ** 2).mean()

    loss = CanaryLoss(squares)
    loss.attach(trained)
    return LoopEngine(network, loss, trained), trained


def changes(engine: GradientEngine, trained: dict[str, nn.Parameter], rule: ClipRule) -> tuple[ClippedSum, dict[str, Difference]]:
    without = engine.clipped_sum(iter(OTHERS), rule)
    return without, canary.differences(engine, OTHERS, without, trained, rule, 1.0, np.random.default_rng(5))


def audited(
    mechanism: Mechanism | None = None,
    engine: GradientEngine | None = None,
    randomness: Randomness | None = None,
    number: int = 1000,
) -> ReleaseAudit:
    """The audit with repeatable noise; the claim is always that of the mechanism's own event."""
    mechanism = mechanism or one_step()
    own, trained = make_engine()
    rule = mechanism.clip_rule(1.0)
    without, changed = changes(engine or own, trained, rule)
    z = mechanism.noise_levels(0, 1)[0][0]
    claimed = accounting.epsilon([accounting.poisson_gaussian(1.0, z, 1)], DELTA)
    return audit_release(
        mechanism, SITE, without, changed, noise_multiplier=z, claimed_epsilon=claimed, delta=DELTA, number=number,
        failure=FAILURE, randomness=randomness or InjectedRandomness(3),
    )  # fmt: skip


class ClipAfterSum:
    """FAULT: adds up gradients as they are and bounds the sum."""

    def __init__(self) -> None:
        self.engine = make_engine()[0]

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        summed = self.engine.clipped_sum(units, NoClip())
        norm = float(torch.sqrt(sum((part**2).sum() for part in summed.total.values())))
        return ClippedSum({name: part * rule.factor(norm) for name, part in summed.total.items()})


class PlainCount:
    """FAULT: counts b instead of b - 1/2, which has twice the sensitivity."""

    def __init__(self) -> None:
        self.engine = make_engine()[0]

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        chosen = list(units)
        summed = self.engine.clipped_sum(chosen, rule)
        summed.centred_count += 0.5 * len(chosen)
        return summed


@dataclasses.dataclass(frozen=True)
class FreeCount(Mechanism):
    """FAULT: the count has hardly any noise."""

    def release(self, summed: ClippedSum, permit: Permit, site: str, step: int, randomness: Randomness) -> NoisyUpdate:
        count = summed.centred_count
        update = super().release(summed, permit, site, step, randomness)
        assert update.noisy_count is not None
        return dataclasses.replace(update, noisy_count=count + 0.01 * (update.noisy_count - count))


class SameNoise(InjectedRandomness):
    """FAULT: the noise of every step comes from the same key."""

    def noise(self, site: str, step: int) -> np.random.Generator:
        return super().noise(site, 0)
