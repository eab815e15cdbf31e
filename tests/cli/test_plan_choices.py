"""``adpfl plan`` says what it chose and why, keeps what the user chose, and widens the network only where asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import workspace as workspaces
from workspace import Workspace

from nnunet_adpfl.cli import main
from nnunet_adpfl.federation.expected_signal import expected_signal
from nnunet_adpfl.federation.planning import PlanningChoices, prepare_dataset
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_network, parameter_count
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.choices import CHOSEN

CONFIGURATION = workspaces.CONFIGURATION


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    monkeypatch.setattr("sys.argv", ["adpfl", "plan", "801", "-c", CONFIGURATION, "--epsilon", "8", *options])
    with pytest.raises(SystemExit) as left:
        main.main()
    captured = capsys.readouterr()
    assert not left.value.code, captured.err
    return captured.out


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    return json.loads(call(monkeypatch, capsys, "--json", *options))


def test_every_choice_has_a_reason_and_is_in_the_file(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--base-features", "2", "--steps", "40", "--set", "optimizer.learning_rate=0.3", "--set", "clipping.quantile=0.4"]
    figures = planned(monkeypatch, capsys, *options)["configurations"][CONFIGURATION]
    choices, plan = figures["choices"], privacy_plans.load(workspace.plan_file).model_dump()
    assert set(choices) == {*CHOSEN, "base_features"}
    for name in CHOSEN:
        section, _, field = name.rpartition(".")
        assert (plan[section] if section else plan)[field] == choices[name]["value"], name
    given = {"epsilon", "steps", "optimizer.learning_rate", "clipping.method", "clipping.quantile", "base_features"}
    assert {name for name, choice in choices.items() if choice["given"]} == given
    assert all(choice["why"] for choice in choices.values())
    assert choices["clipping.method"]["value"] == "percentile", "its quantile was given"
    assert figures["signal"]["signal_to_noise"] > 0


def test_the_noise_can_be_given_but_not_below_what_epsilon_needs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--base-features", "2", "--steps", "40", "--sampling-rate", "0.5"]
    least = planned(monkeypatch, capsys, *fixed)["configurations"][CONFIGURATION]
    more = 2 * least["noise_multiplier"]
    found = planned(monkeypatch, capsys, *fixed, "--set", f"noise_multiplier={more}")["configurations"][CONFIGURATION]
    assert found["choices"]["noise_multiplier"] == {"value": more, "why": "given", "given": True}
    assert privacy_plans.load(workspace.plan_file).noise_multiplier == more
    rates = [figures["choices"]["optimizer.learning_rate"]["value"] for figures in (least, found)]
    assert rates[1] == pytest.approx(rates[0] / 2, rel=0.15), "twice the noise, half the rate"
    before = workspace.plan_file.read_bytes()
    too_little = ["adpfl", "plan", "801", "-c", CONFIGURATION, "--epsilon", "8", *fixed, "--set", f"noise_multiplier={more / 4}"]
    monkeypatch.setattr("sys.argv", too_little)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code
    assert "above the plan's 8" in capsys.readouterr().err
    assert workspace.plan_file.read_bytes() == before


def test_reasons_are_those_of_what_was_given(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "adaptation.kind=data_driven", "--set", "optimizer.tail_share=0.5"]
    choices = planned(monkeypatch, capsys, *options)["configurations"][CONFIGURATION]["choices"]
    assert choices["noise_multiplier"]["why"].endswith("by the Renyi filter")
    assert choices["optimizer.ema_decay"]["value"] == 0
    assert "tail_share" in choices["optimizer.ema_decay"]["why"]


def test_a_declared_mask_counts_for_the_expected_signal(workspace: Workspace) -> None:
    found = prepare_dataset("801", [CONFIGURATION], PlanningChoices(base_features=2))
    plan = privacy_plans.load(workspace.plan_file)
    masked = plan.model_copy(update={"trainable": plan.trainable.model_copy(update={"random_mask": 0.25})})
    whole, quarter = (expected_signal(one, found.plans, CONFIGURATION, found.dataset_json) for one in (plan, masked))
    assert whole is not None
    assert quarter is not None
    assert quarter.parameters == pytest.approx(whole.parameters / 4, abs=1)
    assert quarter.signal_to_noise == pytest.approx(2 * whole.signal_to_noise, rel=1e-3)


def test_a_plan_that_is_kept_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.edit_plan(patches_per_unit=5)
    monkeypatch.setattr("sys.argv", ["adpfl", "plan", "801", "-c", CONFIGURATION, "--base-features", "2", "--json"])
    with pytest.raises(SystemExit):
        main.main()
    choices = json.loads(capsys.readouterr().out)["configurations"][CONFIGURATION]["choices"]
    assert choices["patches_per_unit"] == {"value": 5, "why": f"kept from {workspace.plan_file.name}", "given": True}


def test_the_table_and_the_advice_are_printed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(monkeypatch, capsys)
    assert "optimizer.learning_rate" in said
    assert "expected signal to noise" in said
    assert "advised: --base-features 4" in said  # 8 patients are too few for any width


def test_auto_takes_the_advised_width(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(monkeypatch, capsys, "--base-features", "auto")
    assert found["plans"] == "nnUNetPlans_f4"
    figures = found["configurations"][CONFIGURATION]
    assert figures["choices"]["base_features"]["value"] == figures["signal"]["advised_base_features"] == 4
    assert not figures["choices"]["base_features"]["given"]
    assert (workspace.preprocessed / "nnUNetPlans_f4.json").is_file()


def test_parameters_are_those_of_the_network(workspace: Workspace) -> None:
    dataset = prepare_dataset(801, [CONFIGURATION], PlanningChoices(base_features=2))
    signal = expected_signal(privacy_plans.load(workspace.plan_file), dataset.plans, CONFIGURATION, dataset.dataset_json)
    trainer = PlannedTrainer(dataset.plans, CONFIGURATION, dataset.dataset_json, torch.device("cpu"))
    network = build_network(trainer, seed=0)
    assert signal is not None
    assert signal.parameters == sum(parameter.numel() for parameter in network.parameters())
    counted = parameter_count(dataset.plans, CONFIGURATION, dataset.dataset_json, ("encoder.*",))
    assert counted == signal.parameters - sum(parameter.numel() for parameter in network.encoder.parameters())
