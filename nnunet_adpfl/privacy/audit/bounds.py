"""From an adversary's statistics to a lower bound on epsilon that holds with a chosen confidence.

The adversary says "in" where its statistic exceeds a threshold. Its two error rates bound epsilon, because every
(epsilon, delta) mechanism keeps ``FNR >= 1 - delta - exp(epsilon) FPR`` (Kairouz, Oh, Viswanath 2015), and every mu-GDP
one keeps ``FNR >= Phi(Phi^-1(1 - FPR) - mu)`` (Dong, Roth, Su 2019). The threshold is chosen on the first half of the
sample, the rates come from the second, so the choice costs no confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import optimize, special, stats

from nnunet_adpfl.privacy import accounting

Sample = npt.NDArray[np.float64]
MAX_CANDIDATES = 200
_LARGEST_NOISE, _SMALLEST_NOISE = 256.0, 0.2  # between them the noise multiplier of a subsampled mechanism is sought
_INTERVAL = 1e-2  # coarser than the accountant's: faster, and an error is on the side of a lower bound that is too low
_EPSILONS = np.concatenate([np.linspace(0.0, 20.0, 201), np.linspace(21.0, 120.0, 100)])


@dataclass(frozen=True)
class ErrorRates:
    """Upper bounds on the adversary's error rates, both valid at once with the confidence that was asked for.

    Attributes:
        threshold: the adversary says "in" above it.
        false_positive: P(says in | out).
        false_negative: P(says out | in).
    """

    threshold: float
    false_positive: float
    false_negative: float

    @property
    def mu(self) -> float:
        """Lower bound on mu of Gaussian DP; 0 where the adversary is not shown to be better than guessing."""
        if max(self.false_positive, self.false_negative) >= 1:
            return 0.0
        return max(0.0, -float(special.ndtri(self.false_positive) + special.ndtri(self.false_negative)))


def clopper_pearson_upper(errors: npt.ArrayLike, trials: int, failure: float) -> Sample:
    """Exact upper bound on a rate: exceeded by the truth with probability ``failure`` at most."""
    counts = np.asarray(errors, dtype=np.float64)
    inner = special.betaincinv(counts + 1, np.maximum(trials - counts, 1e-9), 1 - failure)
    return np.asarray(np.where(counts >= trials, 1.0, inner))


def error_rates(out: Sample, inside: Sample, failure: float) -> ErrorRates:
    """Threshold from the first half of each sample, bounds on the rates from the second.

    Args:
        out: statistics of independent releases without the canary, shape (n,).
        inside: the same with it, shape (n,).
        failure: probability that any of both bounds is wrong.
    """
    half_out, half_in = len(out) // 2, len(inside) // 2
    threshold = _best_threshold(out[:half_out], inside[:half_in], failure / 2)
    return _rates_at(threshold, np.sort(out[half_out:]), np.sort(inside[half_in:]), failure / 2)[0]


def _best_threshold(out: Sample, inside: Sample, failure: float) -> float:
    pooled = np.sort(np.concatenate([out, inside]))
    places = np.unique(np.linspace(0, len(pooled) - 2, MAX_CANDIDATES).astype(int))
    candidates = (pooled[places] + pooled[places + 1]) / 2
    rates = _rates_at(candidates, np.sort(out), np.sort(inside), failure)
    return max(rates, key=lambda rate: (rate.mu, -rate.false_positive - rate.false_negative)).threshold


def _rates_at(thresholds: float | Sample, out: Sample, inside: Sample, failure: float) -> list[ErrorRates]:
    """``out`` and ``inside`` are sorted."""
    points = np.atleast_1d(thresholds)
    positive = clopper_pearson_upper(len(out) - np.searchsorted(out, points, side="right"), len(out), failure)
    negative = clopper_pearson_upper(np.searchsorted(inside, points, side="right"), len(inside), failure)
    return [ErrorRates(float(t), float(p), float(n)) for t, p, n in zip(points, positive, negative, strict=True)]


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta of a mu-GDP mechanism at epsilon (Dong, Roth, Su 2019, corollary 2.13)."""
    second = math.exp(min(epsilon + float(special.log_ndtr(-epsilon / mu - mu / 2)), 0.0))
    return float(special.ndtr(-epsilon / mu + mu / 2)) - second


def gaussian_epsilon(mu: float, delta: float) -> float:
    """epsilon of a mu-GDP mechanism at delta: the inverse of `gaussian_delta`."""
    if mu <= 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    largest = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    return float(optimize.brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, largest))


def assumption_free_epsilon(rates: ErrorRates, delta: float) -> float:
    """Lower bound on epsilon that holds for any mechanism whatever: ``log((1 - delta - FNR) / FPR)``, or with the rates
    exchanged."""
    pairs = (rates.false_positive, rates.false_negative), (rates.false_negative, rates.false_positive)
    found = [math.log((1 - delta - second) / first) for first, second in pairs if second < 1 - delta and first > 0]
    return max(0.0, *found)


def subsampled_epsilon(rates: ErrorRates, sampling_rate: float, steps: int, delta: float) -> float:
    """Lower bound on epsilon of ``steps`` subsampled Gaussians of equal noise (Nasr et al. 2023, section 4).

    The largest noise multiplier that the error rates rule out is sought; the mechanism has less noise than that, so at
    least the epsilon that belongs to it. 0 where the rates rule nothing out.
    """
    if not _rules_out(rates, sampling_rate, _LARGEST_NOISE, steps):
        return 0.0
    allowed, excluded = math.log(_SMALLEST_NOISE), math.log(_LARGEST_NOISE)
    while excluded - allowed > 3e-3:
        middle = (allowed + excluded) / 2
        if _rules_out(rates, sampling_rate, math.exp(middle), steps):
            excluded = middle
        else:
            allowed = middle
    return accounting.epsilon([accounting.poisson_gaussian(sampling_rate, math.exp(excluded), steps)], delta)


def _rules_out(rates: ErrorRates, sampling_rate: float, noise_multiplier: float, steps: int) -> bool:
    """Whether the rates are smaller than those that a mechanism with this noise allows, at some epsilon."""
    single: Any = pld.from_gaussian_mechanism(noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=_INTERVAL)
    deltas = np.asarray(single.self_compose(steps).get_delta_for_epsilon(_EPSILONS))
    least = 1 - deltas - np.exp(_EPSILONS) * rates.false_positive
    least_exchanged = 1 - deltas - np.exp(_EPSILONS) * rates.false_negative
    return bool((rates.false_negative < least).any() or (rates.false_positive < least_exchanged).any())


def mean_shift(out: Sample, inside: Sample, failure: float) -> tuple[float, float, float]:
    """mu from all of the sample: (estimate, low, high). An ESTIMATE: it takes the statistics to be normal with equal
    deviations, which a faulty mechanism need not give."""
    deviation = math.sqrt((float(out.var(ddof=1)) + float(inside.var(ddof=1))) / 2)
    if deviation == 0:
        return 0.0, 0.0, 0.0
    mu = float(inside.mean() - out.mean()) / deviation
    error = math.sqrt(1 / len(out) + 1 / len(inside) + mu**2 / (2 * (len(out) + len(inside))))
    width = float(stats.norm.isf(failure / 2)) * error
    return mu, mu - width, mu + width
