"""One unit's patches in one piece of memory, as a loader's worker sends them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nnunet_adpfl.privacy.gradients.interface import Target, UnitPatches

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class Parcel:
    """Image and targets of a unit. Sent one by one, each tensor costs the step a connection to the worker, and under deep
    supervision there are half a dozen of them: together more time than the worker takes for a small patch.

    Attributes:
        content: bytes of all tensors, image first.
        parts: type and shape of each of them.
        has_scales: the target is a list (deep supervision).
    """

    content: torch.Tensor
    parts: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    has_scales: bool

    @classmethod
    def packed(cls, data: torch.Tensor, target: Target) -> Parcel:
        tensors = [data, *(target if isinstance(target, list) else [target])]
        parts = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        content = torch.empty(sum(_room(tensor.nbytes) for tensor in tensors), dtype=torch.uint8)
        for place, tensor in zip(_places(content, parts), tensors, strict=True):
            place.copy_(tensor)
        return cls(content, parts, isinstance(target, list))

    def unpacked(self, device: torch.device) -> UnitPatches:
        """The tensors on the device, as parts of one copy."""
        data, *targets = _places(self.content.to(device, non_blocking=True), self.parts)
        return UnitPatches(data, targets if self.has_scales else targets[0])

    def pin_memory(self) -> Parcel:
        """Called by PyTorch's loader, for a GPU."""
        return replace(self, content=self.content.pin_memory())


def _places(content: torch.Tensor, parts: tuple[tuple[torch.dtype, tuple[int, ...]], ...]) -> list[torch.Tensor]:
    found, first = [], 0
    for dtype, shape in parts:
        size = torch.Size(shape).numel() * dtype.itemsize
        found.append(content[first : first + size].view(dtype).view(shape))
        first += _room(size)
    return found


def _room(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
