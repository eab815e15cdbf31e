"""A tiny raw data set and nnU-Net's three folders, for the tests of planning; finished runs, for those of training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_dataset
from finished_runs import Result, undisturbed_result
from workspace import Workspace, own_workspace

from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.privacy.mechanism import Mechanism


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set nnU-Net's variables to empty folders raw, preprocessed and results below the returned one."""
    for part in ("raw", "preprocessed", "results"):
        (tmp_path / part).mkdir()
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    return tmp_path


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 foreground voxels of each tiny case instead of 7 million."""
    monkeypatch.setattr(stock, "FOREGROUND_SAMPLES", 14_000)


@pytest.fixture
def tiny(nnunet_folders: Path, few_samples: None) -> Path:
    """The folder of a raw data set with cohort: 10 patients at two sites."""
    tiny_dataset.write_raw(nnunet_folders / "raw", patients=10, side=12)
    return nnunet_folders / "raw" / tiny_dataset.NAME


@pytest.fixture(scope="session")
def undisturbed(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return undisturbed_result(planned, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def finished(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One finished 2d run of every trainer; read only."""
    with own_workspace(planned, tmp_path_factory.mktemp("finished")) as workspace:
        for trainer in ("nnUNetTrainerADP", "nnUNetTrainerDP", "nnUNetTrainerNP"):
            workspace.train("2d", trainer=trainer)
    return workspace


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Site -> steps that were released, over all processes of a run."""
    counts: Counter[str] = Counter()
    original = Mechanism.release

    def release(self: Mechanism, summed: Any, permit: Any, site: str, step: int, randomness: Any) -> Any:
        counts[site] += 1
        return original(self, summed, permit, site, step, randomness)

    monkeypatch.setattr(Mechanism, "release", release)
    return counts
