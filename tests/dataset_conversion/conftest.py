"""nnU-Net's folders in a temporary place, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_sources

from nnunet_adpfl.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_raw, empty."""
    for part in ("raw", "preprocessed", "results"):
        (tmp_path / part).mkdir()
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    return tmp_path / "raw"


@pytest.fixture
def msd(tmp_path: Path) -> Path:
    return tiny_sources.write_msd(tmp_path / "Task77_Brain")


@pytest.fixture
def ham(tmp_path: Path) -> Path:
    return tiny_sources.write_ham(tmp_path / "HAM10000")


@pytest.fixture
def adpfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command; returns exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["adpfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call
