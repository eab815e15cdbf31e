"""The fused engine: one forward and backward for many units at once; the same sums as the loop engine's.

The input gradients of all units are computed together. Weight gradients are never summed over the batch first: small
ones are computed for each unit and kept; of large ones only the norm is computed, and after the clip one weighted sum.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.clipping import ClipRule
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, UnitPatches
from nnunet_adpfl.privacy.gradients.layers import UnsupportedError
from nnunet_adpfl.privacy.gradients.loop import MAX_NORM, LoopEngine, Loss
from nnunet_adpfl.privacy.gradients.precision import half, wide_type
from nnunet_adpfl.privacy.gradients.record import Record
from nnunet_adpfl.privacy.gradients.recording import recording
from nnunet_adpfl.privacy.gradients.supported import find_layers

log = logging.getLogger(__name__)
Outputs = list[torch.Tensor]


class FusedEngine:
    """Clipped sums of many units in one pass.

    Units must not meet in the network; the loss is evaluated for each unit alone. Whatever is not known to work here is
    left to a loop engine: networks with other layers (for good, with one line in the log), and single units whose loss
    reaches parameters past the network, or whose gradient is not finite.

    Args:
        network, loss, trained, autocast: as for `LoopEngine`.
        patches_at_once: how many patches go through the network together; at least one unit does.
        invert_activations: keep fewer activations, for a little more time (`inverted_norm`); not under autocast, where
            what is kept is too coarse to compute anything back from it.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        trained: Mapping[str, nn.Parameter],
        *,
        patches_at_once: int,
        autocast: bool = False,
        invert_activations: bool = False,
    ) -> None:
        self._network = network
        self._loss = loss
        self._trained = dict(trained)
        self._patches_at_once = patches_at_once
        self._autocast = autocast
        self._inverted = invert_activations and not autocast
        self._loop = LoopEngine(network, loss, trained, autocast=autocast)
        self._used_outputs: list[bool] = []  # by the loss; of the first unit
        self.unsupported: str | None = None  # why the loop engine does all the work
        try:
            self._layers = find_layers(network, self._trained, invert_activations=self._inverted)
        except UnsupportedError as error:
            self._fall_back(error)

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        if self.unsupported:
            return self._loop.clipped_sum(units, rule)
        result = ClippedSum({})
        self._network.train()
        self._clear()  # a gradient that is found there later came by a way that is not recorded
        for chunk in _chunks(units, self._patches_at_once):
            _merge(result, self._of_chunk(chunk, rule))
        for name, parameter in self._trained.items():
            if name not in result.total:
                result.total[name] = torch.zeros_like(parameter, dtype=wide_type(parameter))
        result.total = {name: result.total[name] for name in self._trained}
        return result

    def norms(self, units: list[UnitPatches]) -> dict[str, list[float]]:
        """Name of a tensor -> norm of each unit's gradient in it; under "all" the norm that is clipped. For checks."""
        found: dict[str, list[float]] = {name: [] for name in (*self._trained, "all")}
        self._network.train()
        self._clear()
        for chunk in _chunks(units, self._patches_at_once):
            try:
                record, _, norms, _ = self._measure(chunk)
                for name, own in (*record.tensor_norms().items(), ("all", norms)):
                    found[name] += own
            finally:
                self._clear()
        return found

    def _fall_back(self, reason: UnsupportedError) -> None:
        self.unsupported = str(reason)
        log.warning("fused engine: %s; the loop engine is used instead", reason)

    def _of_chunk(self, units: list[UnitPatches], rule: ClipRule) -> ClippedSum:
        """All of it by one engine or, unit by unit, by the other; nothing of a pass that failed is left in it."""
        try:
            if self.unsupported is None:
                return self._fused_sum(units, rule)
        except UnsupportedError as error:
            self._fall_back(error)
        finally:
            self._clear()
        return self._loop.clipped_sum(units, rule)

    def _fused_sum(self, units: list[UnitPatches], rule: ClipRule) -> ClippedSum:
        """Units set apart leave the pass before anything is added up, and it is done again without them."""
        result = ClippedSum({})
        while units:
            record, losses, norms, apart = self._measure(units)
            if not apart:
                break
            _merge(result, self._loop.clipped_sum([units[index] for index in sorted(apart)], rule))
            units = [unit for index, unit in enumerate(units) if index not in apart]
        else:
            return result
        _add_tensors(result, record.weighted([rule.factor(norm) for norm in norms]))
        result.centred_count += sum(0.5 if rule.is_below(norm) else -0.5 for norm in norms)
        result.losses += losses
        return result

    def _measure(self, units: list[UnitPatches]) -> tuple[Record, list[float], list[float], set[int]]:
        """One forward and backward: losses, norms, and indices of the units that the loop engine has to look at.

        The pass is always full, if need be of empty units: kernels choose their ways by the shape, and how a unit is rounded
        must not depend on who else was drawn.
        """
        patches = len(units[0].data)
        capacity = max(1, self._patches_at_once // patches)
        record = Record(capacity, patches, len(units), inverted=self._inverted)
        data = units[0].data.new_zeros((capacity * patches, *units[0].data.shape[1:]))  # contiguous, whatever the units are
        for index, unit in enumerate(units):
            data[index * patches : (index + 1) * patches] = unit.data
        with recording(self._layers, record):
            output = self._forward(data)
            outputs = _as_list(output, len(data))
            losses, gradients, apart = self._losses(units, outputs, isinstance(output, torch.Tensor))
            if apart:
                return record, losses, [], apart
            self._backward(outputs, gradients)
        self._check_reached(record)
        norms = record.norms()
        apart = {index for index, norm in enumerate(norms) if not norm < MAX_NORM}
        return record, losses, norms, apart

    def _forward(self, data: torch.Tensor) -> object:
        with torch.enable_grad(), half(self._autocast, data.device):
            output: object = self._network(data)
        for layer in self._layers:
            layer.check_complete()
        return output

    def _losses(
        self, units: Sequence[UnitPatches], outputs: Outputs, single: bool
    ) -> tuple[list[float], list[torch.Tensor | None], set[int]]:
        """Loss of each unit from its part of the outputs, and the gradients of their sum with respect to the outputs."""
        patches = len(units[0].data)
        losses, apart = [], set()
        gradients: list[torch.Tensor | None] = [None] * len(outputs)
        for index, unit in enumerate(units):
            own = slice(index * patches, (index + 1) * patches)
            leaves = [output.detach()[own].requires_grad_() for output in outputs]
            with torch.enable_grad(), half(self._autocast, unit.data.device):
                loss = self._loss(leaves[0] if single else leaves, unit.target)
            torch.autograd.backward(loss)
            losses.append(float(loss.detach()))
            used = [leaf.grad is not None for leaf in leaves]
            self._used_outputs = self._used_outputs or used
            if not math.isfinite(losses[-1]) or used != self._used_outputs or self._reaches_parameters():
                apart.add(index)
                self._clear()
            for which, leaf in enumerate(leaves):
                if leaf.grad is None:
                    continue
                if gradients[which] is None:
                    gradients[which] = torch.zeros_like(outputs[which])
                gradients[which][own] = leaf.grad  # type: ignore[index]
        return losses, gradients, apart

    def _backward(self, outputs: Outputs, gradients: list[torch.Tensor | None]) -> None:
        pairs = [(output, own) for output, own in zip(outputs, gradients, strict=True) if own is not None and output.requires_grad]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [own for _, own in pairs])
        if self._reaches_parameters():
            raise UnsupportedError("a parameter is used outside its own layer")

    def _check_reached(self, record: Record) -> None:
        for name in self._trained:
            if name not in record.names:
                raise PrivacyRefusedError(
                    f"parameter {name} is trained but gets no gradient; freeze it in the privacy plan"
                )

    def _reaches_parameters(self) -> bool:
        """Whether a gradient has come to a parameter by a way that is not recorded."""
        return any(parameter.grad is not None for parameter in self._trained.values())

    def _clear(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None


def _chunks(units: Iterable[UnitPatches], patches_at_once: int) -> Iterator[list[UnitPatches]]:
    """Runs of units of equal shapes, no longer than fits."""
    chunk: list[UnitPatches] = []
    for unit in units:
        alike = chunk and (unit.data.shape, unit.data.dtype) == (chunk[0].data.shape, chunk[0].data.dtype)
        if chunk and not (alike and (len(chunk) + 1) * len(unit.data) <= patches_at_once):
            yield chunk
            chunk = []
        chunk.append(unit)
    if chunk:
        yield chunk


def _as_list(output: object, samples: int) -> Outputs:
    outputs = [output] if isinstance(output, torch.Tensor) else output
    if not isinstance(outputs, (list, tuple)) or not all(isinstance(part, torch.Tensor) for part in outputs):
        raise UnsupportedError("the network's output is neither a tensor nor a list of tensors")
    if any(len(part) != samples for part in outputs):
        raise UnsupportedError("the network's output is not one sample per patch")
    return list(outputs)


def _merge(result: ClippedSum, part: ClippedSum) -> None:
    _add_tensors(result, part.total.items())
    result.centred_count += part.centred_count
    result.non_finite += part.non_finite
    result.losses += part.losses


def _add_tensors(result: ClippedSum, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        if name in result.total:
            result.total[name].add_(tensor)
        else:
            result.total[name] = tensor
