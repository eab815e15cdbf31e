"""Instance norm and the leaky ReLU after it as one layer that keeps its output alone and computes its input back from it.

Nothing else needs the input of the norm, and the output is kept anyway, by the convolution after it: this saves about a
third of the activations for one more pass over the numbers in backward (in-place activated batch norm, Rota Bulo et al.,
CVPR 2018, for instance norms).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_adpfl.privacy.gradients.layers import InstanceNorm, Recorder, Saved, UnsupportedError, flat

_MOST_SHIFT = 30.0  # of |shift| / |scale|: the way back loses about this factor of precision
_LEAST_SCALE = 1e-6


class NormAndActivation(InstanceNorm):
    """Both modules in one; the activation's own forward passes on what the norm's has done already.

    A channel whose scale is too small to divide by (a few hundred steps of noise can do that) makes the layer keep its
    input, as `InstanceNorm` does, until that has changed.

    Args:
        module, names: the norm, as of any layer.
        activation: the module that follows it.
    """

    def __init__(self, module: Any, names: Mapping[str, str], activation: nn.LeakyReLU) -> None:
        super().__init__(module, names)
        self.activation = activation
        self.awaited: torch.Tensor | None = None  # output that the activation has yet to pass on

    @staticmethod
    def is_possible(norm: nn.Module, activation: nn.Module) -> bool:
        """Whether the activation can be undone."""
        return type(norm) in (nn.InstanceNorm2d, nn.InstanceNorm3d) and type(activation) is nn.LeakyReLU and activation.negative_slope > 0

    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, Saved]:
        normed, (data, mean, inverse) = super().forward(data)
        output = functional.leaky_relu_(normed, self.activation.negative_slope)
        return output, (output, inverse) if self._can_go_back() else (output, inverse, data, mean)

    def backward(self, gradient: torch.Tensor, saved: Saved, needs_input: bool, recorder: Recorder) -> torch.Tensor | None:
        output, inverse, *kept = saved
        gradient = torch.ops.aten.leaky_relu_backward(gradient, output, self.activation.negative_slope, True)
        if kept:
            data, mean = kept
            return super().backward(gradient, (data, mean, inverse), needs_input, recorder)
        patches = len(output)
        normed = functional.leaky_relu(output, 1 / self.activation.negative_slope)
        scale, shift = (own.detach().repeat(patches) for own in (self.module.weight, self.module.bias))
        # The norm's own backward, told that shift and scale are mean and deviation of what it normalised; the weight makes
        # the result the gradient of the real input.
        found = torch.ops.aten.native_batch_norm_backward(
            flat(gradient), flat(normed), inverse * scale.square(), None, None, shift, scale.reciprocal(), True,
            self.module.eps, [needs_input, True, True],
        )  # fmt: skip
        self._record_affine(found[1:], patches, recorder)
        return found[0].view(output.shape) if needs_input else None

    def pass_on(self, data: torch.Tensor) -> torch.Tensor:
        """The activation's forward."""
        if data is not self.awaited:
            raise UnsupportedError("an activation is used apart from the norm before it")
        self.awaited = None
        return data

    def check_complete(self) -> None:
        if self.awaited is not None:
            self.awaited = None
            raise UnsupportedError("a norm is used without the activation after it")

    def _can_go_back(self) -> bool:
        scale, shift = self.module.weight.detach().abs(), self.module.bias.detach().abs()
        return bool(((scale > _LEAST_SCALE) & (shift <= _MOST_SHIFT * scale)).all()) and math.isfinite(float(scale.max()))
