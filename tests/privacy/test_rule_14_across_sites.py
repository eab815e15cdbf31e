"""Rule 14: disjoint patients compose in parallel, the claim is the maximum over sites."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import make_mechanism, start_ledger

from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import summary


def spend(run: Path, site: str, steps: int, delta: float = 1e-3) -> None:
    mechanism = make_mechanism(delta=delta)
    plan = mechanism.plan
    folder = run / "sites" / site
    folder.mkdir(parents=True)
    ledger = start_ledger(folder, plan, site=site)
    mechanism.authorise(ledger, 0, steps, round_index=0, attempt=0)
    (folder / "ledger.jsonl").rename(folder / "privacy_ledger.jsonl")


def test_rule_14_epsilon_is_the_maximum_over_sites(tmp_path: Path) -> None:
    spend(tmp_path, "a", 20)
    spend(tmp_path, "b", 5)
    found = summary.summarise(tmp_path)
    assert found["sites"]["a"]["epsilon"] > found["sites"]["b"]["epsilon"] > 0
    assert found["epsilon"] == found["sites"]["a"]["epsilon"]


def test_rule_14_ledgers_of_different_promises_are_not_mixed(tmp_path: Path) -> None:
    spend(tmp_path, "a", 5)
    spend(tmp_path, "b", 5, delta=1e-4)
    with pytest.raises(PrivacyRefusedError, match="delta"):
        summary.summarise(tmp_path)


def test_rule_14_a_unit_at_two_sites_is_refused() -> None:
    entries = {"x": CohortEntry("p1", "a"), "y": CohortEntry("p1", "b")}
    with pytest.raises(InputError, match="at two sites"):
        Cohort("patient", entries)
