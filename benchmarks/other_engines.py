"""Other ways to the same clipped sum, for comparison: Opacus (hooks, ghost clipping) and torch.func (vmap of grad).

nnU-Net's networks do not run, or run wrongly, on any of them as they are. What is repaired, and nothing else:

Opacus, on a copy of the modules that shares the weights:
- Convolutions and norms are registered two to four times (``conv`` and ``all_modules``, ``decoder.encoder``). Opacus hooks
  each registration, so that gradients come out two to four times too large, without a warning: each module is hooked once.
- Activations in place, and ``out += residual`` of residual blocks, raise errors under its hooks: both are done out of place.
- The deep supervision head of weight zero gets no gradient, which Opacus takes for an error: it is frozen, as for all methods.

torch.func, on the network itself:
- ``functional_call`` with tied weights puts a weight into a module once for each registration and on the way back leaves
  a dead tensor of the transform in the network: the weights are handed over once (``tie_weights=False``).
- nnU-Net's Dice loss scatters labels into a tensor that vmap does not know: labels are made one-hot before, for its Dice.

Opacus has norms without gradients ("ghost") for linear layers and embeddings only. Here all layers take its fast gradient
clipping instead: gradients of one layer at a time, norms, and a second backward. Its unit is one sample, so that a gradient
averaged over several patches of a patient is out of reach; hooks average their gradients of patches afterwards.

Units must have the same number of patches and finite gradients, and there must be at least one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import nn
from torch.func import functional_call, grad, vmap

from nnunet_adpfl.privacy.clipping import ClipRule
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, UnitPatches

Loss = Callable[..., torch.Tensor]
Parameters = dict[str, nn.Parameter]
warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the first layer's input needs no gradient


class HooksEngine:
    """Opacus's per-sample gradients by hooks, clipped as its DPOptimizer does, with our rule for the factors."""

    def __init__(self, network: nn.Module, loss: Loss, trained: Mapping[str, nn.Parameter], *, autocast: bool = False) -> None:
        self._network, self._trained = repaired_copy(network, trained)
        self._loss, self._autocast = loss, autocast
        _Hooks(self._network, loss_reduction="mean")  # the modules keep the hooks

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        units = list(units)
        data, targets = batch_of(units)
        self._network.train()
        with _precision(data, self._autocast):
            value = self._loss(self._network(data), targets)
        torch.autograd.backward(value)
        gradients = {}
        for name, parameter in self._trained.items():
            found = parameter.grad_sample.to(parameter.dtype)  # type: ignore[attr-defined]
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            patches = len(found) // len(units)
            gradients[name] = found if patches == 1 else found.unflatten(0, (len(units), patches)).mean(1)
        return _clipped(gradients, rule)


class GhostEngine:
    """Opacus's ghost clipping, by its own two backward passes. One patch for each unit only."""

    def __init__(self, network: nn.Module, loss: Loss, trained: Mapping[str, nn.Parameter], *, autocast: bool = False) -> None:
        self._network, self._trained = repaired_copy(network, trained)
        self._loss, self._autocast = loss, autocast
        self._hooks = _GhostHooks(self._network, loss_reduction="mean")
        self._optimizer = torch.optim.SGD(self._trained.values(), lr=0.0)  # Opacus clears gradients with it

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        units = list(units)
        if any(len(unit.data) != 1 for unit in units):
            raise NotImplementedError(no_ghost(len(units[0].data)))
        data, _ = batch_of(units)
        self._network.train()
        self._hooks.rule = rule
        with _precision(data, self._autocast):
            outputs = self._network(data)
            losses = [self._loss(_sample(outputs, index), unit.target) for index, unit in enumerate(units)]
        DPTensorFastGradientClipping(self._hooks, self._optimizer, torch.stack(losses), "mean").backward()
        total = {name: parameter.grad for name, parameter in self._trained.items()}
        self._optimizer.zero_grad(set_to_none=True)
        norms = self._hooks.per_sample_gradient_norms.tolist()
        return ClippedSum(total, _count(norms, rule), losses=[float(value.detach()) for value in losses])  # type: ignore[arg-type]


class VmapEngine:
    """vmap over the units of the gradient of a unit's mean loss; all units at once."""

    def __init__(self, network: nn.Module, loss: Any, trained: Mapping[str, nn.Parameter], *, autocast: bool = False) -> None:
        self._network, self._trained, self._autocast = network, dict(trained), autocast
        self._loss, self._weights = loss.loss, loss.weight_factors  # nnU-Net's deep supervision around Dice and cross-entropy
        self._gradients = vmap(grad(self._unit_loss), in_dims=(None, 0, 0, 0))

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        units = list(units)
        data = torch.stack([unit.data for unit in units])
        labels = [torch.stack(list(parts)).long() for parts in zip(*(unit.target for unit in units), strict=True)]
        classes = self._network.decoder.num_classes  # type: ignore[union-attr]
        one_hot = [nn.functional.one_hot(part.squeeze(2), classes).movedim(-1, 2) for part in labels]
        self._network.train()
        weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        gradients = self._gradients(weights, data, labels, one_hot)
        return _clipped(gradients, rule)

    def _unit_loss(
        self, weights: dict[str, torch.Tensor], data: torch.Tensor, labels: list[torch.Tensor], one_hot: list[torch.Tensor]
    ) -> torch.Tensor:
        loss, total = self._loss, torch.zeros((), device=data.device)
        with _precision(data, self._autocast):
            outputs = functional_call(self._network, weights, (data,), tie_weights=False)
            for weight, output, label, mask in zip(self._weights, outputs, labels, one_hot, strict=True):
                if weight:
                    value = loss.weight_ce * loss.ce(output, label[:, 0]) + loss.weight_dice * loss.dc(output, mask)
                    total = total + float(weight) * value
        return total


def no_ghost(patches: int) -> str:
    """Why ghost clipping has no result for so many patches of a patient."""
    return f"Opacus clips the gradient of each patch; that of a patient with {patches} patches is out of its reach"


def repaired_copy(network: nn.Module, trained: Mapping[str, nn.Parameter]) -> tuple[nn.Module, Parameters]:
    """Modules that Opacus can hook, and their trained parameters by name; the weights' memory is the network's own.

    Parameters are new objects, so that what Opacus attaches to them does not reach other engines.
    """
    shared = {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in network.parameters()}
    found = copy.deepcopy(network, dict(shared))
    for module in found.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, (BasicBlockD, BottleneckD)):
            module.forward = MethodType(_residual_forward, module)  # type: ignore[method-assign]
    return found, {name: shared[id(parameter)] for name, parameter in trained.items()}


def batch_of(units: list[UnitPatches]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All patches of all units in one batch, unit after unit, and their targets by deep supervision level."""
    targets = [torch.cat(list(parts)) for parts in zip(*(unit.target for unit in units), strict=True)]
    return torch.cat([unit.data for unit in units]), targets


class _EachOnce:
    """Hooks every module once, however often it is registered."""

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        seen: set[int] = set()
        for found in super().iterate_submodules(module):  # type: ignore[misc]
            if id(found) not in seen:
                seen.add(id(found))
                yield found


class _Hooks(_EachOnce, GradSampleHooks):
    pass


class _GhostHooks(_EachOnce, GradSampleHooksFastGradientClipping):
    rule: ClipRule

    def get_clipping_coef(self) -> torch.Tensor:
        norms = self.get_norm_sample()
        return torch.tensor([self.rule.factor(norm) for norm in norms.tolist()], dtype=norms.dtype, device=norms.device)


def _residual_forward(block: Any, data: torch.Tensor) -> torch.Tensor:
    """What residual blocks do, with the residual added out of place."""
    bottleneck = isinstance(block, BottleneckD)
    residual, out = block.skip(data), block.conv2(block.conv1(data))
    if bottleneck:
        out = block.conv3(out)
    if block.apply_stochastic_depth:
        out = block.drop_path(out)
    if block.apply_se:
        out = block.squeeze_excitation(out)
    return (block.nonlin3 if bottleneck else block.nonlin2)(out + residual)


def _sample(outputs: list[torch.Tensor], index: int) -> list[torch.Tensor]:
    return [output[index : index + 1] for output in outputs]


def _clipped(gradients: dict[str, torch.Tensor], rule: ClipRule) -> ClippedSum:
    """Sum of the units' gradients (first dimension), each scaled by the rule; empties ``gradients`` on the way."""
    squares = [torch.linalg.vector_norm(found.flatten(1), dim=1).double().square() for found in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt().tolist()
    total = {}
    for name in list(gradients):
        found = gradients.pop(name)
        factors = torch.tensor([rule.factor(norm) for norm in norms], dtype=found.dtype, device=found.device)
        total[name] = torch.einsum("i,i...", factors, found)
    return ClippedSum(total, _count(norms, rule))


def _count(norms: list[float], rule: ClipRule) -> float:
    return sum(0.5 if rule.is_below(norm) else -0.5 for norm in norms)


def _precision(data: torch.Tensor, autocast: bool) -> AbstractContextManager[object]:
    return torch.autocast(data.device.type, dtype=torch.bfloat16, enabled=autocast)
