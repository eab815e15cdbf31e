"""The audit of one release: sensitivity, noise and the canary's attack on one clipped sum, joined to one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_adpfl.privacy.audit import bounds, releases
from nnunet_adpfl.privacy.audit.bounds import ErrorRates, Sample
from nnunet_adpfl.privacy.audit.canary import ALL_TENSORS, Difference
from nnunet_adpfl.privacy.audit.releases import Arm, Observer
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.privacy.noise import Randomness

SENSITIVITY_TOLERANCE = 1e-5  # float32 rounding of the sums
FAMILY_WISE = 1e-6  # chance that a correct mechanism fails any of the tests of its noise
LEAST_POWER = 0.4  # the lower bound on mu has to reach this share of the claimed mu, or the audit was too weak


@dataclass
class ReleaseAudit:
    """What the audit of one clipped sum found.

    Attributes:
        statistics: the adversary's statistic without and with the canary; the claim is N(0, 1) and N(1/z, 1).
        rates: bounds on its error rates.
        violations: sentences, empty where everything is consistent with the claim.
        figures: all of it as JSON.
    """

    statistics: tuple[Sample, Sample]
    rates: ErrorRates
    violations: list[str]
    figures: dict[str, Any] = field(default_factory=dict)


def audit_release(
    mechanism: Mechanism,
    site: str,
    without: ClippedSum,
    changes: Mapping[str, Difference],
    *,
    noise_multiplier: float,
    claimed_epsilon: float,
    delta: float,
    number: int,
    failure: float,
    randomness: Randomness,
) -> ReleaseAudit:
    """Attack the release of one clipped sum.

    Args:
        without: clipped sum of the other units.
        changes: canary -> what it changes; the strongest one is released, the one over all tensors where all keep the
            claimed sensitivity.
        noise_multiplier: z of the ledger's event.
        claimed_epsilon: epsilon of that event at ``delta``.
        number: releases in each world.
        failure: chance that the lower bound is above the truth.
    """
    chosen = _strongest(mechanism, changes, noise_multiplier)
    observer = Observer(mechanism, site, without, changes[chosen], noise_multiplier)
    arms = observer.watch(False, number, randomness), observer.watch(True, number, randomness)
    samples = releases.statistics(observer, arms[0].projections, arms[1].projections)
    rates = bounds.error_rates(*samples, failure)
    figures = _bound_figures(rates, samples, noise_multiplier, delta, failure)
    figures |= {"releases": number, "canary": chosen, "power": _power(observer, arms, rates, failure)}
    figures |= _component_figures(observer, arms, changes)
    violations = _violations(figures, claimed_epsilon)
    return ReleaseAudit(samples, rates, violations, figures)


def _strongest(mechanism: Mechanism, changes: Mapping[str, Difference], noise_multiplier: float) -> str:
    claimed = releases.ClaimedNoise.of(mechanism, noise_multiplier)
    sensitivities = {name: claimed.sensitivity(change) for name, change in changes.items()}
    worst = max(sensitivities, key=sensitivities.__getitem__)
    return worst if sensitivities[worst] > 1 + SENSITIVITY_TOLERANCE else ALL_TENSORS


def _bound_figures(
    rates: ErrorRates, samples: tuple[Sample, Sample], noise_multiplier: float, delta: float, failure: float
) -> dict[str, Any]:
    mu, low, high = bounds.mean_shift(*samples, failure)
    return {
        "epsilon_lower_bound": max(bounds.gaussian_epsilon(rates.mu, delta), bounds.assumption_free_epsilon(rates, delta)),
        "epsilon_lower_bound_assumption_free": bounds.assumption_free_epsilon(rates, delta),
        "mu_claimed": 1 / noise_multiplier,
        "mu_lower_bound": rates.mu,
        "mu_estimate": {"value": mu, "low": low, "high": high, "note": "an estimate that takes normality for granted"},
        "false_positive_rate_upper": rates.false_positive,
        "false_negative_rate_upper": rates.false_negative,
        "threshold": rates.threshold,
    }


def _power(observer: Observer, arms: tuple[Arm, Arm], rates: ErrorRates, failure: float) -> dict[str, Any]:
    """Would half the noise have been noticed? The same releases with half of their noise, put to the same test."""
    shifts = observer.shifts
    halved = releases.with_noise_scaled(arms[0], 0 * shifts, 0.5), releases.with_noise_scaled(arms[1], shifts, 0.5)
    found = bounds.error_rates(*releases.statistics(observer, *halved), failure)
    claimed = 1 / observer.noise_multiplier
    return {
        "mu_lower_bound_with_half_the_noise": found.mu,
        "would_detect_half_the_noise": found.mu > claimed,
        "share_of_claimed_mu": rates.mu / claimed,
        "sufficient": rates.mu >= LEAST_POWER * claimed and found.mu > claimed,
    }


def _component_figures(observer: Observer, arms: tuple[Arm, Arm], changes: Mapping[str, Difference]) -> dict[str, Any]:
    """Tensor by tensor; figures of noise and of canaries alone, in which the other units cancel."""
    noise, shifts = releases.noise_tests(observer, arms), releases.shift_tests(observer, arms)
    rows = []
    for (name, size), expected in zip(observer.sizes.items(), observer.shifts, strict=True):
        ratio, p_value = noise[name]
        rows.append(
            {
                "tensor": name,
                "coordinates": size,
                "sensitivity": changes[name].norm if name in changes else None,
                "noise_ratio": ratio,
                "noise_p_value": p_value,
                "expected_shift": float(expected),
                "measured_shift": shifts[name][0],
                "shift_p_value": shifts[name][1],
            }
        )
    largest = max(observer.claimed.sensitivity(change) for change in changes.values())
    return {"sensitivity": largest, "independence_p_values": releases.independence_tests(arms), "per_tensor": rows}


def _violations(figures: Mapping[str, Any], claimed_epsilon: float) -> list[str]:
    found = []
    if figures["epsilon_lower_bound"] > claimed_epsilon:
        found.append(
            f"the adversary shows epsilon {figures['epsilon_lower_bound']:.3g}, above the claimed {claimed_epsilon:.3g}"
        )
    if figures["sensitivity"] > 1 + SENSITIVITY_TOLERANCE:
        found.append(f"a canary ({figures['canary']}) changes the release by {figures['sensitivity']:.6g} times the sensitivity")
    tests = 2 * len(figures["per_tensor"]) + len(figures["independence_p_values"])
    for row in figures["per_tensor"]:
        if row["noise_p_value"] < FAMILY_WISE / tests:
            found.append(f"{row['tensor']} has {row['noise_ratio']:.4g} times the claimed noise")
        if row["shift_p_value"] < FAMILY_WISE / tests:
            moved, allowed = row["measured_shift"], row["expected_shift"]
            found.append(f"the canary moves {row['tensor']} by {moved:.4g}, its clipped sum allows {allowed:.4g}")
    for pair, p_value in figures["independence_p_values"].items():
        if p_value < FAMILY_WISE / tests:
            found.append(f"the noise of {pair} is correlated")
    return found
