"""The trainer that nnUNetv2_train finds, in this process: a central run, its checkpoint, its continuation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import SITES, Workspace, assert_equal, read_lines, steps_paid, weights

from nnunet_adpfl.errors import AdpflError
from nnunet_adpfl.privacy import hash_chain, summary
from nnunet_adpfl.privacy.mechanism import ALL_SITES, Mechanism
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP
from nnunet_adpfl.trainers.nnUNetTrainerDP import nnUNetTrainerDP
from nnunet_adpfl.trainers.nnUNetTrainerNP import nnUNetTrainerNP

StockTrainer = Callable[..., nnUNetTrainerADP]
STEPS = 6


class Killed(BaseException):
    """The process ends here."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    original, taken = Mechanism.release, 0

    def release(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(Mechanism, "release", release)


def go_on(workspace: Workspace, stock_trainer: StockTrainer, **choices: Any) -> nnUNetTrainerADP:
    """As nnUNetv2_train --c does: the newest checkpoint by nnU-Net's own order, then training."""
    trainer = stock_trainer(**choices, go_on=True)
    newest = checkpoints.newest(workspace.run())
    if newest is not None:
        trainer.load_checkpoint(str(newest))
    trainer.run_training()
    return trainer


def records_of(run: Path) -> list[dict[str, Any]]:
    """Round records without the number of the attempt."""
    records = read_lines(run / "rounds.jsonl")
    for record in records:
        del record["sites"][ALL_SITES]["attempt"]
    return records


def test_rule_09_a_central_run_pools_the_sites_and_stays_within_the_target(
    workspace: Workspace, stock_trainer: StockTrainer
) -> None:
    stock_trainer().run_training()
    run = workspace.run()
    state = torch.load(run / "checkpoint_final.pth", weights_only=True)["adpfl"]
    assert (state["finished"], state["steps_done"]) == (True, STEPS)
    assert not (run / "checkpoint_latest.pth").exists()
    lines = read_lines(run / "privacy_ledger.jsonl")
    assert {line["site"] for line in lines} == {ALL_SITES}
    assert steps_paid(lines) == STEPS
    found = summary.summarise(run)
    assert 0 < found["epsilon"] <= 8
    assert list(found["sites"]) == [ALL_SITES]
    for site in SITES:
        entries = read_lines(workspace.preprocessed / "sites" / site / "privacy_odometer.jsonl")
        assert steps_paid([entry["line"] for entry in entries if "line" in entry]) == STEPS


def test_rule_04_the_divisor_of_a_central_run_is_that_of_all_sites(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    original = Mechanism.expected_units

    def expected_units(self: Mechanism, site: str) -> float:
        seen.append(original(self, site))
        return seen[-1]

    monkeypatch.setattr(Mechanism, "expected_units", expected_units)
    stock_trainer().run_training()
    assert seen == [pytest.approx(0.4 * 8)] * len(seen)


def test_rule_04_records_of_a_central_run_hold_declared_figures_alone(
    workspace: Workspace, stock_trainer: StockTrainer
) -> None:
    stock_trainer("2d").run_training()
    for record in read_lines(workspace.run(configuration="2d") / "rounds.jsonl"):
        assert set(record) == {"round", "steps_done", "clip_norm", "learning_rate", "sites"}
        assert record["sites"] == {ALL_SITES: {"steps": 2, "attempt": 0}}


@pytest.mark.parametrize(("trainer", "guarantee"), [(nnUNetTrainerDP, "formal_given_plan"), (nnUNetTrainerNP, "none")])
def test_variants_of_the_trainer(trainer: type, guarantee: str, workspace: Workspace, stock_trainer: StockTrainer) -> None:
    stock_trainer(trainer=trainer).run_training()
    run = workspace.run(trainer.__name__)
    assert summary.summarise(run)["guarantee"] == guarantee
    assert torch.load(run / "checkpoint_final.pth", weights_only=True)["trainer_name"] == trainer.__name__


@pytest.mark.parametrize(("setting", "steps"), [("momentum", 1), ("momentum", 4), ("moving average", 3), ("moving average", 5)])
def test_rule_11_a_central_run_that_died_goes_on_to_the_same_weights(
    setting: str, steps: int, workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.edit_plan(optimizer={"ema_decay": 0.9} if setting == "moving average" else {"momentum": 0.9})
    stock_trainer().run_training()
    run = workspace.run()
    expected, records = weights(run), records_of(run)
    run.rename(workspace.base / "undisturbed")
    with monkeypatch.context() as context:
        interrupt_after(context, steps)
        with pytest.raises(Killed):
            stock_trainer().run_training()
    trainer = go_on(workspace, stock_trainer)
    assert_equal(weights(run), expected)
    assert_equal(dict(trainer.network.state_dict()), expected)  # nnU-Net validates with these
    assert records_of(run) == records
    lines = list(hash_chain.read(run / "privacy_ledger.jsonl").lines)
    assert steps_paid(lines) == STEPS + 2
    assert 0 < summary.summarise(run)["epsilon"] <= 8


def test_rule_11_a_finished_run_that_is_continued_spends_nothing(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    stock_trainer().run_training()
    run = workspace.run()
    before = {path: path.read_bytes() for path in (run / "checkpoint_final.pth", run / "privacy_ledger.jsonl")}
    trainer = go_on(workspace, stock_trainer)
    assert {path: path.read_bytes() for path in before} == before
    assert_equal(dict(trainer.network.state_dict()), weights(run))


def test_rule_11_a_spent_budget_ends_the_run_with_its_checkpoint(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt in range(4):
        with monkeypatch.context() as context:
            interrupt_after(context, 2 if attempt == 0 else 0)
            with pytest.raises(Killed):
                go_on(workspace, stock_trainer)
    go_on(workspace, stock_trainer)
    assert "target epsilon 8 pays for" in capsys.readouterr().err
    state = torch.load(workspace.run() / "checkpoint_final.pth", weights_only=True)["adpfl"]
    assert state["finished"]
    assert 0 < state["steps_done"] < STEPS
    assert 0 < summary.summarise(workspace.run())["epsilon"] <= 8


def test_rule_11_fold_all(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    stock_trainer("2d", "all").run_training()
    content = torch.load(workspace.run(configuration="2d", fold="all") / "checkpoint_final.pth", weights_only=True)
    assert content["init_args"]["fold"] == "all"


def refused(workspace: Workspace, reason: str, call: Callable[[], Any]) -> None:
    ledgers = {path: path.read_bytes() for path in workspace.base.rglob("privacy_*.jsonl")}
    with pytest.raises(SystemExit, match=reason) as end:
        call()
    assert str(end.value).startswith("error: ")
    assert "\n" not in str(end.value)
    assert {path: path.read_bytes() for path in workspace.base.rglob("privacy_*.jsonl")} == ledgers


def test_rule_11_calls_that_the_trainer_refuses(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setenv("nnUNet_wandb_enabled", "1")
        refused(workspace, "Weights & Biases", stock_trainer)
    with monkeypatch.context() as context:
        context.setattr("sys.argv", ["nnUNetv2_train", "--val_best"])
        refused(workspace, "--val_best is refused", stock_trainer)
    with monkeypatch.context() as context:
        context.setattr(torch.distributed, "is_initialized", lambda: True)
        refused(workspace, "several GPUs", stock_trainer)
    refused(workspace, "fold 7 is beyond", lambda: stock_trainer(fold=7))
    refused(workspace, "configuration '3d_lowres' is not in", lambda: stock_trainer("3d_lowres"))
    trainer = stock_trainer()
    trainer.disable_checkpointing = True
    refused(workspace, "--disable_checkpointing", trainer.run_training)
    assert not list(workspace.base.rglob("checkpoint_*"))


def test_rule_11_existing_runs_of_any_kind_are_not_overwritten(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    workspace.train(rounds=1)
    refused(workspace, "holds a run already", stock_trainer)
    refused(workspace, "holds a federated run", lambda: go_on(workspace, stock_trainer))
    run = workspace.run()
    run.rename(workspace.base / "federated")
    run.mkdir()
    torch.save({}, run / "checkpoint_best.pth")  # of stock nnU-Net
    refused(workspace, "holds a run already", stock_trainer)


def test_rule_11_a_ledger_without_checkpoint_is_refused(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    stock_trainer().run_training()
    (workspace.run() / "checkpoint_final.pth").unlink()
    refused(workspace, "has a privacy ledger but no checkpoint", lambda: go_on(workspace, stock_trainer))
    refused(workspace, "holds a run already", stock_trainer)


def test_rule_11_a_damaged_ledger_is_refused(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        interrupt_after(context, 3)
        with pytest.raises(Killed):
            stock_trainer().run_training()
    path = workspace.run() / "privacy_ledger.jsonl"
    path.write_text(path.read_text().replace('"steps": 2', '"steps": 1', 1))
    refused(workspace, "was edited", lambda: go_on(workspace, stock_trainer))
    path.unlink()
    refused(workspace, "is missing", lambda: go_on(workspace, stock_trainer))


def test_rule_01_a_missing_or_changed_cohort_is_refused(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    path = workspace.preprocessed / "cohort.json"
    text = path.read_text()
    path.write_text(text.replace("patient_01", "patient_91"))
    refused(workspace, "is not the cohort that the privacy plan was made for", stock_trainer)
    path.unlink()
    refused(workspace, "cohort.json is missing", stock_trainer)


def test_rule_06_nothing_of_nnunets_own_training_step_is_left(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    """No gradient scaler, no clip over the batch, no compiled network, no batch dice, no positional oversampling."""
    trainer = stock_trainer()
    trainer.initialize()
    assert trainer.grad_scaler is None
    assert trainer.optimizer is None
    assert not trainer._do_i_compile()
    assert trainer.probabilistic_oversampling
    assert trainer.configuration_manager.batch_dice is False
    assert trainer.loss.loss.dc.batch_dice is False
    assert trainer.dataloader_train is None
    with pytest.raises(RuntimeError, match="writes its checkpoints itself"):
        trainer.save_checkpoint("x.pth")


def test_the_folder_for_nnunet_holds_the_trainers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from typer.testing import CliRunner

    from nnunet_adpfl.cli.main import app

    printed = CliRunner().invoke(app, ["trainer-path"]).stdout.strip()
    monkeypatch.setenv("nnUNet_extTrainer", printed)
    for wanted in (nnUNetTrainerADP, nnUNetTrainerDP, nnUNetTrainerNP):
        assert recursive_find_trainer_class_by_name(wanted.__name__) is wanted


def test_an_unreadable_case_stops_a_central_run_in_one_line(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunet_adpfl.nnunet_compat.patches import PatchSource

    def patches(*_: Any) -> Any:
        raise RuntimeError("blosc2 says no\nand more")

    monkeypatch.setattr(PatchSource, "patches", patches)
    trainer = stock_trainer()
    with pytest.raises(SystemExit, match="cannot be read") as end:
        trainer.run_training()
    assert "\n" not in str(end.value)
    assert isinstance(end.value.__context__, AdpflError)
    assert steps_paid(read_lines(workspace.run() / "privacy_ledger.jsonl")) == 2
