"""Canaries: units whose gradient, computed by the real engine, is a vector that the adversary chose.

Only the loss is wrapped. For a canary it is ``sum of <wanted gradient, parameters>``, whose gradient is the wanted one
at any weights; ordinary units get the loss of the network. Norm, clip and sum are the engine's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nnunet_adpfl.privacy.clipping import ClipRule
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, GradientEngine, Target, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import Loss

ALL_TENSORS = "all tensors"
BELOW_CLIP = "all tensors, below the clip norm"  # the one unit whose count goes up
_JUST_BELOW = 1 - 1e-4
HUGE = 1e6  # norm of a canary's gradient, in clip norms: far above what any clip lets through


class Canary(list[torch.Tensor]):
    """The gradient that a canary wants, one tensor for each trained parameter, in place of a segmentation."""


class CanaryLoss:
    """nnU-Net's loss for ordinary units; for a canary a loss whose gradient is what the canary wants."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._trained: list[nn.Parameter] = []

    def attach(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Say which parameters are trained; they are known only when the network has been built with this loss."""
        self._trained = list(trained.values())

    def __call__(self, output: torch.Tensor | list[torch.Tensor], target: Target) -> torch.Tensor:
        if not isinstance(target, Canary):
            return self._loss(output, target)
        products = [(wanted * parameter).sum() for wanted, parameter in zip(target, self._trained, strict=True)]
        return torch.stack(products).sum()


@dataclass(frozen=True)
class Difference:
    """What a canary changes in a clipped sum.

    Attributes:
        gradient: parameter name -> change of the sum, float64 (in units of the clip norm).
        count: change of the centred count.
    """

    gradient: dict[str, torch.Tensor]
    count: float

    @property
    def norm(self) -> float:
        """L2 norm of the change of the gradients alone; the mechanism claims that it is at most 1."""
        return float(torch.sqrt(sum(((part**2).sum() for part in self.gradient.values()), torch.zeros((), dtype=torch.float64))))


def wanted_gradient(
    trained: Mapping[str, nn.Parameter], norm: float, generator: np.random.Generator, only: str | None = None
) -> Canary:
    """A gradient of this norm in a random direction: over all tensors, or within one of them."""
    parts = [
        torch.from_numpy(np.asarray(generator.standard_normal(tuple(parameter.shape)))) * float(only in (None, name))
        for name, parameter in trained.items()
    ]
    scale = norm / float(np.sqrt(sum(float((part**2).sum()) for part in parts)))
    return Canary((part * scale).to(p.device, p.dtype) for part, p in zip(parts, trained.values(), strict=True))


def difference(
    engine: GradientEngine, others: Sequence[UnitPatches], without: ClippedSum, canary: UnitPatches, rule: ClipRule
) -> Difference:
    """Clipped sum of the others and the canary, less that of the others alone (``without``)."""
    together = engine.clipped_sum(iter([*others, canary]), rule)
    changed = {name: part.double() - without.total[name].double() for name, part in together.total.items()}
    return Difference(changed, together.centred_count - without.centred_count)


def differences(
    engine: GradientEngine,
    others: Sequence[UnitPatches],
    without: ClippedSum,
    trained: Mapping[str, nn.Parameter],
    rule: ClipRule,
    clip_norm: float,
    generator: np.random.Generator,
) -> dict[str, Difference]:
    """Canaries over all tensors, and one in each tensor alone: only that one can see a tensor left out of the norm.

    Returns:
        `ALL_TENSORS`, `BELOW_CLIP` or the tensor's name -> what the canary changes.
    """
    data = others[0].data  # a canary's gradient does not depend on its patches

    def changed(norm: float, beside: Sequence[UnitPatches], sum_of_them: ClippedSum, only: str | None = None) -> Difference:
        wanted = UnitPatches(data, wanted_gradient(trained, norm, generator, only))
        return difference(engine, beside, sum_of_them, wanted, rule)

    found = {
        ALL_TENSORS: changed(HUGE * clip_norm, others, without),
        BELOW_CLIP: changed(_JUST_BELOW * clip_norm, others, without),
    }
    first = engine.clipped_sum(iter(others[:1]), rule)  # beside one unit, because there are many tensors
    return found | {name: changed(HUGE * clip_norm, others[:1], first, name) for name in trained}
