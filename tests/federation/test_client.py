"""One round at one site: a function of its task, paid for once, refused where something does not fit the plan."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import one_site
import pytest
import torch
from workspace import Workspace, read_lines, steps_paid

from nnunet_adpfl.errors import AdpflError, BudgetExhaustedError, InputError, PrivacyRefusedError
from nnunet_adpfl.federation import stored_update
from nnunet_adpfl.federation.client import Site, run_site_round
from nnunet_adpfl.federation.messages import RoundTask, SiteUpdate, weights_hash
from nnunet_adpfl.privacy import summary
from nnunet_adpfl.privacy.noise import SecretRandomness


@pytest.fixture
def site(workspace: Workspace) -> Site:
    return one_site.make(workspace)


def ledger_of(site: Site) -> list[dict[str, Any]]:
    path = site.folder / "privacy_ledger.jsonl"
    return read_lines(path) if path.exists() else []


def same(first: SiteUpdate, second: SiteUpdate) -> bool:
    hashes = weights_hash(first.weights) == weights_hash(second.weights)
    return hashes and replace(first, weights={}) == replace(second, weights={})


def test_rule_11_a_finished_round_is_answered_again_byte_for_byte_and_free(site: Site) -> None:
    task = one_site.first_task(site)
    first = run_site_round(task, site)
    files = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    again, engine = one_site.counting(site)
    second = run_site_round(task, again)
    assert same(first, second)
    assert engine.steps == 0
    assert {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()} == files
    assert steps_paid(ledger_of(site)) == task.steps


def test_update_is_a_function_of_the_task_whatever_the_network_held_before(site: Site) -> None:
    task = one_site.first_task(site)
    first = run_site_round(task, site)
    with torch.no_grad():
        for parameter in site.model.network.parameters():
            parameter.add_(1.0)
    shutil.rmtree(site.folder)  # another run's folder
    second = run_site_round(replace(task, run="another"), site)
    assert weights_hash(first.weights) == weights_hash(second.weights)
    assert (first.noisy_count, first.expected_units) == (second.noisy_count, second.expected_units)


def test_update_holds_the_trained_tensors_alone(site: Site) -> None:
    update = run_site_round(one_site.first_task(site), site)
    assert set(update.weights) == set(site.model.trained)
    assert set(update.weights) < set(site.model.network.state_dict())
    assert update.ledger_head == ledger_of(site)[-1]["hash"]
    assert update.expected_units == pytest.approx(0.4 * 4 * 2)


@pytest.mark.parametrize("change", ["weights", "clip_norm", "run_of_a_stranger"])
def test_rule_11_another_task_for_the_same_round_is_a_new_attempt(change: str, site: Site) -> None:
    task = one_site.first_task(site)
    first = run_site_round(task, site)
    if change == "run_of_a_stranger":
        with pytest.raises(PrivacyRefusedError, match="another run"):
            run_site_round(replace(task, run="stranger"), site)
        assert steps_paid(ledger_of(site)) == task.steps
        return
    other = replace(task, weights=one_site.shifted(task.weights)) if change == "weights" else replace(task, clip_norm=2.0)
    second = run_site_round(other, site)
    assert (first.attempt, second.attempt) == (0, 1)
    assert not same(first, second)
    assert steps_paid(ledger_of(site)) == 2 * task.steps


def lose(site: Site, update: SiteUpdate, task: RoundTask) -> None:
    (site.folder / stored_update.FILE_NAME).unlink()


def cut(site: Site, update: SiteUpdate, task: RoundTask) -> None:
    path = site.folder / stored_update.FILE_NAME
    path.write_bytes(path.read_bytes()[:-10])


def replace_head(site: Site, update: SiteUpdate, task: RoundTask) -> None:
    stored_update.save(replace(update, ledger_head="f" * 64), task, site.folder)


@pytest.mark.parametrize("damage", [lose, cut, replace_head])
def test_rule_11_without_an_intact_paid_update_the_round_is_paid_again(
    damage: Callable[[Site, SiteUpdate, RoundTask], None], site: Site
) -> None:
    task = one_site.first_task(site)
    damage(site, run_site_round(task, site), task)
    assert run_site_round(task, site).attempt == 1
    assert steps_paid(ledger_of(site)) == 2 * task.steps


def test_rule_07_a_repeated_round_has_new_draws_and_new_noise(workspace: Workspace) -> None:
    site = one_site.make(workspace, randomness=SecretRandomness())
    task = one_site.first_task(site)
    first = run_site_round(task, site)
    lose(site, first, task)
    second = run_site_round(task, site)
    changed = [name for name in first.weights if not np.array_equal(first.weights[name], second.weights[name])]
    assert changed == list(first.weights)
    assert first.noisy_count != second.noisy_count


def test_rule_11_the_ledger_is_written_before_the_first_step(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    paid: list[int] = []
    engine = one_site.CountingEngine(site.model.engine.clipped_sum)

    def watched(*arguments: Any) -> Any:
        paid.append(steps_paid(ledger_of(site)))
        return engine.clipped_sum(*arguments)

    monkeypatch.setattr(site.model.engine, "clipped_sum", watched)
    task = one_site.first_task(site)
    run_site_round(task, site)
    assert paid == [task.steps] * task.steps


def test_rule_11_a_spent_budget_stops_before_the_first_step(site: Site) -> None:
    site, engine = one_site.counting(site)
    task = one_site.first_task(site)
    for number in range(5):  # steps and reserve of the plan, all for the first round
        run_site_round(replace(task, clip_norm=1.0 + number), site)
    with pytest.raises(BudgetExhaustedError, match="target epsilon 8 pays for"):
        run_site_round(replace(task, clip_norm=9.0), site)
    assert engine.steps == steps_paid(ledger_of(site)) == 10


def test_rule_11_a_ledger_older_than_the_servers_checkpoint_is_refused(site: Site) -> None:
    run_site_round(one_site.first_task(site), site)
    later = one_site.first_task(site, round=1, first_step=2, ledger_head="a" * 64)
    with pytest.raises(PrivacyRefusedError, match="restore the ledger"):
        run_site_round(later, site)
    assert steps_paid(ledger_of(site)) == 2


def without_one(task: RoundTask) -> RoundTask:
    return replace(task, weights=dict(list(task.weights.items())[1:]))


def with_tensor(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RoundTask], RoundTask]:
    def changed(task: RoundTask) -> RoundTask:
        name = next(iter(task.weights))
        return replace(task, weights={**task.weights, name: change(task.weights[name])})

    return changed


REFUSED: dict[str, tuple[Callable[[RoundTask], RoundTask], str]] = {
    "another privacy plan": (lambda task: replace(task, plan_hash="0" * 64), "not the one agreed on"),
    "steps beyond the plan": (lambda task: replace(task, first_step=5), "beyond the 6 planned"),
    "more steps than planned": (lambda task: replace(task, steps=7), "beyond the 6 planned"),
    "more steps than a round has": (lambda task: replace(task, steps=3), "rounds of 2"),
    "steps beyond those declared": (lambda task: replace(task, declared_steps=1), "declared to have 1 steps"),
    "no step": (lambda task: replace(task, steps=0), "0 steps, the privacy plan has rounds of 2"),
    "a round that is no number": (lambda task: replace(task, round=0.5), "round is 0.5"),
    "a round below zero": (lambda task: replace(task, round=-1), "round is -1"),
    "more declared steps than planned": (lambda task: replace(task, declared_steps=8), "of 8 are beyond the 6 planned"),
    "declared steps without end": (lambda task: replace(task, declared_steps=10**9), "declared_steps is 1000000000"),
    "declared steps that are no whole number": (lambda task: replace(task, declared_steps=6.0), "declared_steps is 6.0"),
    "fewer steps than a round has": (lambda task: replace(task, steps=1), "1 steps, the privacy plan has rounds of 2"),
    "steps that were not reached": (lambda task: replace(task, first_step=2), "begins at step 2, the rounds before took 0"),
    "a level of noise that is no number": (lambda task: replace(task, noise_level=True), "noise_level is True"),
    "negative step": (lambda task: replace(task, first_step=-1), "first_step is -1"),
    "clip norm above its limit": (lambda task: replace(task, clip_norm=1e9), "refuses clip norm"),
    "clip norm below its limit": (lambda task: replace(task, clip_norm=0.0), "refuses clip norm"),
    "clip norm not a number": (lambda task: replace(task, clip_norm=math.nan), "refuses clip norm"),
    "missing tensor": (without_one, "do not fit the network"),
    "extra tensor": (lambda task: replace(task, weights={**task.weights, "x": np.zeros(1, np.float32)}), "do not fit"),
    "wrong shape": (with_tensor(lambda value: value[None]), "has not the shape and type"),
    "wrong type": (with_tensor(lambda value: value.astype(np.float64)), "has not the shape and type"),
    "not a number": (with_tensor(lambda value: value * np.float32(math.nan)), "not finite"),
    "infinite": (with_tensor(lambda value: value * 0 + np.float32(math.inf)), "not finite"),
    "not an array": (with_tensor(lambda value: value.tolist()), "not plain arrays"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rule_15_tasks_that_do_not_fit_are_refused_unpaid(case: str, site: Site) -> None:
    change, reason = REFUSED[case]
    before = {name: value.clone() for name, value in site.model.network.state_dict().items()}
    site, engine = one_site.counting(site)
    with pytest.raises((InputError, PrivacyRefusedError), match=reason) as error:
        run_site_round(change(one_site.first_task(site)), site)
    assert "\n" not in str(error.value)
    assert engine.steps == 0
    assert steps_paid(ledger_of(site)) == 0
    assert not (site.folder / stored_update.FILE_NAME).exists()
    assert all(torch.equal(value, before[name]) for name, value in site.model.network.state_dict().items())


def test_kept_optimizer_state_comes_back_in_the_next_round(workspace: Workspace) -> None:
    workspace.edit_plan(optimizer={"momentum": 0.9}, rounds={"optimizer_state": "kept"})
    site = one_site.make(workspace)
    task = one_site.first_task(site)
    update = run_site_round(task, site)
    later = replace(task, round=1, first_step=2, weights={**task.weights, **update.weights})
    kept = run_site_round(later, site)
    (site.folder / "optimizer_after_round_0.pth").unlink()
    lose(site, kept, later)
    with pytest.raises(AdpflError, match=r"optimizer_after_round_0\.pth is missing"):
        run_site_round(later, site)
    assert steps_paid(ledger_of(site)) == 4
    assert sorted(path.name for path in site.folder.glob("optimizer*")) == ["optimizer_after_round_1.pth"]


def test_reset_optimizer_state_leaves_nothing_behind(workspace: Workspace) -> None:
    workspace.edit_plan(optimizer={"momentum": 0.9})
    site = one_site.make(workspace)
    task = one_site.first_task(site)
    run_site_round(task, site)
    assert not list(site.folder.glob("optimizer*"))


def test_rule_12_the_head_of_a_ledger_cannot_be_guessed(workspace: Workspace) -> None:
    """A site sends it with every update; without a secret in it, it would tell whether a guessed list of patients is the true one."""
    heads, nonces = set(), set()
    for number in range(2):
        site = one_site.make(workspace)
        site = replace(site, folder=workspace.base / str(number) / "sites" / site.name)
        heads.add(run_site_round(one_site.first_task(site, run=f"run {number}"), site).ledger_head)
        nonces.add(read_lines(site.folder / "privacy_ledger.jsonl")[0]["nonce"])
    assert len(nonces) == len(heads) == 2
    assert all(len(bytes.fromhex(nonce)) == 16 for nonce in nonces)


def test_rule_10_the_first_steps_again_under_falling_rounds_are_not_a_whole_run(workspace: Workspace) -> None:
    """A server that numbers its rounds backwards may spend the budget, but what was realised is not what was promised."""
    site = one_site.make(workspace)
    for number in (2, 1, 0):
        run_site_round(one_site.first_task(site, round=number, declared_steps=2), site)
        found = summary.summarise(site.folder / "privacy_ledger.jsonl")["sites"][site.name]
        assert (found["epsilon"] == found["epsilon_spent"]) == (number == 2)
    assert (found["epsilon"], found["steps"]) == (8.0, 6)
    assert found["epsilon_spent"] < 8
