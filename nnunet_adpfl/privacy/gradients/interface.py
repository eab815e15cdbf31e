"""What every gradient engine takes and gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from nnunet_adpfl.privacy.clipping import ClipRule

Target = torch.Tensor | list[torch.Tensor]
Coordinates = Mapping[str, torch.Tensor | None]  # parameter -> flat indices (int64) that are trained; None: all of them
PROJECTED = "projected"  # name of the one tensor of a sum in a subspace


class Directions(Protocol):
    """A linear map of gradients to fewer numbers that depends on no unit of the step: clip, sum and noise are of these then."""

    @property
    def count(self) -> int:
        """How many numbers."""

    def coefficients(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """The numbers (count) of a gradient, given as the tensors of all trained parameters in their order."""


@dataclass(frozen=True)
class UnitPatches:
    """The K patches of one drawn unit, over all its cases.

    Attributes:
        data: images, shape (K, channels, *patch size).
        target: segmentation, shape (K, 1 or regions, *patch size); a list of them under deep supervision.
    """

    data: torch.Tensor
    target: Target


@dataclass
class ClippedSum:
    """Sum over the drawn units of their clipped gradients. PRIVATE: it may only go to `Mechanism.release`.

    Attributes:
        total: parameter name -> sum, float32 or float64; zeros where nobody was drawn. Where only some coordinates of a
            parameter are trained it holds those alone, in one dimension; in a subspace there is one tensor, `PROJECTED`.
        centred_count: sum over units of (b - 1/2), b = gradient norm below the clip norm.
        non_finite: units whose contribution was zero because it was not finite; a local counter.
        losses: loss of each unit; for the local log of a run only.
    """

    total: dict[str, torch.Tensor]
    centred_count: float = 0.0
    non_finite: int = 0
    losses: list[float] = field(default_factory=list)


class GradientEngine(Protocol):
    """Computes clipped sums for one network and loss."""

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        """Average the gradient over each unit's patches, scale it by the rule once, and sum over the units."""
