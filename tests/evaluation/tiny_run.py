"""A run folder as a federated run leaves it: tiny plan, preprocessed data, random weights, ledgers and round records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image

from nnunet_adpfl import atomic_files
from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_network
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.accounting import poisson_gaussian
from nnunet_adpfl.privacy.plan import PrivacyPlan

PLANS_NAME = "nnUNetPlans_tiny"
SITES = ("north", "south")
TRAINING = {"north": ["patient_0", "patient_2"], "south": ["patient_1", "patient_3"]}
CASES = 6
STEPS = 2


@dataclass(frozen=True)
class TinyRun:
    """Where the parts of the fake run lie."""

    base: Path
    run: Path
    preprocessed: Path
    configuration: str
    validation: tuple[str, ...]


def make(
    base: Path, *, name: str = "Dataset811_Fake", flat: bool = False, regions: bool = False, validation: str = "private",
    trainer: str = "nnUNetTrainerADP", seed: int = 0,
) -> TinyRun:  # fmt: skip
    """Write data set and run below ``base`` (raw, preprocessed, results); a second run of another seed may be added."""
    configuration = "2d" if flat else "3d_fullres"
    preprocessed = base / "preprocessed" / name
    plans, dataset_json = _plans(name, flat), _dataset_json(flat, regions)
    cases = {f"case_{k}": CohortEntry(f"patient_{k}", SITES[k % 2]) for k in range(CASES)}
    cohort = Cohort("patient", cases)
    validation_cases = ("case_4", "case_5")
    if not preprocessed.is_dir():
        _write_data(base / "raw" / name, preprocessed, plans, dataset_json, configuration, list(cases))
        cohort.save(preprocessed)
        train = [case for case in cases if case not in validation_cases]
        atomic_files.write_json(preprocessed / "splits_final.json", [{"train": train, "val": list(validation_cases)}])
    run = base / "results" / name / f"{trainer}__{PLANS_NAME}__{configuration}" / "fold_0"
    _write_run(run, name, plans, dataset_json, configuration, trainer, seed, _privacy_plan(validation))
    return TinyRun(base, run, preprocessed, configuration, validation_cases)


def set_folders(monkeypatch: Any, base: Path) -> None:
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(base / kind))


def random_weights(tiny: TinyRun, seed: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(tiny.run / "checkpoint_final.pth", weights_only=True)
    init = checkpoint["init_args"]
    return _weights(init["plans"], init["dataset_json"], tiny.configuration, seed)


def _weights(
    plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str, seed: int
) -> dict[str, torch.Tensor]:
    trainer = PlannedTrainer(plans, configuration, dataset_json, torch.device("cpu"))
    return dict(build_network(trainer, seed).state_dict())


def _plans(name: str, flat: bool) -> dict[str, Any]:
    dims = 2 if flat else 3
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    settings = {
        "data_identifier": f"{PLANS_NAME}_{dims}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * dims,
        "median_image_size_in_voxels": [16.0] * dims,
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * (3 if flat else 1),
        "use_mask_for_norm": [False] * (3 if flat else 1),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities_kwargs": resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [3, 4],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [[3] * dims] * 2,
                "strides": [[1] * dims, [2] * dims],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    transpose = [0, 1, 2] if flat else [2, 0, 1]
    return {
        "dataset_name": name,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [16] * 3,
        "image_reader_writer": "NaturalImage2DIO" if flat else "SimpleITKIO",
        "transpose_forward": transpose,
        "transpose_backward": list(np.argsort(transpose).tolist()),
        "configurations": {"2d" if flat else "3d_fullres": settings},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(3)},
    }


def _dataset_json(flat: bool, regions: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {"0": "R", "1": "G", "2": "B"} if flat else {"0": "MRI"},
        "labels": {"background": 0, "ball": 1, "core": 2},
        "numTraining": CASES,
        "file_ending": ".png" if flat else ".nii.gz",
    }
    if regions:
        content["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
        content["regions_class_order"] = [1, 2]
    return content


def _write_data(
    raw: Path,
    preprocessed: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    configuration: str,
    cases: list[str],
) -> None:
    ending, generator = dataset_json["file_ending"], np.random.default_rng(11)
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    folder = preprocessed / settings.data_identifier
    for sub in (raw / "imagesTr", raw / "labelsTr", preprocessed / "gt_segmentations", folder):
        sub.mkdir(parents=True, exist_ok=True)
    for data_folder in (raw, preprocessed):
        atomic_files.write_json(data_folder / "dataset.json", dataset_json)
    atomic_files.write_json(preprocessed / f"{PLANS_NAME}.json", plans)
    for case in cases:
        image_file, label_file = raw / "imagesTr" / f"{case}_0000{ending}", raw / "labelsTr" / f"{case}{ending}"
        (_write_photo if ending == ".png" else _write_volume)(image_file, label_file, generator)
        (preprocessed / "gt_segmentations" / label_file.name).write_bytes(label_file.read_bytes())
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case), [str(image_file)], str(label_file), manager, settings, dataset_json
        )


def _ball(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), -1)
    centre = [generator.uniform(0.4, 0.6) * size for size in shape]
    distance = np.sqrt(((grid - centre) ** 2).sum(-1))
    radius = min(shape) * 0.3
    return (distance < radius).astype(np.uint8) + (distance < radius / 2).astype(np.uint8)


def _write_volume(image_file: Path, label_file: Path, generator: np.random.Generator) -> None:
    """Uneven shape and spacing, and a rim of zeros that nnU-Net crops away."""
    label = _ball((18, 15, 12), generator)
    image = (generator.normal(5, 0.3, label.shape) + label).astype(np.float32)
    image[:2] = 0
    affine = np.diag([0.8, 1.0, 1.5, 1.0])
    nibabel.Nifti1Image(image, affine).to_filename(image_file)
    nibabel.Nifti1Image(label, affine).to_filename(label_file)


def _write_photo(image_file: Path, label_file: Path, generator: np.random.Generator) -> None:
    label = _ball((22, 18), generator)
    image = np.clip(generator.normal(100, 10, (*label.shape, 3)) + 50 * label[..., None], 1, 255)
    Image.fromarray(image.astype(np.uint8)).save(image_file)
    Image.fromarray(label).save(label_file)


def _privacy_plan(validation: str) -> PrivacyPlan:
    return privacy_plans.parse(
        {
            "unit": "patient", "epsilon": 8.0, "delta": 0.01, "training_units": {"0": {"north": 2, "south": 2}},
            "sampling_rate": 0.5, "steps": 3 * STEPS, "reserve_steps": 2, "noise_multiplier": 2.0,
            "validation": validation, "cohort_digest": "c", "plans_digest": "p",
        }
    )  # fmt: skip


def _write_run(
    run: Path, name: str, plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str, trainer: str, seed: int,
    plan: PrivacyPlan,
) -> None:  # fmt: skip
    run.mkdir(parents=True)
    atomic_files.write_json(run.parent / "plans.json", plans)
    atomic_files.write_json(run.parent / "dataset.json", dataset_json)
    plan.save(run / privacy_plans.FROZEN_FILE_NAME)
    manifest = {
        "kind": "federated", "run": f"{trainer}#{seed}", "dataset": name, "trainer": trainer, "plans": PLANS_NAME,
        "configuration": configuration, "fold": "0", "plan_hash": plan.digest(), "seed": seed, "device": "cpu",
        "versions": {"torch": torch.__version__}, "settings": {"rounds": 3},
    }  # fmt: skip
    atomic_files.write_json(run / "run.json", manifest)
    checkpoint = {
        "network_weights": _weights(plans, dataset_json, configuration, seed),
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "dataset_json": dataset_json},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": [0, 1],
        "current_epoch": 3,
    }
    torch.save(checkpoint, run / "checkpoint_final.pth")
    for site in SITES:
        _write_ledger(run / "sites" / site, site, str(manifest["run"]), plan, trainer)
    for number in range(3):
        record = {
            "round": number, "steps_done": STEPS * (number + 1), "clip_norm": 1.0 / (number + 1), "learning_rate": 0.1,
            "sites": {site: {"steps": STEPS} for site in SITES},
        }  # fmt: skip
        atomic_files.append_line(run / "rounds.jsonl", json.dumps(record))


def _write_ledger(folder: Path, site: str, run: str, plan: PrivacyPlan, trainer: str) -> None:
    first = {
        "composition": "declared", "unit": plan.unit, "adjacency": plan.adjacency, "delta": plan.delta,
        "target_epsilon": plan.epsilon, "plan_hash": plan.digest(), "units_digest": ledgers.units_digest(TRAINING[site]),
    }  # fmt: skip
    ledger = ledgers.Ledger.start(folder / ledgers.FILE_NAME, run, site, [], first)
    if trainer == "nnUNetTrainerNP":
        ledger.append({"event": "non_private", "scope": "training", "reason": "none"}, round_index=0, attempt=0)
    for number, loss in enumerate((1.0, 0.7, 0.5)):
        if trainer != "nnUNetTrainerNP":
            ledger.append(poisson_gaussian(0.5, 2.0, STEPS), round_index=number, attempt=0)
        record = {
            "round": number,
            "mean_loss": None if number == 1 and site == "south" else loss,
            "non_finite": 0,
            "seconds": 1.5,
        }
        atomic_files.append_line(folder / "local_log.jsonl", json.dumps(record))
