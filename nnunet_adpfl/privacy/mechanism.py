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
    bounded_sum,
    gradient_noise_multiplier,
    updated_clip_norm,
)
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.noise import Randomness, add_gaussian_, noisy_number
from nnunet_adpfl.privacy.plan import PrivacyPlan
from nnunet_adpfl.privacy.sampling import poisson_draw
from nnunet_adpfl.privacy.schedule import NoiseSchedule, rounded_up

ALL_SITES = "all-sites"  # name of the one "site" of a central run, where all units train together


@dataclass
class Permit:
    """Steps that the ledger has paid for, each with its noise multiplier. A release uses one up; there is none without."""

    noise_multipliers: dict[int, float] = field(default_factory=dict)  # step -> joint z

    def use(self, step: int) -> float:
        if step not in self.noise_multipliers:
            raise PrivacyRefusedError("a step was about to be released that the ledger has not paid for")
        return self.noise_multipliers.pop(step)


@dataclass(frozen=True)
class NoisyUpdate:
    """The differentially private output of a step; everything made from it is free post-processing.

    Attributes:
        gradient: parameter name -> (clipped sum + noise) / expected units.
        noisy_count: centred count of units below the clip norm, plus noise; None where C does not adapt.
        count_noise_std: standard deviation of the noise in ``noisy_count``.
        gradient_noise_std: standard deviation of the noise on every coordinate of ``gradient``.
    """

    gradient: dict[str, torch.Tensor]
    noisy_count: float | None
    count_noise_std: float
    gradient_noise_std: float = 0.0


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

    def noise_levels(self, first_step: int, steps: int, level: int = 0) -> list[tuple[float, int]]:
        """(joint noise multiplier z, number of steps) of the steps in order: what the ledger will say.

        Args:
            level: how often the noise was lowered so far, in a data-driven run; 0 in a declared one.
        """
        if not self.plan.is_data_driven:
            if level:
                raise PrivacyRefusedError(f"noise level {level} was asked for, but the privacy plan declares the noise of every step")
            return self.schedule.levels(self.base_noise_multiplier, first_step, steps)
        if not 0 <= level < self.plan.adaptation.levels:
            raise PrivacyRefusedError(
                f"noise level {level} was asked for, the privacy plan has the levels 0 to {self.plan.adaptation.levels - 1}"
            )
        return [(rounded_up(self.base_noise_multiplier * self.plan.adaptation.noise_factor**level), steps)]

    def draw(self, units: Sequence[str], site: str, step: int, randomness: Randomness) -> list[str]:
        return poisson_draw(units, self.plan.sampling_rate, randomness.draws(site, step))

    def noise_multiplier_at(self, step: int) -> float:
        """z of a step at the first level."""
        return self.noise_levels(step, 1)[0][0]

    def expected_units(self, site: str) -> float:
        """q times the declared number of units: the constant that sums are divided by, never the drawn size."""
        number = sum(self.declared_units.values()) if site == ALL_SITES else self.declared_units[site]
        return self.plan.sampling_rate * number

    def clip_rule(self, clip_norm: float) -> ClipRule:
        method = self.plan.clipping.method
        if method == "none":
            return NoClip()
        return AutoClip(self.plan.clipping.stabiliser) if method == "auto_s" else NormClip(clip_norm)

    def authorise(
        self, ledger: Ledger, first_step: int, steps: int, *, round_index: int, attempt: int, level: int = 0
    ) -> Permit:
        """Pay for ``steps`` steps: check the budget, write the ledger, and hand out the permit to take them.

        Args:
            level: see `noise_levels`.

        Raises BudgetExhaustedError when the ledger with these steps would exceed the target epsilon; nothing is
        written then.
        """
        if not self.is_private:
            return Permit()
        levels = self.noise_levels(first_step, steps, level)
        wanted = [accounting.poisson_gaussian(self.plan.sampling_rate, z, n) for z, n in levels]
        self._check_budget([*ledger.events(), *wanted])
        for event in wanted:
            ledger.append(event, round_index=round_index, attempt=attempt)
        return Permit(dict(enumerate((z for z, n in levels for _ in range(n)), start=first_step)))

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
        z = permit.use(step)
        generator = randomness.noise(site, step)
        noisy_count, count_noise, gradient_z = None, 0.0, z
        if self.plan.clipping.method == "percentile":
            count_noise = self.plan.clipping.count_noise_ratio * z
            gradient_z = gradient_noise_multiplier(z, count_noise)
            noisy_count = noisy_number(summed.centred_count, count_noise, generator)
        for tensor in summed.total.values():
            add_gaussian_(tensor, gradient_z, generator, self.plan.noise_terms)
        return NoisyUpdate(_divided(summed.total, expected_units), noisy_count, count_noise, gradient_z / expected_units)

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

    def planned_events(self) -> list[accounting.Event]:
        """All steps of the plan and its reserve: no run of a declared plan spends more, whatever happens on the way."""
        return _planned_events(self.plan, self.base_noise_multiplier, fingerprint=False)

    def largest_block(self, steps: int) -> dict[str, object]:
        """The costliest line that a block of this many steps can write: bound for a line torn by a crash."""
        return accounting.poisson_gaussian(self.plan.sampling_rate, self._lowest_noise(), steps)

    def _lowest_noise(self) -> float:
        last_level = self.plan.adaptation.levels - 1 if self.plan.is_data_driven else 0
        return self.noise_levels(self.plan.steps - 1, 1, last_level)[0][0]

    def _check_budget(self, events: Sequence[accounting.Event]) -> None:
        if not self.plan.is_data_driven:
            if self._within_planned_counts(events):
                return  # covered by the calibration, no need to compose again
            # Whatever epsilon would still allow: which steps are repeated, and how often, would be chosen on the way, and
            # no composition of declared events covers that (rule 10).
            raise BudgetExhaustedError(
                f"the next steps are beyond the {self.plan.steps} planned ones and the reserve of {self.plan.reserve_steps} that "
                f"the target epsilon {self.plan.epsilon:g} pays for; the run stops here and keeps its checkpoint"
            )
        spent = _epsilon(self.plan, events)
        if spent > self.plan.epsilon:
            raise BudgetExhaustedError(
                f"the next steps would raise epsilon to {spent:.4g}, above the target {self.plan.epsilon:g}; "
                "the run stops here and keeps its checkpoint"
            )

    def _within_planned_counts(self, events: Sequence[accounting.Event]) -> bool:
        """Whether the events are the planned ones plus at most the reserve, which was priced at the lowest noise."""
        levels = self.schedule.levels(self.base_noise_multiplier)
        planned = _counted([accounting.poisson_gaussian(self.plan.sampling_rate, z, n) for z, n in levels])
        planned += _counted(fingerprint_events(self.plan))
        taken = _counted(events)
        if any(event not in planned or (event[0] == "gaussian" and n > planned[event]) for event, n in taken.items()):
            return False
        return sum(max(0, n - planned[event]) for event, n in taken.items()) <= self.plan.reserve_steps


def released_sum(vectors: np.ndarray, permit: Permit, generator: np.random.Generator) -> np.ndarray:
    """Sum over all units, plus the noise that was paid for, on every coordinate: one Gaussian event (rule 13).

    Args:
        vectors: one for each unit, float64 of shape (units, coordinates).
        permit: used up; its step 0 has the noise multiplier.
    """
    z = permit.use(0)
    total = torch.from_numpy(bounded_sum(vectors))
    add_gaussian_(total, z, generator, terms=4)  # costs nothing at this size
    return np.asarray(total.numpy())


def calibrated(plan: PrivacyPlan) -> PrivacyPlan:
    """The plan with its noise multiplier: the declared one, or the smallest that keeps steps and reserve within
    (epsilon, delta). Of a data-driven plan that is the noise it starts with, and the filter's order is chosen with it."""
    if not plan.is_private:
        return plan
    if plan.is_data_driven and plan.adaptation.order is None:
        order = accounting.best_filter_order(
            lambda base: _planned_events(plan, base), plan.epsilon, plan.delta, plan.noise_multiplier
        )
        plan = plan.model_copy(update={"adaptation": plan.adaptation.model_copy(update={"order": order})})
    if plan.noise_multiplier is not None:
        return plan
    z = accounting.calibrate(
        lambda base: _planned_events(plan, base), plan.epsilon, plan.delta, lambda events, _: _epsilon(plan, events)
    )
    return plan.model_copy(update={"noise_multiplier": z})


def make(plan: PrivacyPlan, fold: str | int) -> Mechanism:
    """The mechanism of a plan for one fold; calibrates it if it has no noise multiplier, and checks it if it has one.

    Raises PrivacyRefusedError when the plan's noise does not keep its own epsilon.
    """
    ready = calibrated(plan)
    base = ready.noise_multiplier if ready.is_private else 1.0
    assert base is not None
    if ready.is_private:
        planned = _epsilon(ready, _planned_events(ready, base))
        if planned > ready.epsilon:
            raise PrivacyRefusedError(
                f"privacy plan: noise_multiplier {base} over {ready.steps} + {ready.reserve_steps} steps means epsilon "
                f"{planned:.4g}, above the plan's {ready.epsilon:g}; set it to null to have it calibrated"
            )
    return Mechanism(ready, plan.units_at(fold), base, _schedule(ready))


def fingerprint_events(plan: PrivacyPlan) -> list[accounting.Event]:
    """What the plan itself cost: the noisy fingerprint, if it was made from one."""
    release = plan.fingerprint_release
    return [] if release is None else [accounting.gaussian(release.noise_multiplier)]


def _epsilon(plan: PrivacyPlan, events: Sequence[accounting.Event]) -> float:
    """What is held against the target: PLD of declared events, the filter's order of those chosen on the way (rule 10)."""
    if plan.is_data_driven:
        return accounting.epsilon_rdp(events, plan.delta, plan.adaptation.order)
    return accounting.epsilon(events, plan.delta)


def _schedule(plan: PrivacyPlan) -> NoiseSchedule:
    return NoiseSchedule(plan.steps, plan.noise_decay.plateaus, plan.noise_decay.final_ratio)


def _planned_events(plan: PrivacyPlan, base: float, *, fingerprint: bool = True) -> list[accounting.Event]:
    schedule = _schedule(plan)
    levels = schedule.levels(base)
    if plan.reserve_steps:
        levels.append((schedule.noise_multiplier_at(plan.steps - 1, base), plan.reserve_steps))
    steps = [accounting.poisson_gaussian(plan.sampling_rate, z, n) for z, n in levels]
    return [*(fingerprint_events(plan) if fingerprint else ()), *steps]


def _counted(events: Sequence[accounting.Event]) -> Counter[tuple[str, float, float]]:
    """(gaussian or poisson, sampling rate, noise multiplier) -> steps; a recovered line is what it announced."""
    counts: Counter[tuple[str, float, float]] = Counter()
    for event in events:
        kind = "gaussian" if event["event"] == "gaussian" else "poisson"
        counts[kind, event.get("sampling_rate", 1.0), event["noise_multiplier"]] += event["steps"]
    return counts


def _divided(total: dict[str, torch.Tensor], expected_units: float) -> dict[str, torch.Tensor]:
    for tensor in total.values():
        tensor.div_(expected_units)
    return total
