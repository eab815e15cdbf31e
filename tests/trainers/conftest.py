"""What the tests of the trainers share: nnU-Net's own trainer in this process, and patches of the planned data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from injected_randomness import InjectedRandomness
from workspace import CONFIGURATION, PLANS, SEED, Workspace, read

from nnunet_adpfl.nnunet_compat.patches import PatchSettings, PatchSource
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.trainers import central_run
from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP
from nnunet_adpfl.trainers.patient_loader import PatientLoader

StockTrainer = Callable[..., nnUNetTrainerADP]


@pytest.fixture
def stock_trainer(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> StockTrainer:
    """Make a trainer as nnUNetv2_train does; its randomness repeats itself, and it loads data in this process."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr("sys.argv", ["nnUNetv2_train"])
    monkeypatch.setattr(central_run, "SecretRandomness", lambda *_: InjectedRandomness(SEED))

    def make(
        configuration: str = CONFIGURATION, fold: Any = 0, *, go_on: bool = False, trainer: type = nnUNetTrainerADP
    ) -> nnUNetTrainerADP:
        plans = {**read(workspace.preprocessed / f"{PLANS}.json"), "continue_training": go_on}
        dataset_json = read(workspace.preprocessed / "dataset.json")
        made: nnUNetTrainerADP = trainer(plans, configuration, fold, dataset_json, torch.device("cpu"))
        return made

    return make


@pytest.fixture
def source(workspace: Workspace) -> Callable[..., PatchSource]:
    """Make a patch source of the planned data set: configuration, K, share of foreground patches."""

    def make(configuration: str = CONFIGURATION, patches: int = 2, foreground: float = 0.33) -> PatchSource:
        plans = read(workspace.preprocessed / f"{PLANS}.json")
        trainer = PlannedTrainer(plans, configuration, read(workspace.preprocessed / "dataset.json"), torch.device("cpu"))
        return PatchSource(trainer, workspace.preprocessed / f"nnUNetPlans_{configuration}", PatchSettings(patches, foreground))

    return make


@pytest.fixture
def loader() -> Iterator[Callable[..., PatientLoader]]:
    """Make loaders whose workers end with the test."""
    made: list[PatientLoader] = []

    def make(source: PatchSource, workers: int = 0) -> PatientLoader:
        made.append(PatientLoader(source, torch.device("cpu"), workers))
        return made[-1]

    yield make
    for each in made:
        each.close()
