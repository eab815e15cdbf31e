"""Networks of nnU-Net's plans for the benchmarks: nnU-Net's own builder, loss and random patches; no data set needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nnunet_adpfl.nnunet_compat.training import PlannedTrainer

CONFIGURATION = "benchmark"


@dataclass(frozen=True)
class NetworkSize:
    """One network and patch size. ``features`` of the first stage double per stage up to ``most_features``."""

    network: str  # plain or resenc
    patch: tuple[int, ...]
    features: int
    stages: int
    most_features: int
    channels: int = 1

    @property
    def dims(self) -> int:
        return len(self.patch)


def planned_trainer(size: NetworkSize, device: torch.device) -> PlannedTrainer:
    """Builds network, loss and random patches of this size."""
    channels = {str(index): "MRI" for index in range(size.channels)}
    dataset_json = {"channel_names": channels, "labels": {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"}
    return PlannedTrainer(_plans(size), CONFIGURATION, dataset_json, device)


def _plans(size: NetworkSize) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    settings = {
        "data_identifier": CONFIGURATION,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(size.patch),
        "median_image_size_in_voxels": list(size.patch),
        "spacing": [1.0] * size.dims,
        "normalization_schemes": ["ZScoreNormalization"] * size.channels,
        "use_mask_for_norm": [False] * size.channels,
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": resampling for what in ("data", "seg", "probabilities")},
        "batch_dice": False,
        "architecture": _architecture(size),
    }
    return {
        "dataset_name": "Dataset000_Benchmark",
        "plans_name": "benchmark",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: settings},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }


def _architecture(size: NetworkSize) -> dict[str, Any]:
    stages, dims = size.stages, size.dims
    plain = size.network == "plain"
    blocks = {"n_conv_per_stage": [2] * stages} if plain else {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6, 6][:stages]}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{'PlainConv' if plain else 'ResidualEncoder'}UNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(size.features * 2**stage, size.most_features) for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * stages,
            "strides": [[1] * dims, *[[2] * dims] * (stages - 1)],
            **blocks,
            "n_conv_per_stage_decoder": [2 if plain else 1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
