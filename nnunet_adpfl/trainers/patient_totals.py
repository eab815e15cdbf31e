"""The odometer's sum: what all runs ever made on a data set tell about one patient (design section 3).

Three trainings on the same patients are three releases: seeds, repeats, abandoned runs and folds (a patient trains in
all but one) are composed. Sites hold different patients, so the total of the data set is the maximum over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folders, folds
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.folds import Split
from nnunet_adpfl.privacy import accounting, hash_chain
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy.mechanism import ALL_SITES, Mechanism
from nnunet_adpfl.trainers import run_spending, site_ledger
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.run_spending import RunSpending

COMPARISONS = "adpfl_compare"  # folder of `adpfl compare` in nnUNet_results/DATASET
_LEDGERS = (ledgers.FILE_NAME, f"sites/*/{ledgers.FILE_NAME}")


@dataclass(frozen=True)
class Total:
    """Epsilon of several runs together at ``delta``; None where one of them had no guarantee."""

    epsilon: float | None
    delta: float
    accountant: str = "PLD"


def dataset_totals(preprocessed: Path) -> dict[str, Any]:
    """What `adpfl privacy DATASET --json` prints: the total of each site's patients and of all, and the runs in it.

    Raises InputError where nothing was planned, PrivacyRefusedError for a damaged odometer.
    """
    cohort = cohorts.load(preprocessed)
    check_odometers(preprocessed, cohort)
    splits = _splits(preprocessed, cohort)
    runs_of = {site: _runs_at(preprocessed, site, cohort, splits) for site in cohort.sites}
    delta = min((run.delta for runs in runs_of.values() for run in runs), default=None)
    sites, totals = {}, []
    for site, runs in runs_of.items():
        total = worst_total(runs, delta)
        totals.append(total)
        sites[site] = {"epsilon": total.epsilon, "runs": [_described(run, delta) for run in runs]}
    everything = [run for runs in runs_of.values() for run in runs]
    return {
        "dataset": preprocessed.name,
        "epsilon": None if any(total.epsilon is None for total in totals) else max(total.epsilon or 0.0 for total in totals),
        "delta": delta,
        "unit": cohort.unit_kind,
        "guarantee": _guarantee(everything),
        "accountant": "RDP" if any(total.accountant == "RDP" for total in totals) else "PLD",
        "runs": len({run.run for run in everything}),
        "sites": sites,
    }


def told_beforehand(prepared: PreparedFold, mechanism: Mechanism, run: str | None, declared_steps: int) -> str:
    """The sentence that a run begins with: what it will cost alone, and together with all earlier runs.

    Args:
        run: name of the run where it goes on; it is in the odometers already.
    """
    plan, largest, earlier = prepared.plan, Total(0.0, prepared.plan.delta), 0
    levels = mechanism.noise_levels(0, declared_steps) if plan.is_private else []
    events = [accounting.poisson_gaussian(plan.sampling_rate, z, n) for z, n in levels]
    check_odometers(prepared.preprocessed, prepared.cohort)
    splits = _splits(prepared.preprocessed, prepared.cohort)
    for site in prepared.sites:
        runs = _runs_at(prepared.preprocessed, site, prepared.cohort, splits)
        earlier = max(earlier, sum(entry.run != run and entry.steps > 0 for entry in runs))
        if all(entry.run != run for entry in runs):
            units = frozenset(prepared.cases_by_unit(site))
            runs.append(run_spending.of_plan(plan, events, "this run", units, declared_steps))
        total = worst_total(runs, min(entry.delta for entry in runs))
        largest = max(largest, total, key=_size)
    what = f"each {plan.unit}'s total over this run and {earlier} earlier one{'s' * (earlier != 1)} on the same {plan.unit}s"
    remedy = f"`adpfl privacy {prepared.preprocessed.name}` lists them"
    if largest.epsilon is None:
        return f"privacy: {what} has no bound, because a run without privacy is among them ({remedy})"
    return f"privacy: {what} will be epsilon {largest.epsilon:.4g} at delta {largest.delta:g} ({remedy})"


def check_odometers(preprocessed: Path, cohort: Cohort) -> None:
    """PrivacyRefusedError where a run or a site is known elsewhere but not to the odometers: the sum would be too small."""
    for odometer in site_ledger.odometers_in(preprocessed):
        if odometer.path.parent.name not in cohort.sites and odometer.runs():
            raise PrivacyRefusedError(
                f"{odometer.path} counts what was spent at a site that the cohort does not know; restore the cohort"
            )
    results = folders.base_folder("nnUNet_results") / preprocessed.name
    places = [f"*/fold_*/{name}" for name in _LEDGERS] + [f"{COMPARISONS}/*/*/seed_*/{name}" for name in _LEDGERS]
    # Ledgers first: a run that starts meanwhile writes its odometers before its ledger.
    found = [(path, hash_chain.read(path).lines) for place in places for path in results.glob(place)]
    known = {site: site_ledger.odometer_of(preprocessed, site).runs() for site in cohort.sites}
    for path, lines in found:
        if not lines:
            continue  # a crash left it without its first line, so nothing was spent on it
        run, site = str(lines[0].get("run")), str(lines[0].get("site"))
        for name in cohort.sites if site == ALL_SITES else [site]:
            if (run, site) not in known.get(name, ()):
                raise PrivacyRefusedError(
                    f"the odometer of site {name} does not know run {run} ({path}): restore {preprocessed / 'sites'}, without it "
                    "the sum over all runs is unknown"
                )


def worst_total(runs: Sequence[RunSpending], delta: float | None) -> Total:
    """The total of the unit that was used by the costliest set of runs."""
    if delta is None or not runs:
        return Total(0.0, delta or 0.0)
    groups = {frozenset(index for index, run in enumerate(runs) if unit in run.units) for unit in set().union(*(run.units for run in runs))}
    largest = [group for group in groups if not any(group < other for other in groups)]
    totals = [total_of([runs[index] for index in sorted(group)], delta) for group in largest]
    return max(totals, key=_size)


def _size(total: Total) -> float:
    return math.inf if total.epsilon is None else total.epsilon


def total_of(runs: Sequence[RunSpending], delta: float) -> Total:
    """All of these runs used the same unit.

    Declared runs compose by PLD. With runs under a filter among them everything is added up as Renyi divergence at the
    lowest of the filters' orders: what a filter allows at its own order bounds what is spent at any lower one.
    """
    if any(not run.is_private for run in runs):
        return Total(None, delta)
    releases: dict[str, accounting.Event] = {}
    for run in runs:
        for name, event in run.releases.items():
            known = releases.setdefault(name, event)
            releases[name] = min(known, event, key=_noise)  # of one name with two noises the dearer one counts
    filters = [run for run in runs if run.order is not None]
    events = [event for run in runs if run.order is None for event in run.events] + list(releases.values())
    if not filters:
        return Total(accounting.epsilon(events, delta), delta)
    order = min(run.order for run in filters if run.order is not None)
    budgets = [accounting.rdp_of_epsilon(run.budget_epsilon or 0.0, run.delta, run.order or order) for run in filters]
    return Total(accounting.epsilon_of_rdp(accounting.rdp(events, order) + sum(budgets), delta, order), delta, "RDP")


def _noise(event: accounting.Event) -> float:
    return float(event["noise_multiplier"])


def _described(run: RunSpending, delta: float | None) -> dict[str, Any]:
    return {
        "run": run.run,
        "epsilon": total_of([run], run.delta if delta is None else delta).epsilon,
        "steps": run.steps,
        "complete": run.complete,
        "units": len(run.units),
        "private": run.is_private,
    }


def _guarantee(runs: Sequence[RunSpending]) -> str:
    if any(not run.is_private for run in runs):
        return "none"
    return "formal" if all(run.plan_is_private for run in runs) else "formal_given_plan"


def _runs_at(preprocessed: Path, site: str, cohort: Cohort, splits: Sequence[Split]) -> list[RunSpending]:
    return run_spending.of_odometer(site_ledger.odometer_of(preprocessed, site).path, site, cohort, splits)


def _splits(preprocessed: Path, cohort: Cohort) -> Sequence[Mapping[str, Sequence[str]]]:
    try:
        return folds.load_splits(preprocessed, cohort)
    except InputError:
        return []  # then every unit of a site counts as used by every run
