"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from workspace import Workspace

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors; and a process with one thread may fork


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the optional real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ADPFL_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("the real data is not on this machine (set ADPFL_SHARED_DATA to its folder)")
    return folder


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders with a tiny planned data set; read only."""
    from workspace import plan_once, remember_epsilons

    remember_epsilons()
    known = os.environ.get("ADPFL_TEST_PLANNED")  # the mutation proof plans once for all its sessions
    base = Path(known) if known else tmp_path_factory.mktemp("planned")
    if not (base / "preprocessed").is_dir():
        plan_once(base)
    return base


@pytest.fixture
def workspace(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The planned data set in folders that the test may change; nnU-Net's variables point at them."""
    from workspace import copy_of, set_folders

    copy = copy_of(planned, tmp_path / "workspace")
    set_folders(monkeypatch, copy.base)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no disk loses its power here, and it is a third of a run's time
    return copy
