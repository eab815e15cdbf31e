"""Weight gradients of all layers with weights, for each unit alone or weighted over units, and norms without them.

Every weight here meets its data in one way: ``W[o, i, d] = sum over patches b and pixels p of F[b, o, p] S[b, i, s p + l d - m]``
with a source S, a field F and a window (kernel offsets d, stride s, dilation l, padding m).

- convolution: S is the input, F the gradient of the output;
- transposed convolution: the other way round;
- linear layer: a convolution with a kernel of one pixel.

Shapes: source (units K, I, *pixels), field (units K, O, *pixels), the K patches of a unit one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Window:
    """Which pixels of the source meet a pixel of the field; one entry per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def is_disjoint(self) -> bool:
        """Whether no pixel of the source is met twice: kernels of one pixel, upsampling by transposed convolution."""
        return self.kernel == self.stride and not any(self.padding) and set(self.dilation) == {1}


_FAST_FROM = 20_480  # numbers but for the last dimension; PyTorch's own threshold for a single sample (`use_mkldnn`)
POINT = Window((1,), (1,), (0,), (1,))


@dataclass(frozen=True)
class Product:
    """A weight gradient that is not computed yet: a source, a field and how they meet.

    Attributes:
        weight: the weight; its shape (O, I, *kernel) counts here, its values do not.
        units: number of units.
    """

    source: torch.Tensor
    field: torch.Tensor
    window: Window
    weight: torch.Tensor
    units: int


def per_unit(product: Product) -> Iterator[torch.Tensor]:
    """Gradient of one unit after the other, shape (O, I, *kernel)."""
    source, field, units = product.source, product.field, product.units
    if product.window.is_disjoint:
        columns = _by_unit(_columns(product), units)
        rows = _by_unit(field.flatten(2), units)
        found = rows[:, 0] @ columns[:, 0].mT
        for patch in range(1, columns.shape[1]):
            found = torch.baddbmm(found, rows[:, patch], columns[:, patch].mT)
        yield from found.view(units, *_shape(product))
        return
    for own_source, own_field in zip(source.chunk(units), field.chunk(units), strict=True):
        yield _correlate(own_source, own_field, product)


def weighted(product: Product) -> torch.Tensor:
    """Gradient summed over all units, shape (O, I, *kernel); their weights are in the field already."""
    if product.window.is_disjoint:
        rows = product.field.flatten(2).transpose(0, 1).flatten(1)
        columns = _columns(product).transpose(0, 1).flatten(1)
        return (rows @ columns.T).view(_shape(product))
    return _correlate(product.source, product.field, product)


def squared_norms(product: Product) -> torch.Tensor:
    """Squared norm of each unit's gradient from Gram matrices of its pixels, over all its patches; float64.

    ``|W|^2 = sum over p, q of (F_p . F_q) (sum over d of S_{sp+ld} . S_{sq+ld})``: cross terms of patches included.

    Shape (units,); exact to float64 rounding of the sum of absolute terms.
    """
    fields = _gram(product.field.flatten(2), product.units)
    if product.window.is_disjoint:
        sources = _gram(_columns(product), product.units)
    else:
        sources = _windowed_gram(product).reshape(fields.shape)
    return (fields * sources).sum((1, 2)).clamp(min=0)


def magnitudes(product: Product) -> torch.Tensor:
    """``sum over p of |F_p| |S around p|`` of each unit, shape (units,), float64.

    It bounds the norm of ``|F| |S|^T``, and so what rounding can add to a gradient of lower precision.
    """
    window = product.window
    squares = product.source.double().square().sum(1, keepdim=True)
    ones = torch.ones((1, 1, *window.kernel), dtype=squares.dtype, device=squares.device)
    around = torch.convolution(
        squares, ones, None, window.stride, window.padding, window.dilation, False, [0] * len(window.kernel), 1
    )
    fields = product.field.double().square().sum(1, keepdim=True)
    return (around * fields).sqrt().view(product.units, -1).sum(1)


def _correlate(source: torch.Tensor, field: torch.Tensor, product: Product) -> torch.Tensor:
    window = product.window
    if _is_slow(source) and field.shape[2] > 1:
        source, field, window = _halved(source, field, window)
    gradients = torch.ops.aten.convolution_backward(
        field, source, product.weight.to(field.dtype).view(_shape(product)), None, window.stride, window.padding,
        window.dilation, False, [0] * len(window.kernel), 1, [False, True, False],
    )  # fmt: skip
    return torch.as_tensor(gradients[1])


def _is_slow(source: torch.Tensor) -> bool:
    """Whether PyTorch leaves its fast convolution on a CPU (oneDNN) for a general one, which is two to three times slower."""
    small = math.prod(source.shape[:4]) <= _FAST_FROM
    return source.device.type == "cpu" and source.dtype == torch.float32 and len(source) == 1 and small


def _halved(source: torch.Tensor, field: torch.Tensor, window: Window) -> tuple[torch.Tensor, torch.Tensor, Window]:
    """One sample as two: the first and the second half of the field's rows, each with the source's rows that it meets."""
    half = -(-field.shape[2] // 2)
    step, pad = window.stride[0], window.padding[0]
    rows = step * (half - 1) + window.dilation[0] * (window.kernel[0] - 1) + 1
    missing = max(0, step * half + rows - source.shape[2] - pad)
    source = functional.pad(source, _pads(source.dim(), (2,), pad, missing))
    field = functional.pad(field, _pads(field.dim(), (2,), 0, 2 * half - field.shape[2]))
    halves = [source.narrow(2, first, rows) for first in (0, step * half)]
    return torch.cat(halves), torch.cat(field.chunk(2, 2)), replace(window, padding=(0, *window.padding[1:]))


def _shape(product: Product) -> tuple[int, ...]:
    return product.field.shape[1], product.source.shape[1], *product.window.kernel


def _by_unit(tensor: torch.Tensor, units: int) -> torch.Tensor:
    """(units K, ...) -> (units, K, ...)."""
    return tensor.view(units, -1, *tensor.shape[1:])


def _columns(product: Product) -> torch.Tensor:
    """Source pixels under each field pixel, of a disjoint window: shape (units K, I kernel, field pixels)."""
    source, kernel, sizes = product.source, product.window.kernel, product.field.shape[2:]
    if math.prod(kernel) == 1:
        return source.flatten(2)
    for dim, (width, size) in enumerate(zip(kernel, sizes, strict=True)):
        source = source.narrow(2 + dim, 0, width * size)  # what is left over at the end meets no pixel
    split = source.reshape(*source.shape[:2], *(part for pair in zip(sizes, kernel, strict=True) for part in pair))
    dims = len(kernel)
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return split.permute(order).reshape(len(source), source.shape[1] * math.prod(kernel), math.prod(sizes))


def _gram(vectors: torch.Tensor, units: int) -> torch.Tensor:
    """Inner products of all pixels of a unit: (units K, channels, P) -> (units, K P, K P), float64."""
    pixels = _by_unit(vectors.double(), units).transpose(1, 2).flatten(2)
    return pixels.mT @ pixels


def _windowed_gram(product: Product) -> torch.Tensor:
    """Inner products of all windows of a unit, summed over kernel offsets one dimension after the other.

    Shape (units, K, *P, K, *P); no window is ever written out (no im2col).
    """
    window, source = product.window, product.source
    sizes, dims = source.shape[2:], len(window.kernel)
    patches = len(source) // product.units
    found = _gram(source.flatten(2), product.units).view(product.units, patches, *sizes, patches, *sizes)
    for dim, size in enumerate(product.field.shape[2:]):
        first, second = 2 + dim, 3 + dims + dim
        pad = window.padding[dim]
        if pad:
            found = functional.pad(found, _pads(found.dim(), (first, second), pad, pad))
        step, last = window.stride[dim], window.stride[dim] * (size - 1) + 1
        shifted = [
            found.narrow(first, start, last).narrow(second, start, last)
            for start in range(0, window.dilation[dim] * window.kernel[dim], window.dilation[dim])
        ]
        if step > 1:
            shifted = [_every(_every(part, first, step), second, step) for part in shifted]
        found = shifted[0].clone() if len(shifted) > 1 else shifted[0]
        for part in shifted[1:]:
            found += part
    return found


def _pads(dims: int, where: tuple[int, ...], before: int, after: int) -> list[int]:
    """Argument of `functional.pad`, which counts dimensions from the last."""
    pads = [0] * (2 * dims)
    for dim in where:
        at = 2 * (dims - 1 - dim)
        pads[at : at + 2] = [before, after]
    return pads


def _every(tensor: torch.Tensor, dim: int, step: int) -> torch.Tensor:
    return tensor[(slice(None),) * dim + (slice(None, None, step),)]
