"""nnU-Net's real networks, losses and random patches in all shapes that the trainers meet; tiny, no data needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from workspace import PLANS, Workspace, read

from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.plan import PrivacyPlan, parse
from nnunet_adpfl.trainers import private_model
from nnunet_adpfl.trainers.private_model import PrivateModel

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
REGIONS = {"labels": {"background": 0, "ball": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


@dataclass(frozen=True)
class Shape:
    """Which network and which training."""

    network: str  # plain or residual
    configuration: str  # 2d or 3d_fullres
    regions: bool = False

    def __str__(self) -> str:
        return f"{self.network}-{self.configuration}-{'regions' if self.regions else 'labels'}"


SHAPES = [
    Shape(network, configuration, regions)
    for network in ("plain", "residual")
    for configuration in ("2d", "3d_fullres")
    for regions in (False, True)
]
PLAIN_2D, PLAIN_3D, RESIDUAL_3D = SHAPES[0], SHAPES[2], SHAPES[6]


def trainer(workspace: Workspace, shape: Shape) -> PlannedTrainer:
    """From the planned data set's own plan; the residual encoder takes its widths, strides and kernels."""
    plans: dict[str, Any] = read(workspace.preprocessed / f"{PLANS}.json")
    dataset: dict[str, Any] = read(workspace.preprocessed / "dataset.json")
    if shape.regions:
        dataset.update(REGIONS)
    if shape.network == "residual":
        architecture = plans["configurations"][shape.configuration]["architecture"]
        architecture["network_class_name"] = RESIDUAL
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    return PlannedTrainer(json.loads(json.dumps(plans)), shape.configuration, dataset, torch.device("cpu"))


def privacy_plan(**changes: Any) -> PrivacyPlan:
    content = {
        "unit": "patient", "epsilon": 8.0, "delta": 1e-3, "training_units": {"0": {"a": 10}}, "sampling_rate": 0.25,
        "steps": 4, "reserve_steps": 2, "noise_multiplier": 4.0, "cohort_digest": "c", "plans_digest": "p",
    }  # fmt: skip
    return parse({**content, **changes})


def build(workspace: Workspace, shape: Shape, **changes: Any) -> tuple[PlannedTrainer, PrivateModel]:
    planned = trainer(workspace, shape)
    return planned, private_model.build(planned, privacy_plan(**changes))


def unit(planned: PlannedTrainer, seed: int, patches: int = 1, scale: float = 1.0) -> UnitPatches:
    data, target = stock.random_batch(planned, patches, torch.Generator().manual_seed(seed))
    return UnitPatches(data * scale, target)


def one_patch(whole: UnitPatches, index: int) -> UnitPatches:
    assert isinstance(whole.target, list)
    return UnitPatches(whole.data[index : index + 1], [part[index : index + 1] for part in whole.target])


def gradient_by_autograd(
    network: nn.Module, loss: Any, trained: dict[str, nn.Parameter], patches: UnitPatches
) -> dict[str, torch.Tensor]:
    """Plain autograd, nothing of this package in it."""
    value = loss(network(patches.data), patches.target)
    return dict(zip(trained, torch.autograd.grad(value, list(trained.values())), strict=True))


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.sqrt(sum((tensor.double() ** 2).sum() for tensor in tensors.values())))


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Norm of the difference, relative to the second."""
    return norm({name: value.double() - second[name].double() for name, value in first.items()}) / norm(second)
