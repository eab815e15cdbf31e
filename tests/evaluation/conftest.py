"""Fake runs: the data is preprocessed once a session; tests change copies of the run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import tiny_run
from tiny_run import TinyRun


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """3D, two labels; read only."""
    return tiny_run.make(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """2D colour images with overlapping regions, public validation; read only."""
    return tiny_run.make(
        tmp_path_factory.mktemp("photos"), name="Dataset812_Photos", flat=True, regions=True, validation="public"
    )


@pytest.fixture
def volume_run(volumes: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A copy of the 3D run that a test may change; nnU-Net's folders are set."""
    return _copy(volumes, tmp_path, monkeypatch)


@pytest.fixture
def photo_run(photos: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    return _copy(photos, tmp_path, monkeypatch)


def _copy(tiny: TinyRun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    base = folder / "base"
    shutil.copytree(tiny.base, base, dirs_exist_ok=True)  # a test may have both runs
    tiny_run.set_folders(monkeypatch, base)
    return dataclasses.replace(
        tiny,
        base=base,
        run=base / tiny.run.relative_to(tiny.base),
        preprocessed=base / tiny.preprocessed.relative_to(tiny.base),
    )
