"""Rule 10: noise and stopping that follow the data stay within the budget of a Renyi filter, whatever is chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import make_mechanism, make_plan, start_ledger

from nnunet_adpfl.errors import BudgetExhaustedError, InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain, summary
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.privacy.odometer import Odometer

LEVELS = 5


def data_driven(**changes: Any) -> Mechanism:
    return make_mechanism(adaptation={"kind": "data_driven", "levels": LEVELS, "noise_factor": 0.6, **changes})


def filter_ledger(folder: Path, mechanism: Mechanism) -> Ledger:
    plan = mechanism.plan
    first = {
        "composition": "rdp_filter", "order": plan.adaptation.order, "unit": plan.unit, "adjacency": plan.adjacency,
        "delta": plan.delta, "target_epsilon": plan.epsilon, "plan_hash": plan.digest(), "units_digest": "u",
        "declared_steps": plan.steps, "largest_block": mechanism.largest_block(5),
    }  # fmt: skip
    return Ledger.start(folder / ledgers.FILE_NAME, "run", "a", [Odometer(folder / "odometer.jsonl")], first)


def independent_epsilon(events: list[dict[str, Any]], order: float, delta: float) -> float:
    """The Renyi divergences of the lines added up at one order, converted once: dp-accounting alone."""
    accountant = RdpAccountant([order])
    for event in events:
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(event["sampling_rate"], dp_accounting.GaussianDpEvent(event["noise_multiplier"])),
            event["steps"],
        )
    return float(accountant.get_epsilon(delta))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.lists(st.tuples(st.integers(0, LEVELS - 1), st.integers(1, 5)), min_size=1, max_size=40))
def test_rule_10_no_choice_of_noise_levels_exceeds_the_budget(
    choices: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    mechanism = data_driven()
    folder = tmp_path_factory.mktemp("filter")
    ledger = filter_ledger(folder, mechanism)
    step = 0
    for level, steps in choices:
        before = (folder / ledgers.FILE_NAME).read_bytes()
        try:
            permit = mechanism.authorise(ledger, step, steps, round_index=step, attempt=0, level=level)
        except BudgetExhaustedError:
            assert (folder / ledgers.FILE_NAME).read_bytes() == before
            continue
        assert len(permit.noise_multipliers) == steps
        step += steps
    plan = mechanism.plan
    assert plan.adaptation.order is not None
    spent = independent_epsilon(ledger.events(), plan.adaptation.order, plan.delta)
    assert spent <= plan.epsilon * (1 + 1e-9)
    assert sum(event["steps"] for event in ledger.events()) == step


def step_by_step(mechanism: Mechanism, ledger: Ledger, steps: int, level: int) -> None:
    for step in range(steps):
        mechanism.authorise(ledger, step, 1, round_index=step, attempt=0, level=level)


def test_rule_10_the_filter_does_stop(tmp_path: Path) -> None:
    mechanism = data_driven()
    ledger = filter_ledger(tmp_path, mechanism)
    with pytest.raises(BudgetExhaustedError, match="above the target 8"):
        step_by_step(mechanism, ledger, mechanism.plan.steps + mechanism.plan.reserve_steps + 1, level=0)
    assert sum(event["steps"] for event in ledger.events()) >= mechanism.plan.steps
    low = filter_ledger(tmp_path / "low", mechanism)
    with pytest.raises(BudgetExhaustedError):
        step_by_step(mechanism, low, mechanism.plan.steps, level=1)
    assert 0 < sum(event["steps"] for event in low.events()) < mechanism.plan.steps / 2


def test_rule_10_the_filters_bound_is_reported_not_what_was_realised(tmp_path: Path) -> None:
    mechanism = data_driven()
    ledger = filter_ledger(tmp_path, mechanism)
    mechanism.authorise(ledger, 0, mechanism.plan.steps, round_index=0, attempt=0)
    found = summary.summarise(tmp_path / ledgers.FILE_NAME)
    site = found["sites"]["a"]
    realised = accounting.epsilon(ledger.events(), mechanism.plan.delta)
    assert found["accountant"] == "RDP filter"
    assert found["epsilon"] == site["epsilon"] == mechanism.plan.epsilon
    assert realised < site["epsilon_spent"] < mechanism.plan.epsilon
    assert site["epsilon_spent"] == pytest.approx(
        independent_epsilon(ledger.events(), mechanism.plan.adaptation.order or 0, mechanism.plan.delta)
    )
    assert site["epsilon_prv"] is None


def test_rule_10_levels_outside_the_plan_are_refused(tmp_path: Path) -> None:
    mechanism = data_driven()
    ledger = filter_ledger(tmp_path, mechanism)
    for level in (-1, LEVELS):
        with pytest.raises(PrivacyRefusedError, match="has the levels 0 to 4"):
            mechanism.authorise(ledger, 0, 1, round_index=0, attempt=0, level=level)
    declared = make_mechanism()
    with pytest.raises(PrivacyRefusedError, match="declares the noise of every step"):
        declared.authorise(start_ledger(tmp_path / "declared", declared.plan), 0, 1, round_index=0, attempt=0, level=1)
    assert [line["event"] for line in hash_chain.read(tmp_path / ledgers.FILE_NAME).lines] == ["start"]


def test_rule_10_the_order_is_fixed_with_the_noise_and_is_the_best_one() -> None:
    plan = data_driven().plan
    assert plan.adaptation.order in accounting.FILTER_ORDERS
    events = [accounting.poisson_gaussian(plan.sampling_rate, plan.noise_multiplier or 0, plan.steps + plan.reserve_steps)]
    at_orders = {order: accounting.epsilon_rdp(events, plan.delta, order) for order in accounting.FILTER_ORDERS}
    assert at_orders[plan.adaptation.order] <= plan.epsilon < min(v for o, v in at_orders.items() if o != plan.adaptation.order)


def test_rule_10_a_filter_never_allows_more_than_ordinary_composition() -> None:
    """Renyi at one order is the looser bound, so a data-driven run starts with more noise than a declared one."""
    assert data_driven().base_noise_multiplier > make_mechanism().base_noise_multiplier


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptation": {"kind": "data_driven"}, "noise_decay": {"plateaus": 2, "final_ratio": 0.5}}, "leave noise_decay out"),
        ({"adaptation": {"kind": "data_driven", "signal": "public_loss"}}, "needs validation public"),
        ({"adaptation": {"kind": "data_driven", "levels": 21}}, "levels"),
        ({"fingerprint": "dp"}, "belong together"),
        ({"fingerprint_release": {"release": "f", "noise_multiplier": 1.0}}, "belong together"),
    ],
)
def test_rule_10_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(**changes)


def test_rule_13_the_noisy_fingerprint_is_composed_with_the_training() -> None:
    release = {"release": "fingerprint-1", "noise_multiplier": 2.0}
    plain, with_release = make_mechanism(), make_mechanism(fingerprint="dp", fingerprint_release=release)
    assert with_release.base_noise_multiplier > plain.base_noise_multiplier
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.GaussianDpEvent(2.0))
    z, plan = with_release.base_noise_multiplier, with_release.plan
    step = dp_accounting.PoissonSampledDpEvent(plan.sampling_rate, dp_accounting.GaussianDpEvent(z))
    accountant.compose(step, plan.steps + plan.reserve_steps)
    spent = float(accountant.get_epsilon(plan.delta))
    assert plan.epsilon - 0.05 < spent <= plan.epsilon + 1e-6
    assert not math.isclose(z, plain.base_noise_multiplier, rel_tol=1e-3)


def test_rule_10_a_declared_run_does_not_choose_which_of_its_levels_it_repeats(tmp_path: Path) -> None:
    """With 20 times the noise that epsilon needs, composition would allow any number; the plan allows its reserve."""
    mechanism = make_mechanism(noise_decay={"plateaus": 4, "final_ratio": 0.5}, noise_multiplier=20.0)
    ledger = start_ledger(tmp_path, mechanism.plan)
    last = mechanism.plan.steps // 4 + mechanism.plan.reserve_steps
    for attempt in range(last):
        mechanism.authorise(ledger, 19, 1, round_index=19, attempt=attempt)
    with pytest.raises(BudgetExhaustedError, match="beyond the 20 planned ones and the reserve of 4"):
        mechanism.authorise(ledger, 19, 1, round_index=19, attempt=last)
    mechanism.authorise(ledger, 0, 1, round_index=0, attempt=0)


def test_rule_10_a_divergence_that_rounding_spoils_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """dp-accounting takes a negative divergence (extreme noise) for an epsilon of zero; a filter must not."""
    monkeypatch.setattr(RdpAccountant, "rdp", property(lambda _: [-1e-18]))
    event = accounting.poisson_gaussian(0.25, 1.0, 1)
    assert accounting.rdp([event], 4.0) == math.inf
    assert accounting.epsilon_rdp([event], 1e-3, 4.0) == math.inf
    assert accounting.rdp([], 4.0) == 0
