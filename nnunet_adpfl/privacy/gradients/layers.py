"""What each kind of layer does in the fused engine: same output, same input gradient, no weight gradient.

Instead of summing weight gradients over the batch, backward hands what they are made of to a `Recorder`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from nnunet_adpfl.privacy.gradients.precision import wide_type
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

    def keep(self, name: str, gradients: Iterable[torch.Tensor]) -> None:
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

    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        """Output, and what backward needs."""
        raise NotImplementedError

    def input_gradient(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def record(self, gradient: torch.Tensor, data: torch.Tensor, recorder: Recorder) -> None:
        raise NotImplementedError

    def backward(self, gradient: torch.Tensor, saved: Saved, needs_input: bool, recorder: Recorder) -> torch.Tensor | None:
        """Record the parameters' gradients; the gradient of the input."""
        self.record(gradient, saved[0], recorder)
        return self.input_gradient(gradient, saved[0]) if needs_input else None

    def _parameters(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias in the precision of the input."""
        bias = self.module.bias
        return self.module.weight.to(dtype), None if bias is None else bias.to(dtype)

    def check_complete(self) -> None:
        """UnsupportedError where the network did not use the layer as it is understood here; after each forward."""

    def _record_bias(self, gradient: torch.Tensor, recorder: Recorder) -> None:
        """Sum over pixels and patches; ``gradient`` has shape (patches, channels, pixels)."""
        if "bias" in self.names:
            recorder.keep(self.names["bias"], _summed(gradient.sum(2, dtype=wide_type(gradient)), recorder.units))


class Convolution(Layer):
    transposed = False

    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        module = self.module
        weight, bias = self._parameters(data.dtype)
        output = torch.convolution(
            data, weight, bias, module.stride, module.padding, module.dilation, self.transposed, module.output_padding, 1
        )
        return output, (data,)

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
    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        return functional.linear(data, *self._parameters(data.dtype)), (data,)

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

    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        if math.prod(data.shape[2:]) == 1:
            raise UnsupportedError("instance normalisation of a single pixel")
        module, repeats = self.module, len(data)
        output, mean, inverse = torch.native_batch_norm(
            flat(data), module.weight.repeat(repeats), module.bias.repeat(repeats), None, None, True, 0.0, module.eps
        )
        # A tracked view may not be modified in place, as the activation after it does.
        return torch.ops.aten._unsafe_view(output, data.shape), (data, mean, inverse)

    def backward(self, gradient: torch.Tensor, saved: Saved, needs_input: bool, recorder: Recorder) -> torch.Tensor | None:
        data, mean, inverse = saved
        scale = self.module.weight.detach().repeat(len(data))
        found = torch.ops.aten.native_batch_norm_backward(
            flat(gradient), flat(data), scale, None, None, mean, inverse, True, self.module.eps, [needs_input, True, True]
        )
        self._record_affine(found[1:], len(data), recorder)
        return found[0].view(data.shape) if needs_input else None

    def _record_affine(self, gradients: Sequence[torch.Tensor], patches: int, recorder: Recorder) -> None:
        """Gradients of scale and shift, each of shape (patches x channels,)."""
        for own, found in zip(("weight", "bias"), gradients, strict=True):
            if own in self.names:
                recorder.keep(self.names[own], _summed(found.view(patches, -1), recorder.units))


def flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(1, tensor.shape[0] * tensor.shape[1], *tensor.shape[2:])


def _summed(gradients: torch.Tensor, units: int) -> Sequence[torch.Tensor]:
    """Over the patches of each unit: (units K, channels) -> one vector per unit."""
    return gradients.view(units, -1, gradients.shape[1]).sum(1).unbind()
