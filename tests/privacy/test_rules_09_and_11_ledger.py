"""Rules 9 and 11: epsilon from the ledger alone; nothing beyond the budget; a damaged ledger is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from injected_randomness import InjectedRandomness
from small_model import make_mechanism, make_plan, resume_ledger, start_ledger

from nnunet_adpfl.errors import BudgetExhaustedError, PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, summary
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.accounting import poisson_gaussian
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.mechanism import Permit


def test_rule_09_gaussian_agrees_with_the_closed_form() -> None:
    z, delta = 2.0, 1e-5  # Balle and Wang 2018, theorem 8
    eps = accounting.epsilon([{"event": "gaussian", "noise_multiplier": z, "steps": 1}], delta)
    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    exact = phi(0.5 / z - eps * z) - math.exp(eps) * phi(-0.5 / z - eps * z)
    assert exact <= delta
    assert exact == pytest.approx(delta, rel=0.02)


def test_rule_09_pld_agrees_with_prv_and_is_below_rdp() -> None:
    events = [poisson_gaussian(0.05, 1.5, 300), poisson_gaussian(0.05, 1.2, 100)]
    pld = accounting.epsilon(events, 1e-5)
    prv = accounting.epsilon_prv(events, 1e-5)
    assert prv is not None
    assert pld == pytest.approx(prv, rel=0.02)
    assert pld < accounting.epsilon_rdp(events, 1e-5)


def test_rule_09_every_line_counts() -> None:
    one = poisson_gaussian(0.25, 2.0, 5)
    assert accounting.epsilon([one] * 4, 1e-4) == pytest.approx(accounting.epsilon([{**one, "steps": 20}], 1e-4))
    assert accounting.epsilon([one] * 4, 1e-4) > accounting.epsilon([one], 1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"event": "magic", "sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1},
        {"event": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": math.nan, "steps": 1},
        {"event": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": 0.0, "steps": 1},
        {"event": "poisson_gaussian", "sampling_rate": 1.5, "noise_multiplier": 1.0, "steps": 1},
        {"event": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": -3},
        {"event": "poisson_gaussian", "sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1.5},
    ],
)
def test_rule_09_unknown_or_impossible_events_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PrivacyRefusedError):
        accounting.epsilon([bad], 1e-5)


def take_steps(folder: Path, blocks: int) -> mechanisms.Mechanism:
    mechanism = make_mechanism(noise_decay={"plateaus": 4, "final_ratio": 0.5})
    plan = mechanism.plan
    ledger = start_ledger(folder, plan)
    for block in range(blocks):
        mechanism.authorise(ledger, 5 * block, 5, round_index=block, attempt=0)
    return mechanism


def test_rule_09_an_outsider_recomputes_epsilon_in_ten_lines(tmp_path: Path) -> None:
    take_steps(tmp_path, 4)
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    lines = [json.loads(text) for text in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] in ("poisson_gaussian", "recovered"):
            gaussian = dp_accounting.GaussianDpEvent(line["noise_multiplier"])
            accountant.compose(dp_accounting.PoissonSampledDpEvent(line["sampling_rate"], gaussian), line["steps"])
    found = summary.summarise(tmp_path / "ledger.jsonl")
    assert found["epsilon"] == pytest.approx(accountant.get_epsilon(lines[0]["delta"]), rel=1e-6)
    assert found["epsilon"] <= 8
    assert found["guarantee"] == "formal"
    assert found["sites"]["a"]["steps"] == 20


def test_rule_11_noise_is_calibrated_for_steps_and_reserve() -> None:
    mechanism = make_mechanism()
    plan, z = mechanism.plan, mechanism.base_noise_multiplier
    assert accounting.epsilon([poisson_gaussian(0.25, z, 24)], plan.delta) <= 8
    assert accounting.epsilon([poisson_gaussian(0.25, z * 0.997, 24)], plan.delta) > 8
    without = make_mechanism(reserve_steps=0).base_noise_multiplier
    assert without < z


def test_rule_11_too_little_declared_noise_is_refused() -> None:
    with pytest.raises(PrivacyRefusedError, match="noise_multiplier"):
        mechanisms.make(make_plan(noise_multiplier=0.3), "0")


def test_rule_11_the_step_beyond_the_budget_is_not_taken_and_not_written(tmp_path: Path) -> None:
    mechanism = take_steps(tmp_path, 4)
    ledger = resume_ledger(tmp_path)
    for attempt in range(50):
        before = (tmp_path / "ledger.jsonl").read_bytes()
        try:
            mechanism.authorise(ledger, 15, 5, round_index=3, attempt=attempt + 1)
        except BudgetExhaustedError:
            break
    else:
        pytest.fail("the budget never ended")
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    spent = summary.summarise(tmp_path / "ledger.jsonl")["epsilon"]
    assert 0 < spent <= 8


def test_rule_11_no_release_without_a_paid_step(tmp_path: Path) -> None:
    mechanism = make_mechanism()
    plan = mechanism.plan
    permit = mechanism.authorise(start_ledger(tmp_path, plan), 0, 1, round_index=0, attempt=0)
    mechanism.release(ClippedSum({"w": torch.zeros(2)}), permit, "a", 0, InjectedRandomness(0))
    with pytest.raises(PrivacyRefusedError, match="not paid"):
        mechanism.release(ClippedSum({"w": torch.zeros(2)}), permit, "a", 0, InjectedRandomness(0))
    with pytest.raises(PrivacyRefusedError, match="not paid"):
        mechanism.release(ClippedSum({"w": torch.zeros(2)}), Permit(), "a", 0, InjectedRandomness(0))


def test_rule_11_the_ledger_is_written_before_the_permit_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = make_mechanism()
    ledger = start_ledger(tmp_path, mechanism.plan)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunet_adpfl.atomic_files.append_line", full)
    with pytest.raises(OSError, match="No space"):
        mechanism.authorise(ledger, 0, 5, round_index=0, attempt=0)


def test_rule_11_missing_edited_shorter_or_torn_ledgers(tmp_path: Path) -> None:
    take_steps(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)

    path.write_text(whole.replace('"steps": 5', '"steps": 4', 1))
    with pytest.raises(PrivacyRefusedError, match="edited"):
        resume_ledger(tmp_path)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(PrivacyRefusedError, match="missing"):
        resume_ledger(tmp_path)
    path.write_text("".join(lines[:2]))
    with pytest.raises(PrivacyRefusedError, match="older"):
        resume_ledger(tmp_path)
    path.unlink()
    with pytest.raises(PrivacyRefusedError, match="missing"):
        resume_ledger(tmp_path)
    path.write_text(whole)
    assert len(resume_ledger(tmp_path).events()) == 3


def test_rule_11_a_torn_last_line_counts_as_spent(tmp_path: Path) -> None:
    take_steps(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) - 40])
    before = summary.summarise(path)
    assert before["sites"]["a"]["steps"] == 15
    ledger = resume_ledger(tmp_path)
    assert sum(event["steps"] for event in ledger.events()) == 15
    assert summary.summarise(path)["epsilon"] == pytest.approx(before["epsilon"])
    assert "recovered" in path.read_text()


def test_rule_11_a_line_that_reached_only_the_odometer_is_completed(tmp_path: Path) -> None:
    take_steps(tmp_path, 3)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    ledger = resume_ledger(tmp_path)
    assert sum(event["steps"] for event in ledger.events()) == 15


def test_rule_11_several_runs_add_up_in_the_odometer(tmp_path: Path) -> None:
    mechanism = make_mechanism()
    plan = mechanism.plan
    for run in ("one", "two"):
        (tmp_path / "ledger.jsonl").unlink(missing_ok=True)
        mechanism.authorise(start_ledger(tmp_path, plan, run=run), 0, 20, round_index=0, attempt=0)
    entries = [json.loads(text) for text in (tmp_path / "odometer.jsonl").read_text().splitlines()]
    spent = [entry["line"] for entry in entries if entry["line"]["event"] == "poisson_gaussian"]
    assert {entry["run"] for entry in entries} == {"one", "two"}
    assert sum(line["steps"] for line in spent) == 40
