"""What one backward pass leaves of each unit: kept gradients, or the makings of them, and norms that bound both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch

from nnunet_adpfl.privacy.gradients import precision, weight_gradients
from nnunet_adpfl.privacy.gradients.cost import choose
from nnunet_adpfl.privacy.gradients.weight_gradients import Product


class Record:
    """A `Recorder`: norms of units, and afterwards their weighted sum, tensor by tensor.

    What is summed is what the norms were computed from, or has the rounding between the two allowed for in the norm. What
    happens to a unit depends on the shapes of the pass alone, never on the other units in it.

    Args:
        units: number of units in the pass.
        patches: K, of each unit.
        real: how many of them, the first ones, are drawn units; the others only fill the pass.
        inverted: whether the norms after the layers do not keep their input.
    """

    def __init__(self, units: int, patches: int, real: int, *, inverted: bool = False) -> None:
        self.units = units
        self.samples = units * patches
        self._real = real
        self._inverted = inverted
        self._kept: dict[str, Sequence[torch.Tensor]] = {}
        self._held: dict[str, Product] = {}
        self._squares: dict[str, torch.Tensor] = {}  # squared norms of each tensor's gradients, shape (real,)
        self._slacks: list[torch.Tensor] = []
        self._room = 0  # numbers that backward has freed so far, less those that are held here

    @property
    def names(self) -> set[str]:
        return set(self._kept) | set(self._held)

    def keep(self, name: str, gradients: Iterable[torch.Tensor]) -> None:
        kept = [precision.wide(gradient) for gradient in islice(gradients, self._real)]
        self._kept[name] = kept
        self._squares[name] = _squares(kept)

    def product(self, name: str, product: Product) -> None:
        freed = product.source.numel()  # input of this layer, and its output in the norm after it
        freed += 0 if self._inverted else product.field.numel()
        method = choose(product, self._room + freed)
        if method == "keep":
            self._room += freed - (product.units - 1) * product.weight.numel()
            gradients = weight_gradients.per_unit(product, self._real)
            self.keep(name, (own.reshape(product.weight.shape) for own in gradients))
            return
        self._room -= product.field.numel()
        held = replace(product, source=precision.wide(product.source), field=precision.wide(product.field))
        self._held[name] = held
        with precision.full():
            if method == "twice":
                self._squares[name] = _squares(weight_gradients.per_unit(held, self._real))
            else:
                self._squares[name] = weight_gradients.squared_norms(held)[: self._real]
                self._slacks.append(weight_gradients.rounding(held)[: self._real])

    def norms(self) -> list[float]:
        """L2 norm of each unit's gradient over all tensors, rounding included; float64.

        Added up number by number: a sum over a tensor's dimension is rounded by how many units lie beside each other.
        """
        norms = [math.sqrt(sum(squares)) for squares in _by_unit(self._squares.values())]
        if self._slacks:
            slacks = [math.sqrt(sum(slack * slack for slack in own)) for own in _by_unit(self._slacks)]
            norms = [norm + slack for norm, slack in zip(norms, slacks, strict=True)]
        return norms

    def tensor_norms(self) -> dict[str, list[float]]:
        """Name -> L2 norm of each unit's gradient in that tensor, without rounding; for checks."""
        return {name: squares.sqrt().tolist() for name, squares in self._squares.items()}

    def weighted(self, factors: list[float]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and weighted sum over units of each tensor, freeing what it was made of."""
        while self._kept:
            name, kept = self._kept.popitem()
            yield name, _weighted(kept, factors)
        while self._held:
            name, held = self._held.popitem()
            with precision.full():
                total = _weighted(weight_gradients.per_unit(held, self._real), factors)
            yield name, total.reshape(held.weight.shape)


def _by_unit(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[float, ...]]:
    return zip(*(tensor.tolist() for tensor in tensors), strict=True)


def _weighted(gradients: Iterable[torch.Tensor], factors: list[float]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for gradient, factor in zip(gradients, factors, strict=True):
        total = gradient * factor if total is None else total.add_(gradient, alpha=factor)
    assert total is not None
    return total


def _squares(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """Squared norms, added up in float64 so that neither overflow nor underflow shortens them."""
    return torch.stack([torch.linalg.vector_norm(own, dtype=torch.float64).square() for own in gradients])
