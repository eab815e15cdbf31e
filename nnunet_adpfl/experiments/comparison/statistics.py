"""Figures of a comparison, with intervals. Runs with the same seed share their start, and all methods score the same cases,
so seeds and cases are drawn together for all methods (paired bootstrap; Efron and Tibshirani 1993, chapter 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
LAST_SHARE = 0.2  # of the rounds: over which a run should have settled
Scores = np.ndarray  # Dice, shape (seeds, cases)


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
        lower, upper, method: Dice of the same seeds and cases.

    Returns ``{"share", "ci95", "gap", "gap_ci95", "seeds", "cases"}``; share and ci95 are null where the gap's interval holds
    0: a share of nothing says nothing.
    """
    gaps, gains = upper - lower, method - lower
    gap = _interval(gaps, np.mean, seed)
    found: dict[str, Any] = {"share": None, "ci95": None, "gap": round(gap.value, 4), "gap_ci95": gap.as_dict()["ci95"]}
    if not gap.low <= 0 <= gap.high:
        means = [_resampled_means(values, seed) for values in (gains, gaps)]
        shares = means[0] / means[1]
        low, high = np.quantile(shares, _TAILS)
        found |= {"share": round(float(gains.mean() / gaps.mean()), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}
    return {**found, "seeds": gaps.shape[0], "cases": gaps.shape[1]}


def deviation_ratio(method: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Standard deviation of one method's figures over that of another's, by seeds; null with fewer than three."""
    first, second = np.asarray(method), np.asarray(baseline)
    if len(first) < 3 or len(second) < 3:
        return {"value": None, "ci95": None}
    generator = np.random.default_rng(seed)
    draws = [values[generator.integers(0, len(values), (RESAMPLES, len(values)))].std(axis=1, ddof=1) for values in (first, second)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = draws[0] / draws[1]
    low, high = np.quantile(ratios[np.isfinite(ratios)], _TAILS)
    return Interval(float(first.std(ddof=1) / second.std(ddof=1)), float(low), float(high)).as_dict()


def mean_ratio(method: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Mean of one method's figures over that of another's, resampled by seeds."""
    first, second = np.asarray(method), np.asarray(baseline)
    generator = np.random.default_rng(seed)
    draws = [values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1) for values in (first, second)]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.quantile(draws[0] / draws[1], _TAILS)
        return Interval(float(first.mean() / second.mean()), float(low), float(high)).as_dict()


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


def _interval(values: Scores, figure: Callable[[Scores], Any], seed: int) -> Interval:
    low, high = np.quantile(_resampled_means(values, seed), _TAILS)
    return Interval(float(figure(values)), float(low), float(high))


def _resampled_means(values: Scores, seed: int) -> np.ndarray:
    """Means over seeds and cases that were drawn with replacement; the same draws for equal shapes and seed.

    The mean over a drawn table is the weighted mean of the table, weighted by how often its rows and columns were drawn.
    """
    seeds, cases = values.shape
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    columns = generator.multinomial(cases, np.full(cases, 1 / cases), RESAMPLES) / cases
    return np.einsum("rs,sc,rc->r", rows, values, columns, optimize=True)
