"""Noise and stopping that follow the training (design section 5, rule 10): decides, from public or private outputs only.

What may be looked at: the weights that training has put out (their noise makes everything computed from them free), and
units that the privacy plan declares public. That no decision can exceed the budget is not this module's duty: the filter
in `privacy.mechanism` refuses the step, whatever was decided here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from nnunet_adpfl.nnunet_compat.patches import PatchSource
from nnunet_adpfl.privacy.plan import Adaptation
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.private_model import PrivateModel

Tensors = Mapping[str, torch.Tensor]


class Signal(Protocol):
    """One number after every round: the smaller, the less training still gains from more steps of this noise."""

    state: dict[str, Any]  # plain values and tensors; part of the checkpoint

    def measure(self, weights: Tensors) -> float | None:
        """Signal of the trained weights after a round; None while there is nothing to compare with."""


class NoiseControl:
    """Lowers the noise, and at the lowest level ends training, when the signal was weak for some rounds in a row.

    Args:
        settings: section of the privacy plan.
        signal: what is looked at.
        state: from the checkpoint of an interrupted run.
    """

    def __init__(self, settings: Adaptation, signal: Signal, state: Mapping[str, Any] | None = None) -> None:
        self._settings = settings
        self._signal = signal
        known = dict(state or {})
        self.level = int(known.get("level", 0))
        self.stopped = bool(known.get("stopped", False))
        self._weak_rounds = int(known.get("weak_rounds", 0))
        signal.state.update(known.get("signal", {}))

    def after_round(self, weights: Tensors) -> None:
        """Look at the trained weights that a round has put out."""
        value = self._signal.measure(weights)
        if value is None:
            return
        self._weak_rounds = self._weak_rounds + 1 if value < self._settings.weak_below else 0
        if self._weak_rounds < self._settings.patience:
            return
        self._weak_rounds = 0
        if self.level + 1 < self._settings.levels:
            self.level += 1
        else:
            self.stopped = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {
            "level": self.level, "stopped": self.stopped, "weak_rounds": self._weak_rounds, "signal": dict(self._signal.state),
        }  # fmt: skip


class UpdateAgreement:
    """Cosine of the last two changes of the weights: near 0 where they are mostly noise."""

    def __init__(self, weights: Tensors) -> None:
        self.state: dict[str, Any] = {"change": None}
        self._weights = _copied(weights)

    def measure(self, weights: Tensors) -> float | None:
        change = {name: weights[name].detach().cpu() - before for name, before in self._weights.items()}
        last = self.state["change"]
        self.state["change"], self._weights = change, _copied(weights)
        if last is None:
            return None
        scale = (_dot(change, change) * _dot(last, last)) ** 0.5
        return _dot(change, last) / scale if scale > 0 else 0.0


class PublicLoss:
    """Relative fall of the loss below its best so far, on fixed patches of units that the plan declares public."""

    def __init__(self, model: PrivateModel, source: PatchSource, cases_by_unit: Mapping[str, Sequence[str]]) -> None:
        self.state: dict[str, Any] = {"best": None}
        self._model = model
        device = next(model.network.parameters()).device
        self._patches = [_moved(source.patches(cases, _key(unit)), device) for unit, cases in sorted(cases_by_unit.items())]

    def measure(self, weights: Tensors) -> float | None:
        with torch.no_grad():
            for name, parameter in self._model.trained.items():
                parameter.copy_(weights[name])
            losses = [float(self._model.loss(self._model.network(data), target)) for data, target in self._patches]
        loss, best = sum(losses) / len(losses), self.state["best"]
        self.state["best"] = loss if best is None else min(best, loss)
        return None if best is None else (best - loss) / max(abs(best), 1e-12)


def make(
    prepared: PreparedFold, model: PrivateModel, source: PatchSource, state: Mapping[str, Any] | None
) -> NoiseControl | None:
    """The control of a run whose network holds the weights that training goes on from; None for a declared plan."""
    settings = prepared.plan.adaptation
    if not prepared.plan.is_data_driven:
        return None
    if settings.signal == "update_agreement":
        return NoiseControl(settings, UpdateAgreement(model.trained), state)
    return NoiseControl(settings, PublicLoss(model, source, prepared.public_cases_by_unit()), state)


def _copied(weights: Tensors) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in weights.items()}


def _dot(first: Tensors, second: Tensors) -> float:
    return float(sum((value.double() * second[name].double()).sum() for name, value in first.items()))


def _moved(patches: tuple[torch.Tensor, Any], device: torch.device) -> tuple[torch.Tensor, Any]:
    data, target = patches
    return data.to(device), [part.to(device) for part in target] if isinstance(target, list) else target.to(device)


def _key(unit: str) -> bytes:
    """Of a public unit's fixed patches; no secret."""
    return hashlib.sha256(unit.encode()).digest()
