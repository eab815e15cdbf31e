"""The audit of T steps end to end: worlds with and without a canary unit, all noisy updates in the adversary's hands.

The training code takes `WatchedEngine` and `WatchedMechanism` for the engine and the mechanism that they wrap. They
change nothing; they note what the adversary knows (the sum of the others, which in the model of differential privacy
is no secret) and what it sees (the release). What is left of a release is noise, and the canary where it was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nnunet_adpfl.privacy.audit.bounds import Sample
from nnunet_adpfl.privacy.audit.canary import Canary, Difference
from nnunet_adpfl.privacy.audit.releases import ClaimedNoise
from nnunet_adpfl.privacy.clipping import ClipRule
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, GradientEngine, UnitPatches
from nnunet_adpfl.privacy.mechanism import Mechanism, NoisyUpdate, Permit
from nnunet_adpfl.privacy.noise import Randomness


class Step(NamedTuple):
    """What the adversary keeps of one release, in standard deviations of the claimed noise.

    Attributes:
        gradient: projection of release - others on the canary's change: N(0, 1), or N(gradient_shift, 1) with the canary.
        counted: the same of the centred count; 0 with shift 0 where no count is released.
        drawn: 1 where the canary was drawn; the adversary does not use it, the positive control does.
    """

    gradient: float
    gradient_shift: float
    counted: float
    count_shift: float
    drawn: float


@dataclass
class Adversary:
    """Takes notes of every step of one training.

    Attributes:
        change: what the canary adds to a sum in which it is.
        steps: notes so far.
        others: clipped sum of the others in the present step.
        drawn: whether the canary is in the present step.
    """

    change: Difference
    steps: list[Step] = field(default_factory=list)
    others: ClippedSum | None = None
    drawn: bool = False

    def begin(self) -> None:
        self.steps, self.others = [], None

    def knows(self, others: ClippedSum, drawn: bool) -> None:
        self.others = ClippedSum({name: part.clone() for name, part in others.total.items()}, others.centred_count)
        self.drawn = drawn

    def sees(self, update: NoisyUpdate, expected_units: float, claimed: ClaimedNoise) -> None:
        """One release, and the noise that it claims to have."""
        assert self.others is not None
        product = sum(
            float(((part.double() * expected_units - self.others.total[name].double()) * self.change.gradient[name]).sum())
            for name, part in update.gradient.items()
        )
        count = count_shift = 0.0
        if claimed.count and update.noisy_count is not None:
            above = update.noisy_count - self.others.centred_count
            count, count_shift = math.copysign(1, self.change.count) * above / claimed.count, abs(self.change.count) / claimed.count
        norm = self.change.norm
        self.steps.append(
            Step(product / norm / claimed.gradient, norm / claimed.gradient, count, count_shift, float(self.drawn))
        )


def statistics(out: Sample, inside: Sample, sampling_rate: float, share: float = 1.0) -> tuple[Sample, Sample]:
    """Log-likelihood ratio of the subsampled Gaussian of each training, ``sum over steps of log(1 - q + q exp(l))``.

    The variances in l are measured on the first half of the trainings without the canary, the half that the threshold
    is chosen on, so that an adversary who meets less noise than claimed makes use of it.

    Args:
        out: notes of the trainings without the canary, (trainings, steps, fields of `Step`).
        inside: the same with it.
        share: the noise is shrunk to this share around its mean: the positive control of the audit.
    """
    worlds = [_scores(notes, share) for notes in (out, inside)]
    variances = np.maximum((worlds[0][: len(out) // 2] ** 2).mean(axis=(0, 1)), 1e-12)
    found = []
    for notes, scores in zip((out, inside), worlds, strict=True):
        shifts = notes[:, :, [1, 3]]
        ratios = ((scores * shifts - shifts**2 / 2) / variances).sum(axis=2)
        first = np.log1p(-sampling_rate) if sampling_rate < 1 else -np.inf
        found.append(np.logaddexp(first, math.log(sampling_rate) + ratios).sum(axis=1))
    return found[0], found[1]


def _scores(notes: Sample, share: float) -> Sample:
    """Gradient and count of each step, (trainings, steps, 2)."""
    means = notes[:, :, [1, 3]] * notes[:, :, 4:]
    return np.asarray(means + share * (notes[:, :, [0, 2]] - means))


@dataclass(frozen=True)
class WatchedEngine:
    """The engine it holds; the sum of all units but the canary is computed apart, for the adversary."""

    engine: GradientEngine
    adversary: Adversary

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        drawn = list(units)
        others = self.engine.clipped_sum((unit for unit in drawn if not isinstance(unit.target, Canary)), rule)
        has_canary = any(isinstance(unit.target, Canary) for unit in drawn)
        self.adversary.knows(others, has_canary)
        return self.engine.clipped_sum(drawn, rule) if has_canary else others


@dataclass(frozen=True)
class WatchedMechanism(Mechanism):
    """The mechanism whose fields it was made of; every release is shown to the adversary."""

    adversary: Adversary = field(kw_only=True)

    @classmethod
    def of(cls, mechanism: Mechanism, adversary: Adversary) -> WatchedMechanism:
        return cls(**vars(mechanism), adversary=adversary)

    def release(self, summed: ClippedSum, permit: Permit, site: str, step: int, randomness: Randomness) -> NoisyUpdate:
        claimed = ClaimedNoise.of(self, permit.noise_multipliers[step])
        update = super().release(summed, permit, site, step, randomness)
        self.adversary.sees(update, self.expected_units(site), claimed)
        return update
