"""Layers whose forward is replaced while the fused engine works: same output, same input gradient, no weight gradient.

Instead of summing weight gradients over the batch, backward hands what they are made of to a `Recorder`. Modules, their
names, types and state dict stay as they are; only the attribute ``forward`` of the instance is set, and removed again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nnunet_adpfl.privacy.gradients.weight_gradients import POINT, Product, Window

Saved = tuple[torch.Tensor, ...]


class UnsupportedError(Exception):
    """The network does something whose per-unit gradients are not known here; the loop engine has to do it."""


class Recorder(Protocol):
    """Takes gradients of one backward pass over ``units`` units.

    Attributes:
        units: number of units.
        samples: number of patches, K for each unit, one unit after the other.
    """

    units: int
    samples: int

    def keep(self, name: str, gradients: Sequence[torch.Tensor]) -> None:
        """Gradient of each unit, in the parameter's shape."""

    def product(self, name: str, product: Product) -> None:
        """What a weight's gradient is made of."""


class Layer:
    """One module with trained parameters.

    Args:
        module: a supported module.
        names: name in the module -> name in the network, of its trained parameters.
    """

    casts = True  # whether autocast turns its input into half precision

    def __init__(self, module: Any, names: Mapping[str, str]) -> None:
        self.module = module
        self.names = dict(names)

    def forward(self, data: torch.Tensor) -> Saved:
        """Output, and whatever else backward needs besides the input."""
        raise NotImplementedError

    def input_gradient(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def record(self, gradient: torch.Tensor, data: torch.Tensor, recorder: Recorder) -> None:
        raise NotImplementedError

    def backward(self, gradient: torch.Tensor, saved: Saved, needs_input: bool, recorder: Recorder) -> torch.Tensor | None:
        """Record the parameters' gradients; the gradient of the input."""
        self.record(gradient, saved[0], recorder)
        return self.input_gradient(gradient, saved[0]) if needs_input else None

    def _record_bias(self, gradient: torch.Tensor, recorder: Recorder) -> None:
        """Sum over pixels and patches; ``gradient`` has shape (patches, channels, pixels)."""
        if "bias" in self.names:
            recorder.keep(self.names["bias"], _summed(gradient.sum(2), recorder.units))


class Convolution(Layer):
    transposed = False

    def forward(self, data: torch.Tensor) -> Saved:
        module = self.module
        return (self._convolve(data, module.weight, module.bias),)

    def _convolve(self, data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        module = self.module
        return torch.convolution(
            data, weight, bias, module.stride, module.padding, module.dilation, self.transposed, module.output_padding, 1
        )

    def input_gradient(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        module = self.module
        gradients = torch.ops.aten.convolution_backward(
            gradient, data, module.weight.to(data.dtype), None, module.stride, module.padding, module.dilation,
            self.transposed, module.output_padding, 1, [True, False, False],
        )  # fmt: skip
        return torch.as_tensor(gradients[0])

    def record(self, gradient: torch.Tensor, data: torch.Tensor, recorder: Recorder) -> None:
        module = self.module
        if "weight" in self.names:
            window = Window(module.kernel_size, module.stride, module.padding, module.dilation)
            source, field = (gradient, data) if self.transposed else (data, gradient)
            recorder.product(
                self.names["weight"], Product(source, field, window, module.weight.detach(), recorder.units)
            )
        self._record_bias(gradient.flatten(2), recorder)


class TransposedConvolution(Convolution):
    transposed = True


class Linear(Layer):
    def forward(self, data: torch.Tensor) -> Saved:
        return (functional.linear(data, self.module.weight, self.module.bias),)

    def input_gradient(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        return gradient @ self.module.weight.detach().to(gradient.dtype)

    def record(self, gradient: torch.Tensor, data: torch.Tensor, recorder: Recorder) -> None:
        source, field = (tensor.reshape(len(tensor), -1, tensor.shape[-1]).mT for tensor in (data, gradient))
        if "weight" in self.names:
            weight = self.module.weight.detach()
            recorder.product(self.names["weight"], Product(source, field, POINT, weight, recorder.units))
        self._record_bias(field, recorder)


class InstanceNorm(Layer):
    """Batch normalisation of one sample with (patches x channels) channels, as torch itself does it.

    So the gradients of scale and shift come out per patch.
    """

    casts = False

    def forward(self, data: torch.Tensor) -> Saved:
        if math.prod(data.shape[2:]) == 1:
            raise UnsupportedError("instance normalisation of a single pixel")
        module, repeats = self.module, len(data)
        output, mean, inverse = torch.native_batch_norm(
            _flat(data), module.weight.repeat(repeats), module.bias.repeat(repeats), None, None, True, 0.0, module.eps
        )
        # A tracked view may not be modified in place, as the activation after it does.
        return torch.ops.aten._unsafe_view(output, data.shape), mean, inverse

    def backward(self, gradient: torch.Tensor, saved: Saved, needs_input: bool, recorder: Recorder) -> torch.Tensor | None:
        data, mean, inverse = saved
        scale = self.module.weight.detach().repeat(len(data))
        found = torch.ops.aten.native_batch_norm_backward(
            _flat(gradient), _flat(data), scale, None, None, mean, inverse, True, self.module.eps, [needs_input, True, True]
        )
        for own, gradients in zip(("weight", "bias"), found[1:], strict=True):
            if own in self.names:
                recorder.keep(self.names[own], _summed(gradients.view(len(data), -1), recorder.units))
        return found[0].view(data.shape) if needs_input else None


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(1, tensor.shape[0] * tensor.shape[1], *tensor.shape[2:])


def _summed(gradients: torch.Tensor, units: int) -> Sequence[torch.Tensor]:
    """Over the patches of each unit: (units K, channels) -> one vector per unit."""
    return gradients.view(units, -1, gradients.shape[1]).sum(1).unbind()


_KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.ConvTranspose2d: TransposedConvolution,
    nn.ConvTranspose3d: TransposedConvolution,
    nn.InstanceNorm2d: InstanceNorm,
    nn.InstanceNorm3d: InstanceNorm,
    nn.Linear: Linear,
}


def find_layers(network: nn.Module, trained: Mapping[str, nn.Parameter]) -> list[Layer]:
    """All layers with trained parameters; UnsupportedError where one of them is not known here."""
    names = {id(parameter): name for name, parameter in trained.items()}
    layers: list[Layer] = []
    owned: list[str] = []
    for path, module in network.named_modules():  # each module once, however often it is registered
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedError(f"{path} is batch normalisation, in which units meet")
        own = {own: names[id(parameter)] for own, parameter in module.named_parameters(recurse=False) if id(parameter) in names}
        if own:
            layers.append(_layer(path, module, own))
            owned += own.values()
    if sorted(owned) != sorted(trained):
        raise UnsupportedError("a trained parameter belongs to no module, or to several")
    return layers


def _layer(path: str, module: nn.Module, own: dict[str, str]) -> Layer:
    kind = _KINDS.get(type(module))
    if kind is None or "forward" in vars(module) or len(own) != len(set(own) & {"weight", "bias"}):
        raise UnsupportedError(f"{path} is {type(module).__name__}")
    if issubclass(kind, Convolution) and not _is_plain_convolution(module, kind.transposed):
        raise UnsupportedError(f"{path} is {type(module).__name__} with groups or padding of another kind")
    if kind is InstanceNorm and getattr(module, "track_running_stats", False):
        raise UnsupportedError(f"{path} is instance normalisation with running statistics")
    return kind(module, own)


def _is_plain_convolution(module: Any, transposed: bool) -> bool:
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    return not transposed or all(extra < step for extra, step in zip(module.output_padding, module.stride, strict=True))


@contextlib.contextmanager
def recording(layers: list[Layer], recorder: Recorder) -> Iterator[None]:
    """Replace the layers' forward; everything that goes through them meanwhile is recorded in backward."""
    seen: set[int] = set()
    try:
        for layer in layers:
            layer.module.forward = _recorded(layer, recorder, seen)
        yield
    finally:
        for layer in layers:
            vars(layer.module).pop("forward", None)


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
        return _Recorded.apply(data, layer.module.weight, layer.module.bias, layer, recorder)

    return forward


class _Recorded(torch.autograd.Function):
    """Weight and bias are arguments so that the output needs a gradient; they themselves get none."""

    @staticmethod
    def forward(ctx: Any, data: torch.Tensor, weight: Any, bias: Any, layer: Layer, recorder: Recorder) -> torch.Tensor:
        output, *others = layer.forward(data)
        ctx.save_for_backward(data, *others)
        ctx.layer, ctx.recorder = layer, recorder
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        found = ctx.layer.backward(gradient, ctx.saved_tensors, ctx.needs_input_grad[0], ctx.recorder)
        return found, None, None, None, None
