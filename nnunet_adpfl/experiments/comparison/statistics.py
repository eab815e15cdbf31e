"""Figures of a comparison, with intervals. Runs with the same seed share their start, and all methods score the same patients,
so seeds and patients are drawn together for all methods (paired bootstrap; Efron and Tibshirani 1993, chapter 8). A bootstrap of
few seeds gives too narrow intervals, so these are widened as Student's t is against the normal distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95
LAST_SHARE = 0.2  # of the rounds: over which a run should have settled
Scores = np.ndarray  # Dice, shape (seeds, units)


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval; None where it cannot be told."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return {"value": round(self.value, 4), "ci95": [round(self.low, 4), round(self.high, 4)]}


def gap_closed(lower: Scores, upper: Scores, method: Scores, *, seed: int = 0) -> dict[str, Any]:
    """Share of the gap between two methods (DP-FL and NP-FL) that a third one closes: (method - lower) / (upper - lower).

    Args:
        lower, upper, method: Dice of the same seeds and units (patients or lesions).

    Returns ``{"share", "ci95", "gap", "gap_ci95", "seeds", "units"}``; share and ci95 are null where the gap's interval is
    not above 0: a share of nothing, or of less, says nothing.
    """
    gaps, gains = upper - lower, method - lower
    gap = _widened(float(gaps.mean()), _resampled_means(gaps, seed), gaps)
    found: dict[str, Any] = {"share": None, "ci95": None, "gap": round(gap.value, 4), "gap_ci95": gap.as_dict()["ci95"]}
    if gap.low > 0:
        means = [_resampled_means(values, seed) for values in (gains, gaps)]
        share = float(gains.mean() / gaps.mean())
        closed = _widened(share, means[0] / means[1], gains - share * gaps)  # the share's error, but for the gap as its unit
        found |= {"share": round(share, 4), "ci95": closed.as_dict()["ci95"]}
    return {**found, "seeds": gaps.shape[0], "units": gaps.shape[1]}


def deviation_ratio(method: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Standard deviation over seeds of one method's figures over that of another's; null with fewer than three seeds."""
    return _ratio(method, baseline, lambda values: values.std(axis=-1, ddof=1))


def mean_ratio(method: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds of one method's figures over that of another's."""
    return _ratio(method, baseline, lambda values: values.mean(axis=-1))


def _ratio(method: Sequence[float], baseline: Sequence[float], figure: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Both in the order of the same seeds, which are drawn together. Draws with a denominator of zero count as infinite."""
    first, second = np.asarray(method, dtype=float), np.asarray(baseline, dtype=float)
    if len(first) < 3 or len(first) != len(second):
        return {"value": None, "ci95": None}
    draws = np.random.default_rng(0).integers(0, len(first), (RESAMPLES, len(first)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(figure(first[draws]) / figure(second[draws]), nan=np.inf, posinf=np.inf)
        low, high = np.quantile(ratios, _TAILS, method="inverted_cdf")
        value = float(figure(first) / figure(second))
    known = [None if math.isinf(end) else round(float(end), 4) for end in (low, high)]
    return {"value": round(value, 4) if math.isfinite(value) else None, "ci95": known}


def rounds_to(curve: Sequence[float], level: float) -> int | None:
    """First round (from 1) from which the curve's mean of three rounds is at this level; None where it never is."""
    values = np.asarray(curve, dtype=float)
    if not len(values):
        return None
    padded = np.concatenate([values[:1], values, values[-1:]])
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    reached = np.flatnonzero(smooth >= level)
    return int(reached[0]) + 1 if len(reached) else None


def last_rounds_deviation(curve: Sequence[float]) -> float | None:
    """Standard deviation of the curve over its last rounds around their straight line: what is left of the noise."""
    number = max(3, round(LAST_SHARE * len(curve)))
    last = np.asarray(curve[-number:], dtype=float)
    if len(last) < 3:
        return None
    times = np.arange(len(last))
    rest = last - np.polyval(np.polyfit(times, last, 1), times)
    return float(np.sqrt((rest**2).sum() / (len(last) - 2)))


def spread(per_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; no deviation of a single one."""
    values = np.array([per_seed[seed] for seed in sorted(per_seed)])
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std_seeds": deviation}


_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def _widened(value: float, resampled: np.ndarray, errors: Scores) -> Interval:
    """Bootstrap interval of a figure, its distances from the figure widened for the number of seeds and of units.

    The variance of the mean of ``errors`` has a part of seeds and one of units; a bootstrap takes (n - 1) / n of each, and
    the normal distribution for Student's t with as many degrees of freedom as both give (Satterthwaite 1946). One seed has no
    variance that could be told: the interval is then about units alone.
    """
    numbers = errors.shape
    parts = [errors.mean(axis=1 - axis).var(ddof=1) / number if number > 1 else 0.0 for axis, number in enumerate(numbers)]
    low, high = np.quantile(resampled, _TAILS)
    total = sum(parts)
    if total > 0:
        freedom = total**2 / sum(part**2 / (number - 1) for part, number in zip(parts, numbers, strict=True) if part)
        taken = sum(part * (number - 1) / number for part, number in zip(parts, numbers, strict=True))
        factor = stats.t.ppf(_TAILS[1], freedom) / stats.norm.ppf(_TAILS[1]) * math.sqrt(total / taken)
        low, high = value + factor * (low - value), value + factor * (high - value)
    return Interval(value, float(low), float(high))


def _resampled_means(values: Scores, seed: int) -> np.ndarray:
    """Means over seeds and units that were drawn with replacement; the same draws for equal shapes and seed.

    The mean over a drawn table is the weighted mean of the table, weighted by how often its rows and columns were drawn.
    """
    seeds, units = values.shape
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    columns = generator.multinomial(units, np.full(units, 1 / units), RESAMPLES) / units
    return np.einsum("rs,su,ru->r", rows, values, columns, optimize=True)
