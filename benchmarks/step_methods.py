"""One network with the patches of one step, and every method on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from networks import NetworkSize, planned_trainer
from other_engines import GhostEngine, HooksEngine, VmapEngine, batch_of, no_ghost

from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.privacy.clipping import ClipRule, NoClip, NormClip
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import GradientEngine, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.noise import add_gaussian_
from nnunet_adpfl.privacy.plan import Trainable
from nnunet_adpfl.trainers.parameters import select_trained

METHODS = ("plain", "loop", "fused", "fused inverted", "opacus hooks", "opacus ghost", "vmap")
LEARNING_RATE, CLIP_NORM, NOISE = 1e-6, 1.0, 1.0  # the rate is so small that all methods see the same weights
Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What one group of rows is measured on: ``patients`` units of ``patches`` patches (K) each."""

    size: NetworkSize
    patients: int
    patches: int

    @property
    def work(self) -> int:
        """Size of a step: features of the first stage in all pixels of all patches, twice for residual encoders."""
        pixels = self.patients * self.patches * int(np.prod(self.size.patch))
        return pixels * self.size.features * (2 if self.size.network == "resenc" else 1)

    def small(self) -> Case:
        """The same network with the smallest patches that it takes, for two patients with up to two patches."""
        side = 2 ** (self.size.stages - 1) * 2
        return Case(replace(self.size, patch=(side,) * self.size.dims), 2, min(self.patches, 2))

    def __str__(self) -> str:
        size = self.size
        patch = "x".join(map(str, size.patch))
        return f"{size.network} {size.dims}D {patch}, {size.features} features, {self.patients} patients, K = {self.patches}"


def missing(method: str, case: Case) -> str | None:
    """Why the method cannot do the case at all."""
    return no_ghost(case.patches) if method == "opacus ghost" and case.patches > 1 else None


class Bench:
    """Steps of every method on the same weights and patches.

    Args:
        case: network and patches.
        device: CUDA runs networks and losses in bfloat16 autocast, as nnU-Net does, unless in double precision.
        methods: engines to build.
        double: weights and patches in float64, for checks.
    """

    def __init__(self, case: Case, device: torch.device, methods: Iterable[str] = METHODS, *, double: bool = False) -> None:
        trainer = planned_trainer(case.size, device)
        self.device = device
        self.autocast = device.type == "cuda" and not double
        self.network = stock.build_network(trainer, 0)
        self.loss = stock.build_loss(trainer)
        self.units = _random_units(trainer, case)
        one = self.units[0]
        self.trained = select_trained(self.network, Trainable(), lambda: self.loss(self.network(one.data), one.target))
        if double:
            self.network.double()
            self.units = [UnitPatches(unit.data.double(), unit.target) for unit in self.units]
        self.batch = batch_of(self.units)
        self.optimizer = torch.optim.SGD(self.trained.values(), lr=LEARNING_RATE, momentum=0.99, nesterov=True)
        self.noise = np.random.default_rng(0)
        self.engines = {method: self._engine(method) for method in methods if method != "plain"}

    def _engine(self, method: str) -> GradientEngine:
        parts = self.network, self.loss, self.trained
        if method.startswith("fused"):
            inverted = method == "fused inverted"
            return FusedEngine(*parts, patches_at_once=len(self.batch[0]), autocast=self.autocast, invert_activations=inverted)
        kinds = {"loop": LoopEngine, "opacus hooks": HooksEngine, "opacus ghost": GhostEngine, "vmap": VmapEngine}
        return kinds[method](*parts, autocast=self.autocast)  # type: ignore[abstract]

    def gradient(self, method: str, rule: ClipRule | None = None) -> Gradients:
        """What a step's update is made of: the batch's gradient, or an engine's clipped sum of all units."""
        if method == "plain":
            return self._plain_gradient()
        return self.engines[method].clipped_sum(self.units, rule or NormClip(CLIP_NORM)).total

    def _plain_gradient(self) -> Gradients:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            value = self.loss(self.network(self.batch[0]), self.batch[1])
        torch.autograd.backward(value)
        return {name: parameter.grad for name, parameter in self.trained.items() if parameter.grad is not None}

    def update(self, method: str, gradients: Gradients) -> None:
        """nnU-Net's clip at 12 and SGD, or noise on every coordinate and SGD."""
        if method == "plain":
            torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 12)
        else:
            for name, tensor in gradients.items():
                add_gaussian_(tensor, NOISE, self.noise)
                self.trained[name].grad = tensor.div_(len(self.units))
        self.optimizer.step()

    def error(self, method: str, found: Gradients, reference: Gradients) -> float:
        """Norm of the difference to the loop engine, relative; the loop engine itself against autograd on the batch."""
        if method == "plain":
            return 0.0
        if method == "loop":
            mean = self.gradient("loop", NoClip())
            return distance({name: tensor / len(self.units) for name, tensor in mean.items()}, self._plain_gradient())
        return distance(found, reference)


def distance(found: Gradients, expected: Gradients) -> float:
    """Norm of the difference, relative to the norm of the second."""
    differences = {name: found[name].double() - tensor.double() for name, tensor in expected.items()}
    return length(differences) / length(expected)


def length(tensors: Gradients) -> float:
    """L2 norm over all tensors."""
    return float(torch.stack([tensor.detach().double().square().sum() for tensor in tensors.values()]).sum().sqrt())


def _random_units(trainer: stock.PlannedTrainer, case: Case) -> list[UnitPatches]:
    generator = torch.Generator().manual_seed(1)
    return [UnitPatches(*stock.random_batch(trainer, case.patches, generator)) for _ in range(case.patients)]
