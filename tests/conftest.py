"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("nnUNet_def_n_proc", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the optional real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ADPFL_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("the real data is not on this machine (set ADPFL_SHARED_DATA to its folder)")
    return folder
