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
