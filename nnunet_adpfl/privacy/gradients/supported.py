"""Which layers of a network the fused engine knows, and what it does with each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nnunet_adpfl.privacy.gradients.inverted_norm import NormAndActivation
from nnunet_adpfl.privacy.gradients.layers import (
    Convolution,
    InstanceNorm,
    Layer,
    Linear,
    TransposedConvolution,
    UnsupportedError,
)

_KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.ConvTranspose2d: TransposedConvolution,
    nn.ConvTranspose3d: TransposedConvolution,
    nn.InstanceNorm2d: InstanceNorm,
    nn.InstanceNorm3d: InstanceNorm,
    nn.Linear: Linear,
}


def find_layers(network: nn.Module, trained: Mapping[str, nn.Parameter], *, invert_activations: bool = False) -> list[Layer]:
    """All layers with trained parameters; UnsupportedError where one of them is not known here.

    Args:
        invert_activations: let norms go together with the activation after them (`NormAndActivation`).
    """
    if isinstance(network, torch._dynamo.eval_frame.OptimizedModule):
        raise UnsupportedError("the network is compiled (torch.compile), so that forward of its layers cannot be replaced")
    after = _activations_after(network) if invert_activations else {}
    names = {id(parameter): name for name, parameter in trained.items()}
    layers: list[Layer] = []
    owned: list[str] = []
    for path, module in network.named_modules():  # each module once, however often it is registered
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedError(f"{path} is batch normalisation, in which units meet")
        own = {own: names[id(parameter)] for own, parameter in module.named_parameters(recurse=False) if id(parameter) in names}
        if own:
            layers.append(_layer(path, module, own, after.get(id(module))))
            owned += own.values()
    if sorted(owned) != sorted(trained):
        raise UnsupportedError("a trained parameter belongs to no module, or to several")
    return layers


def _activations_after(network: nn.Module) -> dict[int, nn.LeakyReLU]:
    """Identity of a norm -> the activation that follows it in a sequence, where the two stand nowhere else in one."""
    found: dict[int, nn.LeakyReLU] = {}
    seen: Counter[int] = Counter()
    for sequence in network.modules():  # each once, however often it is registered
        if isinstance(sequence, nn.Sequential):
            modules = list(sequence)
            seen.update(map(id, modules))
            found |= {
                id(norm): activation
                for norm, activation in pairwise(modules)
                if isinstance(activation, nn.LeakyReLU) and NormAndActivation.is_possible(norm, activation)
            }
    return {norm: activation for norm, activation in found.items() if seen[norm] == seen[id(activation)] == 1}


def _layer(path: str, module: nn.Module, own: dict[str, str], activation: nn.LeakyReLU | None) -> Layer:
    kind = _KINDS.get(type(module))
    if kind is None or "forward" in vars(module) or len(own) != len(set(own) & {"weight", "bias"}):
        raise UnsupportedError(f"{path} is {type(module).__name__}")
    if issubclass(kind, Convolution) and not _is_plain_convolution(module, kind.transposed):
        raise UnsupportedError(f"{path} is {type(module).__name__} with groups or padding of another kind")
    if kind is InstanceNorm and getattr(module, "track_running_stats", False):
        raise UnsupportedError(f"{path} is instance normalisation with running statistics")
    if activation is not None and len(own) == 2 and "forward" not in vars(activation):
        return NormAndActivation(module, own, activation)
    return kind(module, own)


def _is_plain_convolution(module: Any, transposed: bool) -> bool:
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    return not transposed or all(extra < step for extra, step in zip(module.output_padding, module.stride, strict=True))
