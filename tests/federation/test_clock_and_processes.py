"""Rule 11: clocks that jump and processes that run at the same time change neither weights nor what was paid."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
from typing import Any

import pytest
from finished_runs import Result
from workspace import SITES, Workspace, assert_equal, ledgers, read_lines, steps_paid, weights

from nnunet_adpfl.errors import AdpflError
from nnunet_adpfl.privacy import hash_chain, summary
from nnunet_adpfl.privacy import ledger as ledger_module
from nnunet_adpfl.trainers.run_folder import RunFolder

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

YEAR = 365


class JumpingClock:
    """Stands for `datetime` where ledgers are dated; ``today`` moves whenever somebody asks."""

    def __init__(self, days: int) -> None:
        self.days, self.now = days, datetime.date(2031, 1, 1)
        self.date = self

    def today(self) -> datetime.date:
        self.now += datetime.timedelta(days=self.days)
        return self.now


@pytest.mark.parametrize("days", [-YEAR, YEAR])
def test_rule_11_a_date_that_jumps_by_a_year_at_every_line(
    days: int, workspace: Workspace, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "datetime", JumpingClock(days))
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run = workspace.train_until(1)
    monkeypatch.setattr(ledger_module, "datetime", JumpingClock(-days))
    workspace.train(go_on=True)
    assert_equal(weights(run), undisturbed.weights)
    assert all(steps_paid(lines) == 6 for lines in ledgers(run).values())
    dates = [line["date"] for line in ledgers(run)[SITES[0]]]
    assert dates != sorted(dates)
    assert 0 < summary.summarise(run)["epsilon"] <= 8


def attempt(workspace: Workspace, gate: Any, choices: dict[str, Any]) -> None:
    """Trains as soon as the others are ready too; 3: refused with one line."""
    os.environ["OMP_NUM_THREADS"] = "1"
    gate.wait()
    try:
        workspace.train(**choices)
    except AdpflError as error:
        os._exit(3 if "in use by another process" in str(error) or "holds a run already" in str(error) else 4)
    os._exit(0)


def at_the_same_time(workspace: Workspace, *choices: dict[str, Any]) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(len(choices))
    processes = [context.Process(target=attempt, args=(workspace, gate, choice)) for choice in choices]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("go_on", [False, True])
def test_rule_11_of_two_processes_on_one_run_one_is_refused_and_the_other_finishes(
    go_on: bool, workspace: Workspace, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    if go_on:
        workspace.train_until(1)
    save = RunFolder.save_checkpoint

    def slow_save(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(0.3)  # the lock is held for a second at least, so that both processes meet at it
        return save(*arguments, **keywords)

    monkeypatch.setattr(RunFolder, "save_checkpoint", slow_save)
    assert sorted(at_the_same_time(workspace, {"go_on": go_on}, {"go_on": go_on}), key=str) == [0, 3]
    run = workspace.run()
    assert_equal(weights(run), undisturbed.weights)
    assert all(steps_paid(lines) == 6 for lines in ledgers(run).values())
    assert 0 < summary.summarise(run)["epsilon"] <= 8


def test_rule_11_two_runs_of_one_data_set_at_the_same_time_are_both_in_the_odometers(workspace: Workspace) -> None:
    trainers = ("nnUNetTrainerADP", "nnUNetTrainerDP")
    assert at_the_same_time(workspace, *({"configuration": "2d", "trainer": trainer} for trainer in trainers)) == [0, 0]
    for site in SITES:
        odometer = workspace.preprocessed / "sites" / site / "privacy_odometer.jsonl"
        entries = [entry for entry in hash_chain.read(odometer).lines if "line" in entry]
        for trainer in trainers:
            lines = read_lines(workspace.run(trainer, "2d") / "sites" / site / "privacy_ledger.jsonl")
            assert [entry["line"] for entry in entries if entry["run"] == lines[0]["run"]] == lines
        assert steps_paid([entry["line"] for entry in entries]) == 12
