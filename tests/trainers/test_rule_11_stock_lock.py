"""Rule 11: the stock trainer acts on what it reads under the lock, not on what it read before another process went on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from workspace import Workspace, assert_equal, read_lines, steps_paid, weights

from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import run_manifest
from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP

StockTrainer = Callable[..., nnUNetTrainerADP]


class Killed(BaseException):
    """The process ends here."""


def half_done(stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    original, taken = Mechanism.release, 0

    def release(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > 2:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as context:
        context.setattr(Mechanism, "release", release)
        with pytest.raises(Killed):
            stock_trainer().run_training()


def continued(workspace: Workspace, stock_trainer: StockTrainer) -> nnUNetTrainerADP:
    """As nnUNetv2_train --c: the checkpoint is read before the training, and its lock, begin."""
    trainer = stock_trainer(go_on=True)
    trainer.load_checkpoint(str(checkpoints.newest(workspace.run())))
    return trainer


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(stock_trainer, monkeypatch)
    late = continued(workspace, stock_trainer)
    continued(workspace, stock_trainer).run_training()
    run = workspace.run()
    finished, paid = weights(run), steps_paid(read_lines(run / ledgers.FILE_NAME))
    late.run_training()
    assert steps_paid(read_lines(run / ledgers.FILE_NAME)) == paid
    assert_equal(weights(run), finished)
    assert_equal(dict(late.network.state_dict()), finished)  # nnU-Net validates with these


def test_checkpoint_and_ledger_are_read_while_the_lock_is_held(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(stock_trainer, monkeypatch)
    trainer = continued(workspace, stock_trainer)
    seen: list[str] = []
    load, resume, locked = checkpoints.load, ledgers.Ledger.resume, run_manifest.locked

    def note(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            seen.append(name)
            return original(*arguments, **keywords)

        return noted

    monkeypatch.setattr(run_manifest, "locked", note("lock", locked))
    monkeypatch.setattr(checkpoints, "load", note("checkpoint", load))
    monkeypatch.setattr(ledgers.Ledger, "resume", note("ledger", resume))
    trainer.run_training()
    assert seen.index("lock") < seen.index("checkpoint") < seen.index("ledger")


def test_two_trainers_on_one_run_one_is_refused(
    workspace: Workspace, stock_trainer: StockTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(stock_trainer, monkeypatch)
    before = (workspace.run() / ledgers.FILE_NAME).read_bytes()
    trainer = continued(workspace, stock_trainer)
    with run_manifest.locked(workspace.run()), pytest.raises(SystemExit, match="in use by another process"):
        trainer.run_training()
    assert (workspace.run() / ledgers.FILE_NAME).read_bytes() == before


def test_a_run_that_began_meanwhile_is_not_begun_again(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    late = stock_trainer()
    stock_trainer().run_training()
    done = torch.load(workspace.run() / checkpoints.FINAL, weights_only=True)["adpfl"]["run"]
    with pytest.raises(SystemExit, match="holds a run already"):
        late.run_training()
    assert torch.load(workspace.run() / checkpoints.FINAL, weights_only=True)["adpfl"]["run"] == done
