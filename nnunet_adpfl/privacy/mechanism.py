"""The mechanism: the only place where sampling, clipping, noise and accounting meet.

``privacy plan -> calibrated() -> make()`` gives one frozen `Mechanism` holding the sampler, the clip rule, the noise
and the event of a step, so that no caller can pair the sampler of one run with the accounting of another. One step::

    permit = mechanism.authorise(ledger, first_step, steps, ...)    # written and fsynced before anything else
    units = mechanism.draw(all_units, site, step, randomness)       # Poisson
    summed = engine.clipped_sum(patches of units, mechanism.clip_rule(clip_norm))
    update = mechanism.release(summed, permit, site, step, randomness)
    del summed                                                      # only `update` may influence anything else
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nnunet_adpfl.errors import BudgetExhaustedError, PrivacyRefusedError
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.clipping import (
    AutoClip,
    ClipRule,
    NoClip,
    NormClip,
    gradient_noise_multiplier,
    updated_clip_norm,
)
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.noise import Randomness, add_gaussian_
from nnunet_adpfl.privacy.plan import PrivacyPlan
from nnunet_adpfl.privacy.sampling import poisson_draw
from nnunet_adpfl.privacy.schedule import NoiseSchedule

ALL_SITES = "all-sites"  # name of the one "site" of a central run, where all units train together


@dataclass
class Permit:
    """Steps that the ledger has paid for. Each release uses one up; there is no release without one."""

    levels: Counter[float] = field(default_factory=Counter)

    def use(self, noise_multiplier: float) -> None:
        if self.levels[noise_multiplier] < 1:
            raise PrivacyRefusedError("a step was about to be released that the ledger has not paid for")
        self.levels[noise_multiplier] -= 1


@dataclass(frozen=True)
class NoisyUpdate:
    """The differentially private output of a step; everything made from it is free post-processing.

    Attributes:
        gradient: parameter name -> (clipped sum + noise) / expected units.
        noisy_count: centred count of units below the clip norm, plus noise; None where C does not adapt.
        count_noise_std: standard deviation of the noise in ``noisy_count``.
    """

    gradient: dict[str, torch.Tensor]
    noisy_count: float | None
    count_noise_std: float


@dataclass(frozen=True)
class Mechanism:
    """Sampler, clipper, noise and event of every step of one run (calibrated privacy plan inside)."""

    plan: PrivacyPlan
    declared_units: Mapping[str, int]
    base_noise_multiplier: float
    schedule: NoiseSchedule

    @property
    def is_private(self) -> bool:
        return self.plan.is_private

    def noise_multiplier_at(self, step: int) -> float:
        """Joint noise multiplier z of a step: what the ledger says."""
        return self.schedule.noise_multiplier_at(step, self.base_noise_multiplier)

    def draw(self, units: Sequence[str], site: str, step: int, randomness: Randomness) -> list[str]:
        return poisson_draw(units, self.plan.sampling_rate, randomness.draws(site, step))

    def expected_units(self, site: str) -> float:
        """q times the declared number of units: the constant that sums are divided by, never the drawn size."""
        number = sum(self.declared_units.values()) if site == ALL_SITES else self.declared_units[site]
        return self.plan.sampling_rate * number

    def clip_rule(self, clip_norm: float) -> ClipRule:
        method = self.plan.clipping.method
        if method == "none":
            return NoClip()
        return AutoClip(self.plan.clipping.stabiliser) if method == "auto_s" else NormClip(clip_norm)

    def authorise(self, ledger: Ledger, first_step: int, steps: int, *, round_index: int, attempt: int) -> Permit:
        """Pay for ``steps`` steps: check the budget, write the ledger, and hand out the permit to take them.

        Raises BudgetExhaustedError when the ledger with these steps would exceed the target epsilon; nothing is
        written then.
        """
        if not self.is_private:
            return Permit()
        levels = self.schedule.levels(self.base_noise_multiplier, first_step, steps)
        wanted = [accounting.poisson_gaussian(self.plan.sampling_rate, z, n) for z, n in levels]
        self._check_budget([*ledger.events(), *wanted])
        for event in wanted:
            ledger.append(event, round_index=round_index, attempt=attempt)
        return Permit(Counter({z: sum(n for level, n in levels if level == z) for z, _ in levels}))

    def release(self, summed: ClippedSum, permit: Permit, site: str, step: int, randomness: Randomness) -> NoisyUpdate:
        """Clipped sum -> noisy mean gradient. Consumes ``summed`` (its tensors become the update).

        Args:
            summed: output of a gradient engine; may be of an empty draw, which is a step like any other.
            permit: from `authorise`; one step of it is used up.
            site: whose declared number of units gives the divisor.
        """
        expected_units = self.expected_units(site)
        if not self.is_private:
            return NoisyUpdate(_divided(summed.total, expected_units), None, 0.0)
        z = self.noise_multiplier_at(step)
        permit.use(z)
        generator = randomness.noise(site, step)
        noisy_count, count_noise, gradient_z = None, 0.0, z
        if self.plan.clipping.method == "percentile":
            count_noise = self.plan.clipping.count_noise_ratio * z
            gradient_z = gradient_noise_multiplier(z, count_noise)
            noisy_count = summed.centred_count + count_noise * float(generator.standard_normal(dtype=np.float64))
        for tensor in summed.total.values():
            add_gaussian_(tensor, gradient_z, generator)
        return NoisyUpdate(_divided(summed.total, expected_units), noisy_count, count_noise)

    def adapted_clip_norm(
        self, clip_norm: float, noisy_count: float, count_noise_std: float, expected_units: float
    ) -> float:
        """The next C of the whole federation, from the noisy counts of all sites (post-processing)."""
        if self.plan.clipping.method != "percentile":
            return clip_norm
        clipping = self.plan.clipping
        return updated_clip_norm(
            clip_norm,
            noisy_count,
            count_noise_std,
            expected_units,
            quantile=clipping.quantile,
            max_log_step_noise=clipping.max_log_step_noise,
            limits=(clipping.clip_norm_min, clipping.clip_norm_max),
        )

    def largest_block(self, steps: int) -> dict[str, object]:
        """The costliest line that a block of this many steps can write: bound for a line torn by a crash."""
        return accounting.poisson_gaussian(self.plan.sampling_rate, self._lowest_noise(), steps)

    def _lowest_noise(self) -> float:
        return self.noise_multiplier_at(self.plan.steps - 1)

    def _check_budget(self, events: Sequence[accounting.Event]) -> None:
        if self._within_planned_counts(events):
            return  # covered by the calibration, no need to compose again
        spent = accounting.epsilon(events, self.plan.delta)
        if spent > self.plan.epsilon:
            raise BudgetExhaustedError(
                f"the next steps would raise epsilon to {spent:.4g}, above the target {self.plan.epsilon:g}; "
                "the run stops here and keeps its checkpoint"
            )

    def _within_planned_counts(self, events: Sequence[accounting.Event]) -> bool:
        """Whether the events are the planned steps plus at most the reserve, which was priced at the lowest noise."""
        planned = Counter({z: 0 for z, _ in self.schedule.levels(self.base_noise_multiplier)})
        for z, n in self.schedule.levels(self.base_noise_multiplier):
            planned[z] += n
        taken: Counter[float] = Counter()
        for event in events:
            if event["event"] == "gaussian" or event["sampling_rate"] != self.plan.sampling_rate:
                return False
            taken[event["noise_multiplier"]] += event["steps"]
        if any(z not in planned for z in taken):
            return False
        return sum(max(0, n - planned[z]) for z, n in taken.items()) <= self.plan.reserve_steps


def calibrated(plan: PrivacyPlan) -> PrivacyPlan:
    """The plan with its noise multiplier: the declared one, or the smallest that keeps steps and reserve within
    (epsilon, delta)."""
    if not plan.is_private or plan.noise_multiplier is not None:
        return plan
    z = accounting.calibrate(lambda base: _planned_events(plan, base), plan.epsilon, plan.delta)
    return plan.model_copy(update={"noise_multiplier": z})


def make(plan: PrivacyPlan, fold: str | int) -> Mechanism:
    """The mechanism of a plan for one fold; calibrates it if it has no noise multiplier, and checks it if it has one.

    Raises PrivacyRefusedError when the plan's noise does not keep its own epsilon.
    """
    ready = calibrated(plan)
    base = ready.noise_multiplier if ready.is_private else 1.0
    assert base is not None
    if ready.is_private:
        planned = accounting.epsilon(_planned_events(ready, base), ready.delta)
        if planned > ready.epsilon:
            raise PrivacyRefusedError(
                f"privacy plan: noise_multiplier {base} over {ready.steps} + {ready.reserve_steps} steps means epsilon "
                f"{planned:.4g}, above the plan's {ready.epsilon:g}; set it to null to have it calibrated"
            )
    return Mechanism(ready, plan.units_at(fold), base, _schedule(ready))


def _schedule(plan: PrivacyPlan) -> NoiseSchedule:
    return NoiseSchedule(plan.steps, plan.noise_decay.plateaus, plan.noise_decay.final_ratio)


def _planned_events(plan: PrivacyPlan, base: float) -> list[accounting.Event]:
    schedule = _schedule(plan)
    levels = schedule.levels(base)
    if plan.reserve_steps:
        levels.append((schedule.noise_multiplier_at(plan.steps - 1, base), plan.reserve_steps))
    return [accounting.poisson_gaussian(plan.sampling_rate, z, n) for z, n in levels]


def _divided(total: dict[str, torch.Tensor], expected_units: float) -> dict[str, torch.Tensor]:
    for tensor in total.values():
        tensor.div_(expected_units)
    return total
