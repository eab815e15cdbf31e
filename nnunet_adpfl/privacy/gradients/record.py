"""What one backward pass leaves of each unit: kept gradients, or the makings of them, and norms that bound both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from nnunet_adpfl.privacy.gradients import precision, weight_gradients
from nnunet_adpfl.privacy.gradients.cost import choose
from nnunet_adpfl.privacy.gradients.weight_gradients import Product

_DEVIATIONS = 3.0  # how many root mean squares of rounding are allowed for


class Record:
    """A `Recorder`: norms of units, and afterwards their weighted sum, tensor by tensor.

    Kept gradients are what their norms were computed from. Other gradients are computed once more, all units together;
    the norm gets the rounding of that computation added, so that it is never too small for what is summed.

    Args:
        units: number of units in the pass.
        patches: K, of each unit.
        inverted: whether the norms after the layers do not keep their input.
    """

    def __init__(self, units: int, patches: int, *, inverted: bool = False) -> None:
        self.units = units
        self.samples = units * patches
        self._inverted = inverted
        self._kept: dict[str, Sequence[torch.Tensor]] = {}
        self._held: dict[str, Product] = {}
        self._squares: dict[str, torch.Tensor] = {}  # squared norms of each tensor's gradients, shape (units,)
        self._slacks: list[torch.Tensor] = []
        self._room = 0  # numbers that backward has freed so far, less those that are held here

    @property
    def names(self) -> set[str]:
        return set(self._kept) | set(self._held)

    def keep(self, name: str, gradients: Sequence[torch.Tensor]) -> None:
        kept = [precision.wide(gradient) for gradient in gradients]
        self._kept[name] = kept
        self._squares[name] = _squares(kept)

    def product(self, name: str, product: Product) -> None:
        freed = product.source.numel()  # input of this layer, and its output in the norm after it
        freed += 0 if self._inverted else product.field.numel()
        method = choose(product, self._room + freed)
        if method == "keep":
            self._room += freed - (product.units - 1) * product.weight.numel()
            self.keep(name, [own.reshape(product.weight.shape) for own in weight_gradients.per_unit(product)])
            return
        self._room -= product.field.numel()
        held = replace(product, source=precision.wide(product.source), field=precision.wide(product.field))
        with precision.full():
            squares = weight_gradients.squared_norms(held) if method == "ghost" else _squares(weight_gradients.per_unit(held))
        self._held[name] = held
        self._squares[name] = squares
        roundings = 1 if method == "ghost" else 2  # of the weighted gradient, and of those that the norm came from
        self._slacks.append(roundings * _rounding(held) * weight_gradients.magnitudes(held))

    def norms(self) -> list[float]:
        """L2 norm of each unit's gradient over all tensors, rounding included; float64."""
        norms = torch.stack(list(self._squares.values())).sum(0).sqrt()
        if self._slacks:
            norms += torch.stack(self._slacks).square().sum(0).sqrt()
        return [float(norm) for norm in norms]

    def tensor_norms(self) -> dict[str, list[float]]:
        """Name -> L2 norm of each unit's gradient in that tensor, without rounding; for checks."""
        return {name: squares.sqrt().tolist() for name, squares in self._squares.items()}

    def scale(self, factors: list[float]) -> bool:
        """Multiply the fields of held products; False where a number leaves the range, and then the record is spoilt."""
        finite = True
        for name, held in self._held.items():
            field = held.field * _per_sample(factors, held.field)
            finite = finite and bool(torch.isfinite(field).all())
            self._held[name] = replace(held, field=field)
        return finite

    def weighted(self, factors: list[float]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and weighted sum over units of each tensor, freeing what it was made of; `scale` comes first."""
        while self._kept:
            name, kept = self._kept.popitem()
            total = kept[0] * factors[0]
            for gradient, factor in zip(kept[1:], factors[1:], strict=True):
                total.add_(gradient, alpha=factor)
            yield name, total
        while self._held:
            name, held = self._held.popitem()
            with precision.full():
                total = weight_gradients.weighted(held).reshape(held.weight.shape)
            yield name, total


def _rounding(product: Product) -> float:
    """What a computed weight gradient may be off, relative to its `magnitudes`.

    Rounding errors are taken as independent with mean zero (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). Then a sum of n
    products, each partial sum being at most A = the sum of absolute terms, is off by at most sqrt(n) u A in root mean square
    (u: half a machine epsilon), and the norm over all entries of a weight by sqrt(n) u times the norm of all A.
    """
    terms = product.field[:, 0].numel() + 1
    return _DEVIATIONS * math.sqrt(terms) * torch.finfo(product.field.dtype).eps / 2


def _per_sample(factors: list[float], field: torch.Tensor) -> torch.Tensor:
    """The unit's factor for each of its patches, shape (patches of all units, 1, ...)."""
    column = torch.tensor(factors, dtype=field.dtype, device=field.device).repeat_interleave(len(field) // len(factors))
    return column.view(-1, *[1] * (field.dim() - 1))


def _squares(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """Squared norms, added up in float64 so that neither overflow nor underflow shortens them."""
    return torch.stack([torch.linalg.vector_norm(own, dtype=torch.float64).square() for own in gradients])
