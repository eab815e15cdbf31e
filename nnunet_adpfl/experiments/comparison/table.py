"""From the runs of a comparison to the figures of its table: what `adpfl compare --json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from nnunet_adpfl.experiments.comparison import statistics
from nnunet_adpfl.experiments.comparison.methods import PUBLIC

_GUARANTEES = ("none", "formal_given_plan", "formal")  # the weakest of several holds
METRICS = ("dice", "hd95_mm", "nsd")
Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> content of result.json of each seed


def figures(runs: Runs) -> dict[str, Any]:
    """All figures of the table; see docs/comparison.md for each."""
    return {
        "methods": {name: _method(results) for name, results in runs.items()},
        "gap_closed": {"dice": _gaps(runs)},
        "stability": _stability(runs),
    }


def _method(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_seed = {int(result["seed"]): result for result in results}
    row: dict[str, Any] = {
        metric: statistics.spread({seed: result["mean"][metric] for seed, result in by_seed.items()}) for metric in METRICS
    }
    units = [fmean(values) for values in zip(*(result["dice_of_units"].values() for result in results), strict=True)]
    row["dice"]["std_units"] = float(np.std(units, ddof=1)) if len(units) > 1 else None
    for part in ("sites", "classes"):
        names = list(results[0][part])
        row[part] = {
            name: {metric: fmean(result[part][name][metric] for result in results) for metric in METRICS} for name in names
        }
    curves = [result["curve"] for result in results if result["curve"]]
    reached = [statistics.rounds_to(curve, 0.9 * curve[-1]) for curve in curves]
    deviations = [statistics.last_rounds_deviation(curve) for curve in curves]
    epsilons = [result["epsilon"] for result in results]
    return {
        **row,
        "seeds": sorted(by_seed),
        "rounds": len(curves[0]) if curves else None,
        "rounds_to_90": fmean(known) if (known := [number for number in reached if number is not None]) else None,
        "last_rounds_std": fmean(told) if (told := [value for value in deviations if value is not None]) else None,
        "epsilon": None if None in epsilons else max(epsilons),
        "guarantee": min((result["guarantee"] for result in results), key=_GUARANTEES.index),
        "not_covered": sorted({reason for result in results for reason in result["not_covered"]}),
        "tuned": results[0]["tuned"],
    }


def _gaps(runs: Runs) -> dict[str, Any]:
    """Shares of the DP-FL -> NP-FL gap: with the same start for all three, and of the full system against plain starts."""
    found = {}
    starts = {"same_start": "", "same_public_start": f"@{PUBLIC}"}
    for name, suffix in starts.items():
        trio = [f"{method}{suffix}" for method in ("dp-fl", "np-fl", "adp-fl")]
        if all(method in runs for method in trio):
            found[name] = _gap(runs, *trio)
    if all(method in runs for method in ("dp-fl", "np-fl", f"adp-fl@{PUBLIC}")):
        found["full_system"] = _gap(runs, "dp-fl", "np-fl", f"adp-fl@{PUBLIC}")
    return found


def _gap(runs: Runs, lower: str, upper: str, method: str) -> dict[str, Any]:
    tables = _same_seeds_and_units([runs[name] for name in (lower, upper, method)])
    return {**statistics.gap_closed(*tables), "of": [lower, upper, method]}


def _same_seeds_and_units(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[np.ndarray]:
    """Dice of the seeds and units that all groups have, (seeds, units) each."""
    by_seed = [{int(result["seed"]): result["dice_of_units"] for result in group} for group in groups]
    seeds = sorted(set.intersection(*(set(known) for known in by_seed)))
    units = sorted(set.intersection(*(set(known[seed]) for known in by_seed for seed in seeds)))
    return [np.array([[known[seed][unit] for unit in units] for seed in seeds]) for known in by_seed]


def _stability(runs: Runs) -> dict[str, Any]:
    """ADP-FL against DP-FL: deviation over seeds, over the last rounds, and rounds to DP-FL's final Dice."""
    found = {}
    for suffix in ("", f"@{PUBLIC}"):
        dp, adp = runs.get(f"dp-fl{suffix}"), runs.get(f"adp-fl{suffix}")
        if not dp or not adp:
            continue
        last = [[statistics.last_rounds_deviation(result["curve"]) for result in group] for group in (adp, dp)]
        entry: dict[str, Any] = {
            "deviation_over_seeds": statistics.deviation_ratio(
                [result["mean"]["dice"] for result in adp], [result["mean"]["dice"] for result in dp]
            )
        }
        if all(value is not None for group in last for value in group):
            entry["deviation_over_last_rounds"] = statistics.mean_ratio(*last)  # type: ignore[arg-type]
            goal = fmean(fmean(result["curve"][-3:]) for result in dp)
            reached = [statistics.rounds_to(result["curve"], goal) for result in adp]
            entry["rounds_to_final_dice_of_dp"] = reached
            entry["share_of_rounds"] = fmean((number or len(adp[0]["curve"])) / len(adp[0]["curve"]) for number in reached)
        found[f"same_start{suffix and '_public'}"] = entry
    return found
