"""The demo: a made-up skin cohort of four sites through every stage, to see on one page what privacy costs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_adpfl import atomic_files, folders, progress
from nnunet_adpfl.dataset_conversion import converters
from nnunet_adpfl.dataset_conversion.synthetic import ham10000 as synthetic_ham10000
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation import site_matrix
from nnunet_adpfl.evaluation.classes import scored_classes
from nnunet_adpfl.evaluation.constant_mask import best_constant_mask_dice
from nnunet_adpfl.evaluation.run_evaluation import EvaluationSettings, score_weights
from nnunet_adpfl.experiments import pipeline
from nnunet_adpfl.experiments.pipeline import TrainingChoices
from nnunet_adpfl.federation.planning import PlanningChoices
from nnunet_adpfl.federation.privacy_planning import PrivacyChoices
from nnunet_adpfl.nnunet_compat.prediction import LabelReader
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_network
from nnunet_adpfl.trainers import prepared_fold
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.release import export_run

MARK = ".adpfl_demo"  # a folder without it is not the demo's, and never replaced
DATASET_NUMBER, DATASET_NAME = 500, "SyntheticHAM"
CONFIGURATION, FOLD = "2d", "0"
TRAINERS = ("nnUNetTrainerNP", "nnUNetTrainerDP", "nnUNetTrainerADP")
MOST_LESIONS = 240


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demo. The defaults take less than eight minutes on two cores."""

    lesions: int = MOST_LESIONS
    rounds: int = 8
    local_steps: int = 5
    base_features: int = 8
    sampling_rate: float = 0.25
    patches_per_unit: int = 2
    learning_rate: float = 0.15
    ema_decay: float = 0.95
    epsilon: float = 8.0
    heterogeneity: float = 0.5
    seed: int = 0
    device: str = "cpu"


def demo(folder: Path, settings: DemoSettings | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Make a cohort, convert, plan, train without privacy, with fixed and with adaptive DP-SGD, evaluate, report, export.

    Args:
        folder: new folder for data, plans, runs and release; nnU-Net's own folders are not touched.
        overwrite: replace the folder of an earlier demo.

    Returns mean Dice of each method, of the initial weights and of the best constant mask, epsilon, paths, seconds.
    """
    settings = settings or DemoSettings()
    began = time.monotonic()
    _make_folder(folder, overwrite)
    with _nnunet_folders(folder):
        source = folder / "HAM10000"
        synthetic_ham10000.generate(
            source, units=settings.lesions, heterogeneity=settings.heterogeneity, seed=settings.seed
        )
        dataset = converters.convert("ham10000", source, DATASET_NUMBER, name=DATASET_NAME).folder.name
        runs = {name: _run(dataset, name, settings) for name in TRAINERS}
        paths = {name: Path(done["run"]) for name, done in runs.items()}
        site_matrix.write(site_matrix.site_matrix_of_runs(paths), paths[TRAINERS[-1]])
        floors = _floors(dataset, paths[TRAINERS[-1]], settings)
        release = export_run(paths[TRAINERS[-1]], folder / "release")
    found = {
        "methods": {name: _figures(done) for name, done in runs.items()},
        **floors,
        "release": release,
        "seconds": round(time.monotonic() - began, 1),
    }
    atomic_files.write_json(folder / "demo.json", found)
    return found


def _run(dataset: str, trainer: str, settings: DemoSettings) -> dict[str, Any]:
    progress.note(f"{trainer}: plan, train, evaluate")
    planning = PlanningChoices(base_features=settings.base_features)
    privacy = PrivacyChoices(
        epsilon=settings.epsilon,
        steps=settings.rounds * settings.local_steps,
        sampling_rate=settings.sampling_rate,
        patches_per_unit=settings.patches_per_unit,
        seed=settings.seed,
        sections={
            "rounds": {"local_steps": settings.local_steps},
            "optimizer": {"learning_rate": settings.learning_rate, "ema_decay": settings.ema_decay},
            "clipping": {"method": "percentile"},
        },
    )
    choices = TrainingChoices(trainer=trainer, device=settings.device, mirroring=False)
    return pipeline.run(dataset, CONFIGURATION, FOLD, planning, privacy, choices)


def _figures(done: dict[str, Any]) -> dict[str, Any]:
    return {
        "dice": done["evaluation"]["mean"]["dice"],
        "hd95_mm": done["evaluation"]["mean"]["hd95_mm"],
        "nsd": done["evaluation"]["mean"]["nsd"],
        "dice_of_sites": {site: values["dice"] for site, values in done["evaluation"]["sites"].items()},
        "epsilon": done["privacy"]["epsilon"],
        "run": done["run"],
        "report": done["report"],
        "seconds": done["seconds"],
    }


def _floors(dataset: str, run: Path, settings: DemoSettings) -> dict[str, Any]:
    """What a model has to beat: the weights that training started from, and the best mask that is always the same."""
    preprocessed = folders.preprocessed_folder(dataset)
    plans_name = f"nnUNetPlans_f{settings.base_features}"
    fold = prepared_fold.load(preprocessed, plans_name, CONFIGURATION, FOLD, TRAINERS[-1])
    initial = score_weights(run, _initial_weights(fold), EvaluationSettings(mirroring=False))
    constant = best_constant_mask_dice(
        preprocessed / "gt_segmentations",
        sorted(fold.fold.train),
        sorted(fold.fold.val),
        classes=scored_classes(fold.dataset_json),
        reader=LabelReader(fold.plans),
        file_ending=str(fold.dataset_json["file_ending"]),
    )
    return {"initial_weights_dice": initial["mean"]["dice"], "constant_mask_dice": constant["mean"]}


def _initial_weights(fold: PreparedFold) -> dict[str, torch.Tensor]:
    trainer = PlannedTrainer(fold.plans, fold.configuration, fold.dataset_json, torch.device("cpu"))
    return dict(build_network(trainer, fold.plan.seed).state_dict())


def _make_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / MARK).is_file():
            raise InputError(f"{folder} exists and is not a demo's: name a new folder")
        if not overwrite:
            raise InputError(f"{folder} holds an earlier demo: give --overwrite to replace it, or name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


@contextmanager
def _nnunet_folders(folder: Path) -> Iterator[None]:
    """nnU-Net's variables point into the demo's folder meanwhile."""
    values = {name: str(folder.resolve() / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    before = {name: os.environ.get(name) for name in values}
    for path in values.values():
        Path(path).mkdir(exist_ok=True)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
