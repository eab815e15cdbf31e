"""Which parameters are trained. The others get neither gradient nor noise, so that noise is not wasted on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy.plan import Trainable


def select_trained(
    network: nn.Module, trainable: Trainable, probe: Callable[[], torch.Tensor]
) -> dict[str, nn.Parameter]:
    """Freeze what the privacy plan freezes and return the rest: name -> parameter, in the network's order.

    Args:
        network: its parameters' ``requires_grad`` is set.
        trainable: section of the privacy plan.
        probe: gives the training loss of the network on random numbers (not on patients); a parameter without a
            gradient there can never get one.
    """
    named = dict(network.named_parameters())
    frozen = {name for name in named if any(fnmatchcase(name, glob) for glob in trainable.freeze_patterns)}
    for glob in trainable.freeze_patterns:
        if not any(fnmatchcase(name, glob) for name in named):
            raise InputError(f"privacy plan: trainable.freeze_patterns: {glob!r} matches no parameter of the network")
    unreached = _without_gradient(named, probe)
    if trainable.freeze_irrelevant:
        frozen |= unreached | set(_biases_before_instance_norm(network))
    elif unreached - frozen:
        raise InputError(
            f"privacy plan: trainable.freeze_irrelevant is false, but {sorted(unreached - frozen)[0]} gets no gradient"
        )
    if len(frozen) == len(named):
        raise InputError("privacy plan: trainable: every parameter is frozen, nothing is left to train")
    for name, parameter in named.items():
        parameter.requires_grad_(name not in frozen)
    return {name: parameter for name, parameter in named.items() if name not in frozen}


def weights_digest(network: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights."""
    return tensors_digest({name: p.detach() for name, p in network.named_parameters()})


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _without_gradient(named: dict[str, nn.Parameter], probe: Callable[[], torch.Tensor]) -> set[str]:
    for parameter in named.values():
        parameter.requires_grad_(True)
        parameter.grad = None
    torch.autograd.backward(probe())
    unreached = {name for name, parameter in named.items() if parameter.grad is None}
    for parameter in named.values():
        parameter.grad = None
    return unreached


def _biases_before_instance_norm(network: nn.Module) -> Iterator[str]:
    """Instance normalisation subtracts the channel's mean, so a bias right before it changes nothing."""
    cancelled = set()
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        steps = list(module)
        for first, second in pairwise(steps):
            if isinstance(first, nn.modules.conv._ConvNd) and isinstance(
                second, nn.modules.instancenorm._InstanceNorm
            ):
                cancelled.add(id(first.bias))
    return (name for name, parameter in network.named_parameters() if id(parameter) in cancelled)
