"""Whole federated runs in one process: what they leave behind, what they spend, and how they end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import one_site
import pytest
import torch
from finished_runs import Result
from injected_randomness import InjectedRandomness
from workspace import (
    LOCAL_STEPS,
    ROUNDS,
    SITES,
    Workspace,
    assert_equal,
    ledgers,
    read,
    read_lines,
    steps_paid,
    weights,
)

from nnunet_adpfl.errors import AdpflError, PrivacyRefusedError
from nnunet_adpfl.federation import aggregation, client
from nnunet_adpfl.federation.engines import in_process
from nnunet_adpfl.privacy import summary
from nnunet_adpfl.trainers import checkpoint as checkpoints

STEPS = ROUNDS * LOCAL_STEPS


def adpfl_part(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoint_final.pth", weights_only=True)["adpfl"])


def test_every_round_starts_from_the_mean_of_the_last_ones_updates(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    updates: dict[tuple[int, str], dict[str, np.ndarray]] = {}

    def run_site_round(task: client.RoundTask, site: client.Site) -> client.SiteUpdate:
        starts[task.round, site.name] = dict(task.weights)
        update = client.run_site_round(task, site)
        updates[task.round, site.name] = update.weights
        return update

    monkeypatch.setattr(in_process, "run_site_round", run_site_round)
    final = weights(workspace.train())
    for number in range(1, ROUNDS + 1):
        means = {
            name: (updates[number - 1, "site-a"][name].astype(float) * 0.5 + updates[number - 1, "site-b"][name] * 0.5)
            for name in updates[0, "site-a"]
        }
        for name, mean in means.items():
            found = final[name].numpy() if number == ROUNDS else starts[number, "site-b"][name]
            assert np.array_equal(found, mean.astype(np.float32)), (number, name)
            if number < ROUNDS:
                assert not np.array_equal(found, starts[0, "site-a"][name])


def test_sites_are_weighed_by_precision_only_where_there_is_noise(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.edit_plan(rounds={"weights": "precision"})
    original, seen = aggregation.declared_shares, []

    def watched(units: Mapping[str, int], weighting: str) -> dict[str, float]:
        seen.append(weighting)
        return original(units, weighting)

    monkeypatch.setattr(aggregation, "declared_shares", watched)
    for trainer in ("nnUNetTrainerADP", "nnUNetTrainerDP", "nnUNetTrainerNP"):
        workspace.train(trainer=trainer)
    assert seen == ["precision", "precision", "declared"]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_every_name_of_a_tensor_has_the_same_bits_in_the_checkpoint(ema_decay: float, workspace: Workspace) -> None:
    """nnU-Net's networks register most layers several times, and the name loaded last would win."""
    workspace.edit_plan(optimizer={"ema_decay": ema_decay})
    site = one_site.make(workspace)
    names = checkpoints.first_names(site.model.network)
    found = weights(workspace.train())
    assert set(found) == set(names)
    assert len(set(names.values())) < len(names)
    for name, first in names.items():
        assert torch.equal(found[name], found[first]), name


@pytest.mark.parametrize("trainer", ["nnUNetTrainerADP", "nnUNetTrainerDP", "nnUNetTrainerNP"])
def test_rule_09_run_ends_with_checkpoint_records_and_ledgers_within_the_target(trainer: str, finished: Workspace) -> None:
    run = finished.run(trainer, "2d")
    state = adpfl_part(run)
    assert (state["finished"], state["round"], state["steps_done"]) == (True, ROUNDS, STEPS)
    assert not (run / "checkpoint_latest.pth").exists()
    records = read_lines(run / "rounds.jsonl")
    assert [record["round"] for record in records] == list(range(ROUNDS))
    assert [record["steps_done"] for record in records] == [2, 4, 6]
    assert set(ledgers(run)) == set(SITES)
    spent = summary.summarise(run)
    for site, lines in ledgers(run).items():
        assert lines[-1]["hash"] == state["ledger_heads"][site]
        assert steps_paid(lines) == (0 if trainer == "nnUNetTrainerNP" else STEPS)
        scopes = [line["scope"] for line in lines if line["event"] == "non_private"]
        assert scopes == (["plan", "training"] if trainer == "nnUNetTrainerNP" else ["plan"])
    if trainer == "nnUNetTrainerNP":
        assert (spent["epsilon"], spent["guarantee"]) == (None, "none")
    else:
        assert 0 < spent["epsilon"] <= 8
        assert spent["guarantee"] == "formal_given_plan"


def test_rule_08_clip_norm_adapts_only_where_the_plan_says(finished: Workspace) -> None:
    runs = {trainer: finished.run(trainer, "2d") for trainer in ("nnUNetTrainerADP", "nnUNetTrainerDP")}
    norms = {trainer: [line["clip_norm"] for line in read_lines(run / "rounds.jsonl")] for trainer, run in runs.items()}
    assert len(set(norms["nnUNetTrainerADP"])) == ROUNDS
    assert norms["nnUNetTrainerDP"] == [1.0] * ROUNDS


def test_rule_07_dp_trainer_has_constant_noise_whatever_the_plan_declares(workspace: Workspace) -> None:
    workspace.edit_plan(noise_decay={"plateaus": 3, "final_ratio": 0.5}, noise_multiplier=3.0)
    levels = {}
    for trainer in ("nnUNetTrainerADP", "nnUNetTrainerDP"):
        lines = ledgers(workspace.train(trainer=trainer))["site-a"]
        levels[trainer] = [line["noise_multiplier"] for line in lines if line["event"] == "poisson_gaussian"]
    assert len(set(levels["nnUNetTrainerADP"])) == 3
    assert len(set(levels["nnUNetTrainerDP"])) == 1


def test_rule_07_noise_declared_by_hand_is_the_noise_of_the_run(workspace: Workspace) -> None:
    workspace.edit_plan(noise_multiplier=3.0)
    run = workspace.train()
    assert read(run / "privacy_plan.json")["noise_multiplier"] == 3.0
    spent = [line for line in ledgers(run)["site-b"] if line["event"] == "poisson_gaussian"]
    assert {line["noise_multiplier"] for line in spent} == {3.000001}  # rounded up
    workspace.edit_plan(noise_multiplier=0.1)
    with pytest.raises(PrivacyRefusedError, match=r"noise_multiplier 0\.1"):
        workspace.train(trainer="nnUNetTrainerADP", configuration="3d_fullres", fold=1)
    assert not workspace.run(fold=1).joinpath("sites").exists()


def test_rule_02_real_runs_never_repeat_themselves(workspace: Workspace) -> None:
    first = weights(workspace.train("2d", randomness=None))
    workspace.run(configuration="2d").rename(workspace.base / "kept")
    second = weights(workspace.train("2d", randomness=None))
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_runs_with_injected_randomness_are_bit_equal_whatever_the_number_of_workers(
    workspace: Workspace, undisturbed: Result
) -> None:
    found = Result.of(workspace.train(workers=2))
    assert_equal(found.weights, undisturbed.weights)
    assert (found.clip_norm, found.records) == (undisturbed.clip_norm, undisturbed.records)


def test_rule_11_fold_all_trains_on_every_unit(workspace: Workspace) -> None:
    run = workspace.train("2d", "all")
    assert run.name == "fold_all"
    state = torch.load(run / "checkpoint_final.pth", weights_only=True)
    assert state["init_args"]["fold"] == "all"
    declared = read(run / "privacy_plan.json")["training_units"]["all"]
    assert declared == {"site-a": 5, "site-b": 5}


def test_local_steps_chosen_at_the_start_divide_the_same_steps(workspace: Workspace) -> None:
    run = workspace.train(local_steps=4)
    assert [record["steps_done"] for record in read_lines(run / "rounds.jsonl")] == [4, 6]
    assert all(steps_paid(lines) == STEPS for lines in ledgers(run).values())


def test_fewer_rounds_than_planned_spend_less(workspace: Workspace) -> None:
    run = workspace.train(rounds=1)
    assert adpfl_part(run)["steps_done"] == LOCAL_STEPS
    assert all(steps_paid(lines) == LOCAL_STEPS for lines in ledgers(run).values())
    before = (run / "checkpoint_final.pth").read_bytes()
    workspace.train(rounds=1, go_on=True)
    assert (run / "checkpoint_final.pth").read_bytes() == before


def test_optimizer_state_is_kept_or_reset_as_declared(workspace: Workspace, undisturbed: Result) -> None:
    found = {}
    for momentum, state in ((0.0, "kept"), (0.9, "kept"), (0.9, "reset")):
        workspace.edit_plan(optimizer={"momentum": momentum}, rounds={"optimizer_state": state})
        run = workspace.train()
        found[momentum, state] = weights(run)
        run.rename(workspace.base / f"{momentum}_{state}")
    assert_equal(found[0.0, "kept"], undisturbed.weights)
    assert any(not torch.equal(value, found[0.9, "kept"][name]) for name, value in found[0.9, "reset"].items())


def test_moving_average_is_the_result_and_costs_nothing(workspace: Workspace, undisturbed: Result) -> None:
    last = undisturbed.weights
    middles = [weights_after(workspace, number) for number in (1, 2)]
    workspace.edit_plan(optimizer={"ema_decay": 0.9})
    averaged = workspace.train()
    assert all(steps_paid(lines) == STEPS for lines in ledgers(averaged).values())
    assert adpfl_part(averaged)["raw_weights"] is None
    changed = [name for name, value in weights(averaged).items() if not torch.equal(value, last[name])]
    assert changed
    for name in changed:  # a plain mean first: after three rounds each has a third
        expected = (middles[0][name].double() + middles[1][name] + last[name]) / 3
        assert torch.allclose(weights(averaged)[name].double(), expected, atol=1e-6)


def weights_after(workspace: Workspace, rounds: int) -> dict[str, torch.Tensor]:
    run = workspace.train(rounds=rounds)
    found = weights(run)
    run.rename(workspace.base / f"after_{rounds}")
    return found


def fail_at(site: str, rounds: set[int], times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a site fail with an error that may be mended; returns the attempts it made."""
    attempts: list[int] = []

    def run_site_round(task: client.RoundTask, where: client.Site) -> client.SiteUpdate:
        if where.name == site and task.round in rounds and len(attempts) < times:
            attempts.append(task.round)
            raise AdpflError("the scanner's disk is away")
        return client.run_site_round(task, where)

    monkeypatch.setattr(in_process, "run_site_round", run_site_round)
    return attempts


def test_rule_11_a_failed_site_repeats_the_round_and_the_others_pay_once(
    workspace: Workspace, undisturbed: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_at("site-b", {1}, 1, monkeypatch)
    run = workspace.train()
    assert_equal(weights(run), undisturbed.weights)
    assert all(steps_paid(lines) == STEPS for lines in ledgers(run).values())
    assert "site site-b: the scanner's disk is away" in capsys.readouterr().err


def test_a_site_that_fails_twice_stops_the_run_which_goes_on_later(
    workspace: Workspace, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at("site-b", {1}, 2, monkeypatch)
    with pytest.raises(AdpflError, match="round 1 failed twice at site site-b") as error:
        workspace.train()
    assert "\n" not in str(error.value)
    run = workspace.run()
    assert torch.load(run / "checkpoint_latest.pth", weights_only=True)["adpfl"]["round"] == 1
    workspace.train(go_on=True)
    assert_equal(weights(run), undisturbed.weights)
    assert all(steps_paid(lines) == STEPS for lines in ledgers(run).values())


def test_rule_11_a_spent_budget_ends_the_run_with_its_checkpoint(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted more often than the reserve allows for: the last round is beyond the budget."""
    run = workspace.train_until(1)
    spend_again(workspace, times=3)
    workspace.train(go_on=True)
    assert "budget is spent" in capsys.readouterr().err
    final = adpfl_part(run)
    assert final["finished"]
    assert final["steps_done"] < STEPS
    spent = summary.summarise(run)["sites"]
    assert all(0 < site["epsilon"] <= 8 for site in spent.values())


def spend_again(workspace: Workspace, times: int) -> None:
    """Interrupt the next round at the first site this often, after it was paid for."""
    for _ in range(times):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(client.PrivateTraining, "run_block", interrupted)
            with pytest.raises(KeyboardInterrupt):
                workspace.train(go_on=True)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_rule_10_a_run_that_stopped_early_reports_the_declared_epsilon(workspace: Workspace) -> None:
    run = workspace.train_until(1)
    early = summary.summarise(run)
    assert early["epsilon"] == 8.0
    assert all(0 < site["epsilon_spent"] < 8.0 for site in early["sites"].values())
    workspace.train(go_on=True)
    assert summary.summarise(run)["epsilon"] < 8.0
    declared = workspace.train("2d", rounds=1)  # known before the first step, so it counts as it is
    assert summary.summarise(declared)["epsilon"] == early["sites"]["site-a"]["epsilon_spent"]


def test_rule_11_a_retried_round_adds_a_ledger_line(workspace: Workspace) -> None:
    workspace.train(rounds=3, randomness=InterruptedOnce())
    lines = [line for line in ledgers(workspace.run())["site-a"] if line["event"] == "poisson_gaussian"]
    assert [(line["round"], line["attempt"]) for line in lines] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert 0 < summary.summarise(workspace.run())["epsilon"] <= 8


class InterruptedOnce(InjectedRandomness):
    """Fails once, in the middle of the second round of the first site."""

    def __init__(self) -> None:
        super().__init__(1)
        self._left = 1

    def noise(self, site: str, step: int) -> Any:
        if step == 3 and self._left:
            self._left = 0
            raise AdpflError("power cut")
        return super().noise(site, step)


def test_rule_04_records_hold_declared_figures_alone(finished: Workspace) -> None:
    """Drawn sizes, losses or times in them would not be covered by the guarantee."""
    run = finished.run(configuration="2d")
    for record in read_lines(run / "rounds.jsonl"):
        assert set(record) == {"round", "steps_done", "clip_norm", "learning_rate", "sites"}
        assert all(set(site) == {"steps", "share"} for site in record["sites"].values())
    assert all(set(record["sites"]) == set(SITES) for record in read_lines(run / "rounds.jsonl"))


def test_rule_11_every_run_on_the_same_patients_is_in_the_odometer(finished: Workspace) -> None:
    for site in SITES:
        entries = read_lines(finished.preprocessed / "sites" / site / "privacy_odometer.jsonl")
        assert entries.pop(0)["event"] == "plan"
        assert len({entry["run"] for entry in entries}) == 3
        assert steps_paid([entry["line"] for entry in entries]) == 2 * STEPS
        assert len({entry["units_digest"] for entry in entries}) == 1


def test_command_prints_json_alone(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from nnunet_adpfl.cli.main import app

    arguments = ["train", "801", "2d", "0", "-p", "nnUNetPlans_f2", "--rounds", "1", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert Path(printed["run"]) == workspace.run(configuration="2d")
    assert 0 < printed["privacy"]["epsilon"] <= 8
