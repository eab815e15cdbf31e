"""The forward of layers, replaced while the fused engine works.

Modules, their names, types and state dict stay as they are; only the attribute ``forward`` of the instance is set, and
removed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nnunet_adpfl.privacy.gradients.inverted_norm import NormAndActivation
from nnunet_adpfl.privacy.gradients.layers import Convolution, Layer, Recorder, UnsupportedError


@contextlib.contextmanager
def recording(layers: Sequence[Layer], recorder: Recorder) -> Iterator[None]:
    """Replace the layers' forward; everything that goes through them meanwhile is recorded in backward."""
    seen: set[int] = set()
    try:
        for layer in layers:
            layer.module.forward = _recorded(layer, recorder, seen)
            if isinstance(layer, NormAndActivation):
                vars(layer.activation)["forward"] = layer.pass_on
        yield
    finally:
        for layer in layers:
            vars(layer.module).pop("forward", None)
            if isinstance(layer, NormAndActivation):
                vars(layer.activation).pop("forward", None)


def _recorded(layer: Layer, recorder: Recorder, seen: set[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(data: torch.Tensor) -> torch.Tensor:
        if id(layer) in seen:
            raise UnsupportedError(f"{type(layer.module).__name__} is used twice in one pass")
        if len(data) != recorder.samples or data.dim() < 2:
            raise UnsupportedError(f"{type(layer.module).__name__} gets input that is not one sample per patch")
        if isinstance(layer, Convolution) and data.dim() != 2 + len(layer.module.kernel_size):
            raise UnsupportedError(f"{type(layer.module).__name__} gets {data.dim()} dimensions")
        seen.add(id(layer))
        if layer.casts and torch.is_autocast_enabled(data.device.type):
            data = data.to(torch.get_autocast_dtype(data.device.type))
        output: torch.Tensor = _Recorded.apply(data, layer.module.weight, layer.module.bias, layer, recorder)
        if isinstance(layer, NormAndActivation):
            layer.awaited = output
        return output

    return forward


class _Recorded(torch.autograd.Function):
    """Weight and bias are arguments so that the output needs a gradient; they themselves get none.

    A layer that saves its own output gets an error from autograd should anything change it in place afterwards.
    """

    @staticmethod
    def forward(ctx: Any, data: torch.Tensor, weight: Any, bias: Any, layer: Layer, recorder: Recorder) -> torch.Tensor:
        output, saved = layer.forward(data)
        ctx.save_for_backward(*saved)
        ctx.layer, ctx.recorder = layer, recorder
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        saved = tuple(tensor.detach() for tensor in ctx.saved_tensors)  # what is kept of them has no history
        found = ctx.layer.backward(gradient, saved, ctx.needs_input_grad[0], ctx.recorder)
        return found, None, None, None, None
