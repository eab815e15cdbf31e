"""Rule 10: the noise follows the training, from private outputs or public units alone, and goes on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from workspace import SITES, Workspace, assert_equal, ledgers, read_lines, steps_paid, weights

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy import hash_chain, summary
from nnunet_adpfl.privacy.plan import Adaptation
from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP
from nnunet_adpfl.trainers.noise_control import NoiseControl, UpdateAgreement

DATA_DRIVEN = {"kind": "data_driven", "patience": 1, "levels": 2, "noise_factor": 0.9, "weak_below": 0.9}


class Given:
    """A signal that says what it is told."""

    def __init__(self, *values: float | None) -> None:
        self.state: dict[str, Any] = {}
        self._values = list(values)

    def measure(self, weights: Any) -> float | None:
        return self._values.pop(0)


def after(control: NoiseControl, rounds: int) -> tuple[int, bool]:
    for _ in range(rounds):
        control.after_round({})
    return control.level, control.stopped


def test_rule_10_noise_is_lowered_after_weak_rounds_in_a_row_and_then_training_stops() -> None:
    settings = Adaptation(patience=2, levels=2, weak_below=0.5)
    assert after(NoiseControl(settings, Given(0.1, 0.9, 0.1)), 3) == (0, False)
    assert after(NoiseControl(settings, Given(None, 0.1, None, 0.1)), 4) == (1, False)
    assert after(NoiseControl(settings, Given(0.1, 0.1, 0.1, 0.9)), 4) == (1, False)
    assert after(NoiseControl(settings, Given(0.1, 0.1, 0.1, 0.1)), 4) == (1, True)


def test_update_agreement_is_the_cosine_of_successive_changes() -> None:
    start = {"a": torch.zeros(2), "b": torch.zeros(1)}
    signal = UpdateAgreement(start)
    assert signal.measure({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}) is None
    assert signal.measure({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([9.0])}) == pytest.approx(0.8)
    assert signal.measure({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}) == pytest.approx(-1.0)
    assert signal.measure({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}) == 0.0


def levels_of(lines: list[dict[str, Any]]) -> list[float]:
    return [line["noise_multiplier"] for line in lines if line["event"] == "poisson_gaussian"]


def test_rule_10_a_federated_run_lowers_its_noise_under_the_filter(workspace: Workspace) -> None:
    workspace.edit_plan(adaptation=DATA_DRIVEN, noise_multiplier=None)
    run = workspace.train()
    for lines in ledgers(run).values():
        assert (lines[0]["composition"], lines[0]["target_epsilon"]) == ("rdp_filter", 8.0)
        first, *_, last = levels_of(lines)
        assert last == pytest.approx(first * 0.9, rel=1e-4)
    found = summary.summarise(run)
    assert (found["epsilon"], found["accountant"], found["guarantee"]) == (8.0, "RDP filter", "formal_given_plan")
    assert all(site["epsilon_spent"] <= 8.0 for site in found["sites"].values())
    assert [record["noise_level"] for record in read_lines(run / "rounds.jsonl")] == [0, 0, 1]


@pytest.mark.parametrize("signal", ["update_agreement", "public_loss"])
def test_rule_10_a_stopped_data_driven_run_goes_on_as_if_it_had_not_been(signal: str, workspace: Workspace) -> None:
    workspace.edit_plan(adaptation={**DATA_DRIVEN, "signal": signal}, noise_multiplier=None, validation="public")
    whole = workspace.train()
    kept = weights(whole)
    noise = {site: levels_of(lines) for site, lines in ledgers(whole).items()}
    whole.rename(workspace.base / "whole")
    run = workspace.train_until(2)
    workspace.train(go_on=True)
    assert_equal(weights(run), kept)
    assert {site: levels_of(lines) for site, lines in ledgers(run).items()} == noise


def test_rule_10_a_run_may_stop_by_itself(workspace: Workspace) -> None:
    workspace.edit_plan(adaptation={**DATA_DRIVEN, "levels": 1}, noise_multiplier=None)
    run = workspace.train()
    assert all(steps_paid(lines) == 4 for lines in ledgers(run).values())
    assert (run / "checkpoint_final.pth").is_file()
    assert summary.summarise(run)["epsilon"] == 8.0


def test_rule_10_a_central_run_too(workspace: Workspace, stock_trainer: Callable[..., nnUNetTrainerADP]) -> None:
    workspace.edit_plan(adaptation=DATA_DRIVEN, noise_multiplier=None)
    stock_trainer().run_training()
    lines = list(hash_chain.read(workspace.run() / "privacy_ledger.jsonl").lines)
    assert lines[0]["composition"] == "rdp_filter"
    assert len(set(levels_of(lines))) == 2
    assert summary.summarise(workspace.run())["epsilon"] == 8.0


def test_rule_10_a_unit_that_trains_is_not_public(workspace: Workspace) -> None:
    workspace.edit_plan(adaptation={**DATA_DRIVEN, "signal": "public_loss"}, noise_multiplier=None, validation="public")
    with pytest.raises(PrivacyRefusedError, match=r"also trains in fold all"):
        workspace.train(fold="all")
    assert not workspace.run(fold="all").exists()


def test_rule_10_fixed_trainers_have_no_data_driven_noise(workspace: Workspace) -> None:
    workspace.edit_plan(adaptation=DATA_DRIVEN, noise_multiplier=None)
    lines = ledgers(workspace.train(trainer="nnUNetTrainerDP"))[SITES[0]]
    assert lines[0]["composition"] == "declared"
