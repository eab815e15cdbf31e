"""Network, trained parameters and gradient engine of a prepared fold, at the weights that training starts from."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.nnunet_compat.patch_format import patch_format
from nnunet_adpfl.privacy.gradients import choice
from nnunet_adpfl.privacy.gradients.choice import EngineChoice
from nnunet_adpfl.privacy.gradients.interface import GradientEngine, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine, Loss
from nnunet_adpfl.privacy.plan import InitialWeights, PrivacyPlan
from nnunet_adpfl.procedural.generated_patches import SUBSPACE, GeneratedPatches
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import public_weights
from nnunet_adpfl.trainers.masks import Masks
from nnunet_adpfl.trainers.parameters import select_trained, weights_digest
from nnunet_adpfl.trainers.public_subspace import PublicBatches, PublicSubspace, check_memory

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

_NARROW = 16  # features of the first stage
_MOST_PROBE_UNITS = 4  # random units on which engines are compared
_MOST_ON_A_CPU = 4  # patches in a pass: more give nothing, and every pass is filled up (docs/performance.md)
_PROBE_SEED = 0  # random patches that show which parameters get a gradient; no patient is involved


@dataclass(frozen=True)
class PrivateModel:
    """What is trained.

    Attributes:
        network: nnU-Net's network of the plan, on its device.
        loss: nnU-Net's loss.
        trained: name -> parameter that gets gradient and noise; all others are frozen.
        engine: clipped sums of gradients of the trained parameters.
        engine_choice: which one it is, and why; kept with the run.
        initial_digest: sha256 of the weights it was built with.
        masks: coordinates and engine of every step, where the privacy plan declares masks.
        subspace: what gradients are projected onto before the clip, where the privacy plan says so.
    """

    network: nn.Module
    loss: Loss
    trained: dict[str, nn.Parameter]
    engine: GradientEngine
    engine_choice: EngineChoice
    initial_digest: str
    masks: Masks | None = None
    subspace: PublicSubspace | None = None


def build(trainer: nnUNetTrainer, plan: PrivacyPlan, engine_choice: EngineChoice | None = None) -> PrivateModel:
    """Build it from a trainer that knows plan, configuration and device; weights depend on the plan's seed alone.

    Args:
        engine_choice: of a run that is continued.
    """
    network = stock.build_network(trainer, plan.seed)
    _load_declared_weights(network, plan.initial_weights)
    choose_memory_format(network, trainer.device)
    loss = stock.build_loss(trainer)

    def probe() -> torch.Tensor:
        data, target = stock.random_batch(trainer, 1, torch.Generator().manual_seed(_PROBE_SEED))
        value = loss(network(data), target)
        if not bool(torch.isfinite(value)):
            # Every unit would count as not finite, and the run would train on noise alone without a word.
            raise InputError(
                f"{trainer.configuration_name}: nnU-Net's loss of this network is not finite (it gives the one output of a "
                "network with two stages no weight): plan with larger patches or images"
            )
        return value

    trained = select_trained(network, plan.trainable, probe)
    batch_size = trainer.configuration_manager.batch_size  # planned by nnU-Net for the memory that there is
    if trainer.device.type == "cpu":
        batch_size = min(batch_size, _MOST_ON_A_CPU)
    units = min(max(2, batch_size // plan.patches_per_unit), _MOST_PROBE_UNITS)

    def draw(number: int) -> list[UnitPatches]:
        generator = torch.Generator().manual_seed(_PROBE_SEED + number)
        return [UnitPatches(*stock.random_batch(trainer, plan.patches_per_unit, generator)) for _ in range(units)]

    autocast = trainer.device.type == "cuda"
    engine, chosen = choice.choose(
        "loop" if plan.trainable.masks or plan.projection.dimensions else plan.engine, network, loss, trained,
        draw=draw, most_patches=batch_size, autocast=autocast,
        invert_activations=plan.invert_activations, earlier=engine_choice,
    )  # fmt: skip
    masks = None
    if plan.trainable.masks:
        masks = Masks(plan, trained, lambda kept: LoopEngine(network, loss, trained, autocast=autocast, coordinates=kept))
    subspace = None
    if plan.projection.dimensions:
        check_memory(plan.projection, trained)
        subspace = PublicSubspace(plan.projection, network, loss, trained, _public_batches(trainer, plan.seed))
        engine = LoopEngine(network, loss, trained, autocast=autocast, directions=subspace)
    return PrivateModel(network, loss, trained, engine, chosen, weights_digest(network), masks, subspace)


def _public_batches(trainer: nnUNetTrainer, seed: int) -> PublicBatches:
    patches = GeneratedPatches(patch_format(trainer), sys.maxsize, seed, SUBSPACE)

    def draw(number: int, size: int) -> stock.Patches:
        images, targets = zip(*(patches[number * size + index] for index in range(size)), strict=True)
        scales = zip(*targets, strict=True)
        return torch.stack(images).to(trainer.device), [torch.stack(scale).to(trainer.device) for scale in scales]

    return draw


def choose_memory_format(network: nn.Module, device: torch.device) -> None:
    """Channels last for narrow 3D networks on a CPU, where it is 1.4 to 1.8 times faster (docs/performance.md)."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv3d)), None)
    if device.type == "cpu" and first is not None and first.out_channels < _NARROW:
        network.to(memory_format=torch.channels_last_3d)


def _load_declared_weights(network: nn.Module, declared: InitialWeights) -> None:
    """Public initial weights (rule 16): the file must be the one whose sha256 the plan declares."""
    if declared.kind != "public":
        return
    path = Path(str(declared.file))
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"privacy plan: initial_weights.file {path} cannot be read ({error.strerror})") from None
    if found != declared.sha256:
        raise PrivacyRefusedError(
            f"privacy plan: {path} has sha256 {found[:12]}..., not the declared {str(declared.sha256)[:12]}...; initial "
            "weights must be the declared public ones"
        )
    content = checkpoints.load(path, like=network)
    if "adpfl" in content or checkpoints.RELEASE_MARK in content:
        raise PrivacyRefusedError(
            f"privacy plan: {path} was trained on patients by this plugin (a run or its release), and what that spent is not "
            "composed with this run; initial weights must be public"
        )
    public_weights.load(network, content["network_weights"], str(path))
