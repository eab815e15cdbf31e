"""Rule 11: the disk is full at any kind of write; nothing is released unpaid, and the run goes on to the same weights."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from finished_runs import Result
from workspace import Workspace, assert_equal, ledgers, steps_paid, weights

from nnunet_adpfl import atomic_files
from nnunet_adpfl.privacy import summary

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

APPENDED = ("privacy_odometer.jsonl", "privacy_ledger.jsonl", "local_log.jsonl", "rounds.jsonl")
WRITTEN_ONCE = ("run.json", "privacy_plan.json", "checkpoint_final.pth")
REPLACED = ("checkpoint_latest.pth", "update.safetensors")
QUICK = ("privacy_odometer.jsonl", "privacy_ledger.jsonl", "checkpoint_latest.pth")
LATER = [
    pytest.param(name, call, marks=pytest.mark.slow)
    for name in (*APPENDED, *WRITTEN_ONCE, *REPLACED)
    for call in (1, 2, 3)
    if not (call == 1 and name in QUICK) and not (call > 1 and name in WRITTEN_ONCE)
]


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str, call: int, half: bool) -> list[str]:
    """The call-th write of a file of this name fails, before its first byte or in the middle."""
    append, replacing, seen = atomic_files.append_line, atomic_files.write_bytes, []

    def is_full(path: Path | str) -> bool:
        if Path(path).name == name:
            seen.append(name)
        return Path(path).name == name and len(seen) == call

    def append_line(path: Path | str, line: str) -> None:
        if is_full(path):
            if half:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with Path(path).open("ab") as file:
                    file.write(line.encode()[: len(line) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append(path, line)

    def write_bytes(path: Path | str, data: Any, **choices: Any) -> None:
        if is_full(path):
            with atomic_files.replacing(path) as temporary:
                temporary.write_bytes(bytes(data)[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        replacing(path, data, **choices)

    monkeypatch.setattr(atomic_files, "append_line", append_line)
    monkeypatch.setattr(atomic_files, "write_bytes", write_bytes)
    return seen


@pytest.mark.parametrize(("name", "call"), [*((name, 1) for name in QUICK), *LATER])
def test_rule_11_a_full_disk_at_every_kind_of_write(
    name: str, call: int, workspace: Workspace, undisturbed: Result, released: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        seen = full_disk(context, name, call, half=call != 2)
        with pytest.raises(OSError, match="No space left"):
            workspace.train()
        assert len(seen) == call
    run = workspace.run()
    assert not list(workspace.base.rglob("*.tmp"))
    for site, lines in ledgers(run).items():
        assert released[site] <= steps_paid(lines)
    workspace.train(go_on=True)
    assert_equal(weights(run), undisturbed.weights)
    for site, lines in ledgers(run).items():
        assert 6 <= released[site] <= steps_paid(lines)
    assert 0 < summary.summarise(run)["epsilon"] <= 8
