"""Rule 12: who may read the files: what a site keeps to itself is its owner's alone, a release is for everybody."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from workspace import SITES, Workspace

from nnunet_adpfl import atomic_files
from nnunet_adpfl.trainers.release import export_run

PRIVATE = ("privacy_ledger.jsonl", "privacy_odometer.jsonl", "local_log.jsonl", "update.safetensors", "checkpoint_latest.pth")
ORDINARY = ("checkpoint_final.pth", "plans.json", "dataset.json", "run.json", "privacy_plan.json")


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_rule_12_what_stays_is_the_owners_and_what_leaves_is_everybodys(umask: int, workspace: Workspace) -> None:
    workspace.edit_plan(optimizer={"ema_decay": 0.9, "momentum": 0.9}, rounds={"optimizer_state": "kept"})
    run = workspace.train_until(1)
    assert mode(run / "checkpoint_latest.pth") == 0o600  # it holds weights before averaging
    workspace.train(go_on=True)
    found = [path for base in (run, workspace.preprocessed / "sites") for path in base.rglob("*") if path.is_file()]
    private = [path for path in found if path.name in PRIVATE or path.name.startswith("optimizer_after")]
    assert {path.name for path in private} >= set(PRIVATE[:4])
    assert {mode(path) for path in private} == {0o600}
    for site in SITES:
        assert mode(run / "sites" / site) == mode(workspace.preprocessed / "sites" / site) == 0o700
    ordinary = [run / name if (run / name).exists() else run.parent / name for name in ORDINARY]
    assert {mode(path) for path in ordinary} == {0o666 & ~umask}

    export_run(run, workspace.base / "out")
    released = [workspace.base / "out", *(workspace.base / "out").rglob("*")]
    assert {mode(path) for path in released if path.is_file()} == {0o644}
    assert {mode(path) for path in released if path.is_dir()} == {0o755}


def test_a_private_file_is_never_readable_while_it_is_written(tmp_path: Path) -> None:
    with atomic_files.replacing(tmp_path / "file", private=True) as temporary:
        assert mode(temporary) == 0o600
    assert mode(tmp_path / "file") == 0o600
