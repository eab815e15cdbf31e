"""Which engine a run uses. The fused engine is used only after it has agreed with the loop engine on random patches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.clipping import NoClip, NormClip
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import GradientEngine, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine, Loss
from nnunet_adpfl.privacy.gradients.record import full_precision

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of gradients and clipped sums, relative to their norm
_DRAWS = 3  # an activation at its kink can make float32 gradients differ by more, without anything being wrong
Draw = Callable[[int], list[UnitPatches]]


def choose(
    kind: Literal["auto", "loop", "fused"],
    network: nn.Module,
    loss: Loss,
    trained: Mapping[str, nn.Parameter],
    *,
    autocast: bool,
    patches_at_once: int,
    draw: Draw,
) -> GradientEngine:
    """The engine of the privacy plan; ``auto``: the fused one where it is supported and agrees, else the loop.

    The choice depends on network and patch sizes, not on how busy the machine is. Under autocast (a GPU) the fused engine
    has not been tried: ``auto`` is the loop there, and ``fused`` is refused.

    Args:
        kind: field ``engine`` of the privacy plan.
        network, loss, trained, autocast, patches_at_once: as for `FusedEngine`.
        draw: random units (no patients) of the sizes of the run; a function of the number that it gets.
    """
    loop = LoopEngine(network, loss, trained, autocast=autocast)
    if kind == "loop" or (kind == "auto" and autocast):
        return loop
    if autocast:
        raise PrivacyRefusedError("engine fused has not been tried in half precision (on a GPU): set engine: loop in the privacy plan")
    fused = FusedEngine(network, loss, trained, patches_at_once=patches_at_once)
    error = math.inf if fused.unsupported is not None else disagreement(fused, loop, draw)
    if fused.unsupported is not None:  # by its layers, or found so by running it; it has said so in the log
        return loop
    if not error <= TOLERANCE:
        if kind == "fused":
            raise PrivacyRefusedError(
                f"engine fused differs from the loop engine by {error:.1e} on random patches, more than {TOLERANCE:.0e}; "
                "set engine: loop in the privacy plan"
            )
        log.warning("engine auto: fused differs from loop by %.1e on random patches; loop is used", error)
        return loop
    return fused


def disagreement(fused: FusedEngine, loop: LoopEngine, draw: Draw) -> float:
    """The largest relative difference of gradients, clipped sums and norms of single tensors; the smallest of a few draws."""
    smallest = math.inf
    for number in range(_DRAWS):
        units = draw(number)
        with full_precision():
            found = [_difference(fused, loop, units, NoClip())]
            if fused.unsupported is not None:
                return math.inf
            own = [loop.clipped_sum([unit], NoClip()).total for unit in units]
            clip = min(map(_norm, own)) / 2  # all units are clipped: a norm that is wrong by some factor changes the sum by it
            if not 0 < clip < math.inf:
                continue
            found += [_difference(fused, loop, units, NormClip(clip)), _norm_difference(fused, units, own)]
        smallest = min(smallest, max(found))
        if smallest <= TOLERANCE:
            break
    return smallest


def _norm_difference(fused: FusedEngine, units: list[UnitPatches], own: list[dict[str, torch.Tensor]]) -> float:
    """Of each unit and tensor: a tensor that has little of the gradient now may have all of it later.

    Relative to the norm of the tensor's gradient, or to a hundredth of the whole gradient's where that is more.
    """
    norms, worst = fused.tensor_norms(units), 0.0
    for index, gradient in enumerate(own):
        least = _norm(gradient) / 100
        for name, part in gradient.items():
            expected = _norm({name: part})
            error = abs(norms[name][index] - expected) / max(expected, least)
            worst = max(worst, error if error >= 0 else math.inf)
    return worst


def _difference(fused: GradientEngine, loop: GradientEngine, units: list[UnitPatches], rule: NoClip | NormClip) -> float:
    found, expected = fused.clipped_sum(units, rule), loop.clipped_sum(units, rule)
    if list(found.total) != list(expected.total) or found.non_finite != expected.non_finite:
        return math.inf
    gap = {name: part.double() - expected.total[name].double() for name, part in found.total.items()}
    error = _norm(gap) / _norm(expected.total)
    return error if error >= 0 else math.inf  # NaN is a disagreement


def _norm(tensors: Mapping[str, torch.Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in tensors.values()]).norm())
