"""The check before every run: does the fused engine do what the loop engine does? On random patches, never on patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from nnunet_adpfl.privacy.clipping import NoClip, NormClip
from nnunet_adpfl.privacy.gradients import precision
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import GradientEngine, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine

TOLERANCE = 1e-4  # of gradients and clipped sums, relative to their norm
_DRAWS = 3  # an activation at its kink can make float32 gradients differ by more, without anything being wrong
Draw = Callable[[int], list[UnitPatches]]


def disagreement(fused: FusedEngine, loop: LoopEngine, draw: Draw) -> float:
    """The largest relative difference of gradients, clipped sums and norms of single tensors; the smallest of a few draws."""
    smallest = math.inf
    for number in range(_DRAWS):
        units = draw(number)
        with precision.full():
            found = [_difference(fused, loop, units, NoClip())]
            if fused.unsupported is not None:
                return math.inf
            own = [loop.clipped_sum([unit], NoClip()).total for unit in units]
            found.append(_distance(fused.clipped_sum(units[:1], NoClip()).total, own[0]))  # alone, as a last one may be
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
    norms, worst = fused.norms(units), 0.0
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
    return _distance(found.total, expected.total)


def _distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    gap = {name: part.double() - expected[name].double() for name, part in found.items()}
    error = _norm(gap) / _norm(expected)
    return error if error >= 0 else math.inf  # NaN is a disagreement


def _norm(tensors: Mapping[str, torch.Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in tensors.values()]).norm())


def depends_on_others(fused: FusedEngine, units: list[UnitPatches]) -> bool:
    """Whether a unit's norms change by a single bit with its place in the pass, or with who else is in it.

    A blank unit is among them: behind its norms, which have nothing to divide by, rounding counts thousands of times.
    """
    blank = UnitPatches(torch.zeros_like(units[0].data), units[0].target)
    several = [*units, blank]
    norms = [fused.norms(some) for some in (several, several[::-1])]
    alone = [fused.norms([unit]) for unit in several]
    return any(
        not found == norms[1][name][::-1] == [own[name][0] for own in alone] for name, found in norms[0].items()
    )


def longest(engine: GradientEngine, units: list[UnitPatches]) -> float:
    """Norm of the longest contribution of one unit in the precision of the run, when all are clipped hard; at most 1."""
    norms = [_norm(engine.clipped_sum([unit], NormClip(1e-6)).total) for unit in units]
    return max(math.inf if math.isnan(norm) else norm for norm in norms)
