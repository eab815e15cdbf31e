"""Declared masks: which coordinates of the trained parameters a step trains (design section 5, rule 4; section 7).

Fewer coordinates get less noise in all: it grows with the root of their number. The masks depend on the privacy plan alone
(its seed, its phases), never on a patient, so the clip, the noise and the accounting are those of a smaller network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy.gradients.interface import Coordinates, GradientEngine
from nnunet_adpfl.privacy.plan import PrivacyPlan


class Masks:
    """The coordinates of every step, and an engine for each set of them.

    Args:
        plan: its section ``trainable``, its seed and its number of steps.
        trained: name -> parameter that is ever trained.
        make_engine: gradient engine for a set of coordinates.

    Raises InputError for a phase that rests nothing, or everything.
    """

    def __init__(
        self, plan: PrivacyPlan, trained: Mapping[str, nn.Parameter], make_engine: Callable[[Coordinates], GradientEngine]
    ) -> None:
        self._ends = [phase.until * plan.steps for phase in plan.trainable.phases]
        kept = {name: random_coordinates(name, p, plan.trainable.random_mask, plan.seed) for name, p in trained.items()}
        self._sets: list[Coordinates] = [_awake(kept, phase.freeze_patterns) for phase in plan.trainable.phases]
        self._sets.append(kept)
        self._engines = [make_engine(coordinates) for coordinates in self._sets]

    def coordinates_at(self, step: int) -> Coordinates:
        return self._sets[self._phase(step)]

    def engine_at(self, step: int) -> GradientEngine:
        return self._engines[self._phase(step)]

    def _phase(self, step: int) -> int:
        return sum(step >= end for end in self._ends)


def random_coordinates(name: str, parameter: nn.Parameter, share: float, seed: int) -> torch.Tensor | None:
    """Sorted flat indices of the coordinates that are trained; None: all. Biases and norm layers, which are small and steer
    whole channels, are trained whole."""
    if share >= 1 or parameter.dim() < 2:
        return None
    key = hashlib.sha256(f"mask|{seed}|{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    number = max(1, round(share * parameter.numel()))
    indices = torch.randperm(parameter.numel(), generator=generator)[:number]
    return indices.sort().values.to(parameter.device)


def spread(values: torch.Tensor, parameter: nn.Parameter, kept: torch.Tensor | None) -> torch.Tensor:
    """An update of some coordinates in the shape of its parameter, zero elsewhere."""
    if kept is None:
        return values
    full = torch.zeros(parameter.numel(), dtype=values.dtype, device=values.device)
    full[kept] = values
    return full.view(parameter.shape)


def put_back_(parameter: nn.Parameter, before: torch.Tensor, kept: torch.Tensor | None) -> None:
    """Undo what an optimizer did (weight decay, old momentum) to coordinates that rest."""
    if kept is None:
        return
    after = parameter.detach().flatten()[kept]
    with torch.no_grad():
        restored = before.flatten().clone()
        restored[kept] = after
        parameter.copy_(restored.view(parameter.shape))


def _awake(kept: Coordinates, patterns: tuple[str, ...]) -> Coordinates:
    for glob in patterns:
        if not any(fnmatchcase(name, glob) for name in kept):
            raise InputError(f"privacy plan: trainable.phases: {glob!r} matches no trained parameter")
    awake = {name: value for name, value in kept.items() if not any(fnmatchcase(name, glob) for glob in patterns)}
    if not awake:
        raise InputError("privacy plan: trainable.phases: a phase rests every parameter, nothing is left to train")
    return awake
