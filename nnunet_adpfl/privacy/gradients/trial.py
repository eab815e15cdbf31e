"""What an engine takes on this machine, tried on random patches: seconds, and memory of the activations."""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil
import torch
from torch import nn

from nnunet_adpfl.privacy.clipping import NormClip
from nnunet_adpfl.privacy.gradients.interface import GradientEngine, UnitPatches

_REPEATS = 2
_SHARE = 0.5  # of the memory that is free, for the activations of one pass
_OVERHEAD = 2.0  # gradients of activations, kept gradients and scratch space, relative to saved activations


def seconds(engines: Mapping[str, GradientEngine], units: list[UnitPatches]) -> dict[str, float]:
    """Of one clipped sum by each engine, in turns; the shortest of a few, because other programs only lengthen them."""
    found = {name: float("inf") for name in engines}
    for _ in range(_REPEATS):
        for name, engine in engines.items():
            _finish(units[0])
            began = time.perf_counter()
            engine.clipped_sum(units, NormClip(1.0))
            _finish(units[0])
            found[name] = min(found[name], time.perf_counter() - began)
    return {name: round(value, 4) for name, value in found.items()}


def patches_that_fit(network: nn.Module, unit: UnitPatches, most: int) -> int:
    """How many patches may go together: ``most`` (nnU-Net's planned batch), or fewer where memory is short."""
    for_one = _saved_bytes(network, unit.data) / len(unit.data) * _OVERHEAD
    return max(1, min(most, int(_SHARE * _free_bytes(unit.data.device) / max(for_one, 1.0))))


def _saved_bytes(network: nn.Module, data: torch.Tensor) -> int:
    """What a forward in float32 keeps for backward, parameters excepted."""
    sizes = {parameter.untyped_storage().data_ptr(): 0 for parameter in network.parameters()}
    kept: list[torch.Tensor] = []  # else another tensor may get the place of one that is gone

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        sizes.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(data)
    return sum(sizes.values())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _finish(unit: UnitPatches) -> None:
    if unit.data.device.type == "cuda":
        torch.cuda.synchronize(unit.data.device)
