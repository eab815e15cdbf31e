"""Small real nnU-Net networks for an audit without data: a self-made plan, nnU-Net's loss, random patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.audit.canary import CanaryLoss
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.plan import PrivacyPlan, parse
from nnunet_adpfl.trainers import private_model
from nnunet_adpfl.trainers.private_model import PrivateModel

SITE, FOLD = "audit", "0"
OTHERS = 3  # ordinary units beside the canary
_PATCH = {2: [32, 32], 3: [16, 16, 16]}
_FEATURES = [4, 8, 16]
_DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1, "tumour": 2}, "file_ending": ".nii.gz"}


class CanaryTrainer(PlannedTrainer):
    """Its loss makes a canary's gradient what the canary wants; everything else is the trainer of any private run."""

    def _build_loss(self) -> Callable[..., torch.Tensor]:
        return CanaryLoss(super()._build_loss())


def build(trainer: CanaryTrainer, plan: PrivacyPlan) -> PrivateModel:
    """As `private_model.build`, with the canaries' loss told which parameters are trained."""
    model = private_model.build(trainer, plan)
    assert isinstance(model.loss, CanaryLoss)
    model.loss.attach(model.trained)
    return model


def trainer(dims: int) -> CanaryTrainer:
    """A PlainConvUNet in 2D or 3D, as nnU-Net plans it, but small."""
    configuration = "2d" if dims == 2 else "3d_fullres"
    return CanaryTrainer(_plans(dims, configuration), configuration, dict(_DATASET), torch.device("cpu"))


def privacy_plan(noise_multiplier: float, delta: float) -> PrivacyPlan:
    """One step in which every unit takes part (q = 1): there the mechanism is exactly Gaussian."""
    event = accounting.poisson_gaussian(1.0, noise_multiplier, 1)
    return parse(
        {
            "unit": "patient",
            "epsilon": accounting.epsilon([event], delta) * 1.001,  # room for the rounding of the noise multiplier
            "delta": delta,
            "training_units": {FOLD: {SITE: OTHERS + 1}},
            "sampling_rate": 1.0,
            "steps": 1,
            "reserve_steps": 0,
            "noise_multiplier": noise_multiplier,
            "fingerprint": "public",
            "cohort_digest": "none",
            "plans_digest": "none",
        },
        "audit",
    )


def random_units(planned: PlannedTrainer, seed: int = 0) -> list[UnitPatches]:
    """Patches of random numbers; no patient is involved. One is loud, so that clipped and unclipped units are there."""
    generator = torch.Generator().manual_seed(seed)
    batches = [stock.random_batch(planned, 2, generator) for _ in range(OTHERS)]
    return [UnitPatches(data * 10.0 ** (index - 1), target) for index, (data, target) in enumerate(batches)]


def _plans(dims: int, configuration: str) -> dict[str, Any]:
    stages = len(_FEATURES)
    resampling = {
        f"resampling_fn_{part}{suffix}": {} if suffix else "resample_data_or_seg_to_shape"
        for part in ("data", "seg", "probabilities")
        for suffix in ("", "_kwargs")
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": _FEATURES,
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * stages,
            "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
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
    settings = {
        "data_identifier": "audit",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "batch_dice": False,
        "patch_size": _PATCH[dims],
        "median_image_size_in_voxels": _PATCH[dims],
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
        **resampling,
    }
    return {
        "dataset_name": "audit",
        "plans_name": "audit",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "none",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {configuration: settings},
    }
