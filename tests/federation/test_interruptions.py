"""Runs that die at any point and are continued: the same weights as undisturbed, and nothing released unpaid."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_runs import Result, undisturbed_result
from workspace import LOCAL_STEPS, ROUNDS, Workspace, assert_equal, ledgers, steps_paid, weights

from nnunet_adpfl import atomic_files
from nnunet_adpfl.federation import stored_update
from nnunet_adpfl.privacy import accounting, hash_chain, summary
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers.run_folder import RunFolder

TARGET = 8.0


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed(owner: Any, name: str, call: int, when: str) -> Iterator[None]:
    """Die before or after the call-th call of a function, or in the middle of writing a line (``torn``)."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def function(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return original(*arguments, **keywords)
        if when == "torn":
            path, line = arguments
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("ab") as file:
                file.write(line.encode()[: len(line) // 2])
        elif when == "after":
            original(*arguments, **keywords)
        raise Killed

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(owner, name, function)
        with pytest.raises(Killed):
            yield


def check_same_result(workspace: Workspace, undisturbed: Result, released: Counter[str]) -> None:
    run = workspace.run()
    found = Result.of(run)
    assert_equal(found.weights, undisturbed.weights)
    assert (found.clip_norm, found.records) == (undisturbed.clip_norm, undisturbed.records)
    assert not list(run.rglob("*.tmp"))
    for site, lines in ledgers(run).items():
        assert ROUNDS * LOCAL_STEPS <= released[site] <= steps_paid(lines)
    assert 0 < summary.summarise(run)["epsilon"] <= TARGET


# Appended lines of a run, in order: site-a's start (odometer 1, ledger 2), its note on the plan (3, 4), its first round
# (5, 6) and local log (7); site-b likewise (8 to 14); the record of round 0 (15); then (16, 17), 18, (19, 20), 21, 22, ...
POINTS = {
    "described, nothing else": (RunFolder, "save_checkpoint", 1, "before"),
    "first checkpoint": (RunFolder, "save_checkpoint", 1, "after"),
    "start line torn in the odometer": (atomic_files, "append_line", 1, "torn"),
    "start line in the odometer alone": (atomic_files, "append_line", 2, "before"),
    "start line torn in the ledger": (atomic_files, "append_line", 2, "torn"),
    "started": (atomic_files, "append_line", 2, "after"),
    "payment torn in the odometer": (atomic_files, "append_line", 5, "torn"),
    "payment in the odometer alone": (atomic_files, "append_line", 6, "before"),
    "payment torn in the ledger": (atomic_files, "append_line", 6, "torn"),
    "paid": (hash_chain, "append", 6, "after"),
    "within the first block": (Mechanism, "release", 2, "before"),
    "update not stored": (stored_update, "save", 1, "before"),
    "update stored": (stored_update, "save", 1, "after"),
    "within the second site's block": (Mechanism, "release", 4, "after"),
    "local log torn": (atomic_files, "append_line", 14, "torn"),
    "round not recorded": (RunFolder, "append_round", 1, "before"),
    "round's record torn": (atomic_files, "append_line", 15, "torn"),
    "round recorded, no checkpoint": (RunFolder, "append_round", 1, "after"),
    "round's checkpoint not written": (checkpoints, "save", 2, "before"),
    "round's checkpoint written": (checkpoints, "save", 2, "after"),
    "second round's payment torn": (atomic_files, "append_line", 20, "torn"),
    "within the last round": (Mechanism, "release", 11, "after"),
    "last round's checkpoint": (checkpoints, "save", 4, "after"),
    "finished, older checkpoint still there": (checkpoints, "save", 5, "after"),
}


QUICK = (
    "start line torn in the ledger",
    "payment in the odometer alone",
    "payment torn in the ledger",
    "within the first block",
    "update stored",
    "round recorded, no checkpoint",
    "round's checkpoint written",
    "finished, older checkpoint still there",
)


@pytest.mark.parametrize("point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in POINTS])
def test_rule_11_a_run_that_died_goes_on_to_the_same_weights(
    point: str, workspace: Workspace, undisturbed: Result, released: Counter[str]
) -> None:
    with killed(*POINTS[point]):
        workspace.train()
    workspace.train(go_on=True)
    check_same_result(workspace, undisturbed, released)


def test_rule_11_dying_twice_in_one_round_is_paid_three_times(
    workspace: Workspace, undisturbed: Result, released: Counter[str]
) -> None:
    for go_on in (False, True):
        with killed(Mechanism, "release", 1, "after"):
            workspace.train(go_on=go_on)
    workspace.train(go_on=True)
    check_same_result(workspace, undisturbed, released)
    lines = [line for line in ledgers(workspace.run())["site-a"] if line["event"] == "poisson_gaussian"]
    assert [(line["round"], line["attempt"]) for line in lines] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("setting", "point"),
    [
        ("moving average", "round's checkpoint written"),
        ("kept optimizer state", "within the last round"),
        pytest.param("moving average", "within the last round", marks=pytest.mark.slow),
        pytest.param("kept optimizer state", "update not stored", marks=pytest.mark.slow),
        pytest.param("kept optimizer state", "round's checkpoint written", marks=pytest.mark.slow),
    ],
)
def test_state_between_rounds_survives(setting: str, point: str, workspace: Workspace, tmp_path: Path, planned: Path) -> None:
    plan: dict[str, Any] = {"optimizer": {"ema_decay": 0.9}}
    if setting == "kept optimizer state":
        plan = {"optimizer": {"momentum": 0.9}, "rounds": {"optimizer_state": "kept"}}
    workspace.edit_plan(**plan)
    with killed(*POINTS[point]):
        workspace.train()
    workspace.train(go_on=True)
    found = Result.of(workspace.run())
    assert_equal(found.weights, undisturbed_result(planned, tmp_path / "whole", **plan).weights)


@pytest.mark.slow
def test_rule_11_a_run_may_die_at_every_line_it_writes(
    workspace: Workspace, undisturbed: Result, released: Counter[str]
) -> None:
    for line in range(1, 30):
        for when in ("before", "torn"):
            released.clear()
            with killed(atomic_files, "append_line", line, when):
                workspace.train()
            workspace.train(go_on=True)
            check_same_result(workspace, undisturbed, released)
            workspace.run().rename(workspace.base / f"{line}_{when}")


@pytest.mark.slow
def test_rule_11_a_run_may_be_killed_at_any_moment(planned: Path, workspace: Workspace, tmp_path: Path) -> None:
    """Real processes and SIGKILL, at random moments, up to five times a run; every release is noted before it leaves."""
    many = {"reserve_steps": 60, "noise_multiplier": 4.0}
    expected = undisturbed_result(planned, tmp_path / "whole", **many)
    workspace.edit_plan(**many)
    generator = np.random.default_rng(20)
    kills = 0
    number = -1
    while kills < 20:
        number += 1
        log = tmp_path / f"released_{number}"
        duration = 1.0
        for attempt in range(6):
            began = time.monotonic()
            process = multiprocessing.get_context("fork").Process(target=train_and_count, args=(workspace, log))
            process.start()
            process.join(generator.uniform(0, duration) if attempt < 5 else None)
            kills += process.is_alive()
            process.kill()
            process.join()
            if process.exitcode == 0:
                duration = time.monotonic() - began
                break
        assert process.exitcode == 0
        found = Result.of(workspace.run())
        assert_equal(found.weights, expected.weights)
        assert found.records == expected.records
        spent = summary.summarise(workspace.run())
        noted = [line.split() for line in log.read_text().splitlines()]
        for site, lines in ledgers(workspace.run()).items():
            of_site = [float(noise) for name, noise in noted if name == site]
            assert len(of_site) <= steps_paid(lines)
            released = accounting.epsilon([accounting.poisson_gaussian(0.4, noise, 1) for noise in of_site], spent["delta"])
            assert released <= spent["sites"][site]["epsilon"] + 1e-9
        assert 0 < spent["epsilon"] <= TARGET
        workspace.run().rename(tmp_path / f"run_{number}")
    assert number < 40


def train_and_count(workspace: Workspace, log: Path) -> None:
    original = Mechanism.release

    def release(self: Mechanism, summed: Any, permit: Any, site: str, step: int, randomness: Any) -> Any:
        update = original(self, summed, permit, site, step, randomness)
        with log.open("a") as file:  # before anything of the update is anywhere else
            file.write(f"{site} {self.noise_multiplier_at(step)!r}\n")
        return update

    Mechanism.release = release  # type: ignore[method-assign]
    workspace.train(go_on=True)


def test_rule_11_a_full_disk_leaves_the_previous_checkpoint_readable(
    workspace: Workspace, undisturbed: Result
) -> None:
    """A limit on the size of files stands for the full disk: the third checkpoint is larger than that."""
    process = multiprocessing.get_context("fork").Process(target=train_until_disk_is_full, args=(workspace,))
    process.start()
    process.join()
    assert process.exitcode == 28
    run = workspace.run()
    assert not list(run.rglob("*.tmp"))
    assert torch.load(run / "checkpoint_latest.pth", weights_only=True)["adpfl"]["round"] == 1
    workspace.train(go_on=True)
    assert_equal(weights(run), undisturbed.weights)


def train_until_disk_is_full(workspace: Workspace) -> None:
    save, calls = RunFolder.save_checkpoint, 0

    def save_checkpoint(self: RunFolder, *arguments: Any, **keywords: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        return save(self, *arguments, **keywords)

    RunFolder.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
    try:
        workspace.train()
    except OSError as error:
        os._exit(28 if error.errno == errno.EFBIG else 1)


def test_rule_11_a_full_disk_while_the_ledger_is_written_stops_before_the_step(
    workspace: Workspace, released: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(atomic_files.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            workspace.train()
    assert not released
    workspace.train(go_on=True)
    assert released["site-a"] == ROUNDS * LOCAL_STEPS
