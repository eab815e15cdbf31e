"""The loop engine: one forward and backward per unit. Exact by construction for any network and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.clipping import ClipRule
from nnunet_adpfl.privacy.gradients.interface import PROJECTED, ClippedSum, Coordinates, Directions, Target, UnitPatches
from nnunet_adpfl.privacy.gradients.precision import half, wide_type

MAX_NORM = 1e30  # beyond it a float32 factor is too coarse to bound the result, so it counts as not finite
Loss = Callable[[torch.Tensor | list[torch.Tensor], Target], torch.Tensor]


class LoopEngine:
    """Per unit: gradient of the mean loss over its K patches, L2 norm over all trained parameters, scale, add.

    Norm and sum come from the same float32 numbers. A unit whose loss, norm or scaled gradient is not finite adds
    exactly nothing (it is left out, not multiplied by zero: 0 x inf is NaN).

    Args:
        network: the network; its trained parameters are those that require a gradient.
        loss: nnU-Net's loss, averaging over the patches of the batch it gets (the patches of one unit).
        trained: name -> parameter, in a fixed order.
        autocast: bfloat16 forward and backward; clip and sum stay in float32.
        coordinates: what of the trained parameters is trained now; None: all. Norm and sum, and so the noise later, are
            of these alone (design section 5, rule 4).
        directions: what every gradient is mapped to before its norm is taken; None: nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        trained: Mapping[str, nn.Parameter],
        *,
        autocast: bool = False,
        coordinates: Coordinates | None = None,
        directions: Directions | None = None,
    ) -> None:
        self._network = network
        self._loss = loss
        self._trained = dict(trained)
        self._autocast = autocast
        self._coordinates: Coordinates = dict.fromkeys(self._trained) if coordinates is None else dict(coordinates)

        self._directions = directions

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        result = ClippedSum(self._empty_sum())
        totals = list(result.total.values())
        self._network.train()
        for unit in units:
            loss, gradients = self._gradient(unit)
            norm = _norm(gradients)
            factor = rule.factor(norm) if norm < MAX_NORM else math.nan
            if not (math.isfinite(loss) and math.isfinite(factor)):
                result.non_finite += 1
                continue
            torch._foreach_add_(totals, gradients, alpha=factor)
            result.centred_count += 0.5 if rule.is_below(norm) else -0.5
            result.losses.append(loss)
        self._clear()
        return result

    def _gradient(self, unit: UnitPatches) -> tuple[float, list[torch.Tensor]]:
        self._clear()
        with torch.enable_grad(), half(self._autocast, unit.data.device):
            loss = self._loss(self._network(unit.data), unit.target)
        torch.autograd.backward(loss)
        gradients = []
        for name, kept in self._coordinates.items():
            parameter = self._trained[name]
            if parameter.grad is None:
                raise PrivacyRefusedError(
                    f"parameter {name} is trained but gets no gradient; freeze it in the privacy plan"
                )
            gradient = parameter.grad.to(wide_type(parameter))
            gradients.append(gradient if kept is None else gradient.flatten()[kept])
        if self._directions is not None:
            gradients = [self._directions.coefficients(gradients)]
        return float(loss.detach()), gradients

    def _empty_sum(self) -> dict[str, torch.Tensor]:
        if self._directions is not None:
            like = next(iter(self._trained.values()))
            return {PROJECTED: torch.zeros(self._directions.count, dtype=wide_type(like), device=like.device)}
        return {name: _zeros(self._trained[name], kept) for name, kept in self._coordinates.items()}

    def _clear(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None


def _zeros(parameter: nn.Parameter, kept: torch.Tensor | None) -> torch.Tensor:
    """In the memory format of the parameter, or one dimension where only some coordinates are trained."""
    if kept is None:
        return torch.zeros_like(parameter, dtype=wide_type(parameter))
    return torch.zeros(kept.numel(), dtype=wide_type(parameter), device=parameter.device)


def _norm(gradients: list[torch.Tensor]) -> float:
    """L2 norm over all tensors, squares added up in float64 so that neither overflow nor underflow shortens it."""
    squares = [torch.linalg.vector_norm(gradient, dtype=torch.float64).square() for gradient in gradients]
    return float(torch.stack(squares).sum().sqrt())
