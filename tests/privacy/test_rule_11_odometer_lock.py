"""Rule 11: runs side by side on the same patients share an odometer, and none of their lines is lost or torn."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from nnunet_adpfl.privacy import hash_chain
from nnunet_adpfl.privacy.odometer import Odometer

LINES = 40


def append_lines(path: Path, run: str) -> None:
    for number in range(LINES):
        line = hash_chain.sealed({"event": "start", "run": run, "site": "a", "number": number}, hash_chain.GENESIS)
        Odometer(path).record(line, "digest")


def test_rule_11_runs_side_by_side_take_turns_at_the_odometer(tmp_path: Path) -> None:
    path = tmp_path / "sites" / "a" / "privacy_odometer.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_lines, args=(path, run)) for run in ("one", "two", "three")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    entries = hash_chain.read(path).lines
    assert len(entries) == 3 * LINES
    for run in ("one", "two", "three"):
        assert [entry["line"]["number"] for entry in entries if entry["run"] == run] == list(range(LINES))
