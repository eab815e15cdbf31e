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
_FEW_PIXELS = 64  # of a unit; below, a matrix product costs half of PyTorch's convolution of one sample on a CPU
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


def per_unit(product: Product, units: int) -> Iterator[torch.Tensor]:
    """Gradient of one unit after the other, of the first ``units``, shape (O, I, *kernel).

    The same numbers whenever it is called, whatever the other units are.
    """
    patches = len(product.source) // product.units
    for first in range(0, units * patches, patches):
        source, field = (tensor.narrow(0, first, patches) for tensor in (product.source, product.field))
        if product.window.is_disjoint:
            columns = _columns(source, field, product.window).transpose(0, 1).flatten(1)
        elif field.device.type == "cpu" and field[:, 0].numel() <= _FEW_PIXELS:
            columns = _overlapping_columns(source, field, product.window)
        else:
            yield _correlate(source, field, product)
            continue
        yield (field.flatten(2).transpose(0, 1).flatten(1) @ columns.T).view(_shape(product))


def squared_norms(product: Product) -> torch.Tensor:
    """Squared norm of each unit's gradient from Gram matrices of its pixels, over all its patches; float64.

    ``|W|^2 = sum over p, q of (F_p . F_q) (sum over d of S_{sp+ld} . S_{sq+ld})``: cross terms of patches included.

    Shape (units,); with the rounding of float64 added, so that it is never too small.
    """
    fields = _gram(product.field.flatten(2), product.units)
    if product.window.is_disjoint:
        sources = _gram(_columns(product.source, product.field, product.window), product.units)
    else:
        sources = _windowed_gram(product).reshape(fields.shape)
    terms = fields[0].numel() + product.source.shape[1] * math.prod(product.window.kernel) + product.field.shape[1]
    slack = terms * torch.finfo(torch.float64).eps * magnitudes(product).square()
    return (fields * sources).sum((1, 2)).clamp(min=0) + slack


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


def rounding(product: Product) -> torch.Tensor:
    """What the computed gradient of each unit may be off: ``n u / (1 - n u)`` times its `magnitudes`, shape (units,).

    The bound of a sum of n products in any order (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.5), u
    being half the machine epsilon; whatever the numbers.
    """
    share = (product.field[:, 0].numel() // product.units + 1) * torch.finfo(product.field.dtype).eps / 2
    return share / (1 - share) * magnitudes(product)


def _correlate(source: torch.Tensor, field: torch.Tensor, product: Product) -> torch.Tensor:
    window = product.window
    if _is_slow(source) and field.shape[2] > 1:
        source, field, window = _halved(source, field, window)
    gradients = torch.ops.aten.convolution_backward(
        field, source, field.new_empty(_shape(product)), None, window.stride, window.padding, window.dilation, False,
        [0] * len(window.kernel), 1, [False, True, False],
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
    met = step * (field.shape[2] - half) + rows - pad  # what lies behind meets no pixel, and may be infinite
    source = source.narrow(2, 0, min(source.shape[2], met))
    source = functional.pad(source, _pads(source.dim(), (2,), pad, step * half + rows - source.shape[2] - pad))
    field = functional.pad(field, _pads(field.dim(), (2,), 0, 2 * half - field.shape[2]))
    halves = [source.narrow(2, first, rows) for first in (0, step * half)]
    return torch.cat(halves), torch.cat(field.chunk(2, 2)), replace(window, padding=(0, *window.padding[1:]))


def _shape(product: Product) -> tuple[int, ...]:
    return product.field.shape[1], product.source.shape[1], *product.window.kernel


def _by_unit(tensor: torch.Tensor, units: int) -> torch.Tensor:
    """(units K, ...) -> (units, K, ...)."""
    return tensor.view(units, -1, *tensor.shape[1:])


def _columns(source: torch.Tensor, field: torch.Tensor, window: Window) -> torch.Tensor:
    """Source pixels under each field pixel, of a disjoint window: shape (patches, I kernel, field pixels)."""
    kernel, sizes = window.kernel, field.shape[2:]
    if math.prod(kernel) == 1:
        return source.flatten(2)
    for dim, (width, size) in enumerate(zip(kernel, sizes, strict=True)):
        source = source.narrow(2 + dim, 0, width * size)  # what is left over at the end meets no pixel
    split = source.reshape(*source.shape[:2], *(part for pair in zip(sizes, kernel, strict=True) for part in pair))
    dims = len(kernel)
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return split.permute(order).reshape(len(source), source.shape[1] * math.prod(kernel), math.prod(sizes))


def _overlapping_columns(source: torch.Tensor, field: torch.Tensor, window: Window) -> torch.Tensor:
    """Source pixels under each field pixel, written out: shape (I kernel, patches field pixels)."""
    dims = len(window.kernel)
    padded = functional.pad(source, [pad for pad in reversed(window.padding) for _ in range(2)]).contiguous()
    patch, channel, *pixel = padded.stride()
    offsets = [step * pixels for step, pixels in zip(window.dilation, pixel, strict=True)]
    places = [step * pixels for step, pixels in zip(window.stride, pixel, strict=True)]
    windows = padded.as_strided(
        (*padded.shape[:2], *window.kernel, *field.shape[2:]), (patch, channel, *offsets, *places), padded.storage_offset()
    )
    order = [1, *range(2, 2 + dims), 0, *range(2 + dims, 2 + 2 * dims)]
    return windows.permute(order).reshape(source.shape[1] * math.prod(window.kernel), -1)


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
