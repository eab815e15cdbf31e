"""What one run cost the patients of one site, as the site's odometer has it, also when the run's folder is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl import folds
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.folds import Split
from nnunet_adpfl.privacy import accounting, hash_chain, ledger
from nnunet_adpfl.privacy.hash_chain import ChainContent, Line
from nnunet_adpfl.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class RunSpending:
    """One run at one site.

    Attributes:
        run: its name, as in every line of its ledger.
        units: units of this site that it used; all of them where that cannot be told from cohort and splits.
        events: what it spent; where it took fewer steps than it declared, or repeated some, all that its plan paid for.
        releases: noisy fingerprints that its plan was made from -> their event; several runs share one.
        order, budget_epsilon, delta: of a run under a filter, its Renyi order and target; order None otherwise.
        is_private: False for training without clip and noise.
        plan_is_private: False where its nnU-Net plan was made from exact sums over patients.
        complete: it took all steps that it declared.
    """

    run: str
    units: frozenset[str]
    events: tuple[accounting.Event, ...]
    releases: Mapping[str, accounting.Event]
    delta: float
    order: float | None = None
    budget_epsilon: float | None = None
    is_private: bool = True
    plan_is_private: bool = True
    complete: bool = True
    steps: int = 0


def of_plan(plan: PrivacyPlan, events: Sequence[accounting.Event], run: str, units: frozenset[str], steps: int) -> RunSpending:
    """A run that has not begun: ``events`` are those of all its steps."""
    release = plan.fingerprint_release
    return RunSpending(
        run,
        units,
        tuple(events) if plan.is_private else (),
        {} if release is None else {release.release: accounting.gaussian(release.noise_multiplier)},
        plan.delta,
        plan.adaptation.order if plan.is_data_driven else None,
        plan.epsilon if plan.is_data_driven else None,
        plan.is_private,
        plan.fingerprint != "pooled",
        steps=steps,
    )


def of_odometer(path: Path, site: str, cohort: Cohort, splits: Sequence[Split]) -> list[RunSpending]:
    """All runs that a site's odometer knows, in the order in which they began.

    Raises PrivacyRefusedError for an odometer that is damaged or was shortened at its beginning.
    """
    if not path.is_file():
        return []
    lines: dict[tuple[str, str], list[Line]] = {}
    for entry in hash_chain.read(path).lines:
        if "line" in entry:  # the others mend a line that a crash tore before its step could be taken
            lines.setdefault((str(entry["run"]), str(entry["site"])), []).append(dict(entry["line"]))
    known = _digests(site, cohort, splits)
    return [_of_lines(run, found, path, known, frozenset(cohort.units(site))) for (run, _), found in lines.items()]


def _of_lines(
    run: str, lines: Sequence[Line], path: Path, known: Mapping[str, frozenset[str]], everybody: frozenset[str]
) -> RunSpending:
    first = lines[0]
    if first.get("event") != "start":
        raise PrivacyRefusedError(f"{path}: run {run} has no start line there; restore the odometer")
    spent = ledger.spending_events(ChainContent(tuple(lines)), path)
    steps = ledger.steps_taken(spent)
    events = [event for event in spent if "release" not in event]
    missing = int(first.get("declared_steps") or 0) - steps
    openly = {line.get("scope") for line in lines if line["event"] == "non_private"}
    if "training" not in openly and not ledger.went_as_declared(spent, first):
        events = _declared(events, first, missing)
    filtered = first["composition"] == "rdp_filter"
    return RunSpending(
        run,
        known.get(str(first["units_digest"]), everybody),
        tuple(events),
        {str(event["release"]): event for event in spent if "release" in event},
        float(first["delta"]),
        float(first["order"]) if filtered else None,
        float(first["target_epsilon"]) if filtered else None,
        "training" not in openly,
        "plan" not in openly,
        missing <= 0 or "training" in openly,
        steps,
    )


def _declared(events: list[Line], first: Line, missing: int) -> list[Line]:
    """The most that a run could have spent that stopped early or repeated rounds: its plan with the reserve (rule 10)."""
    if first.get("planned_events"):
        return [dict(event) for event in first["planned_events"]]
    return [*events, {**first["largest_block"], "steps": missing}] if missing > 0 else events


def _digests(site: str, cohort: Cohort, splits: Sequence[Split]) -> dict[str, frozenset[str]]:
    """Digest of the units of a federated or central run in each fold -> those of them at this site."""
    found = {}
    for name in [*range(len(splits)), folds.ALL]:
        cases = set(folds.make_fold(splits, cohort, name).train)
        here = frozenset(cohort.cases_by_unit(site, cases))
        found[ledger.units_digest(sorted(here))] = here
        found[ledger.units_digest(sorted(cohort.cases_by_unit(None, cases)))] = here
    return found
