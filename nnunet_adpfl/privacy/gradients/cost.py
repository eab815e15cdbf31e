"""How a layer's per-unit gradients are handled, decided by shapes alone, so that no patient's content can matter.

- ``keep``: each unit's gradient is computed and kept, as long as all of them fit into the memory that backward has freed.
- ``ghost``: norms from Gram matrices of pixels; source and field are kept, and each unit's gradient is computed when its
  weight is known, added, and dropped.
- ``twice``: the same, with the norm from the gradient itself, which is computed, dropped, and computed again.

Costs are what a way takes beyond one gradient of each unit, for one unit, in multiplications of a float32 matrix product.
The constants are rough estimates for a CPU; they decide about time only, never about the result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from nnunet_adpfl.privacy.gradients.weight_gradients import Product

Method = Literal["keep", "ghost", "twice"]
_TOUCH = 15.0  # reading or writing a number that is not in a cache
_DOUBLE = 2.0  # a multiplication in float64


def choose(product: Product, room: int) -> Method:
    """The cheapest way for one layer.

    Args:
        room: how many numbers may be kept, over all units, beyond what plain training would hold by now.
    """
    weights = product.weight.numel()
    pixels = _pixels(product.field, product.units)
    costs: dict[Method, float] = {
        "keep": 3 * _TOUCH * weights,
        "ghost": _gram_cost(product, pixels) + _TOUCH * weights,
        "twice": (pixels + 3 * _TOUCH) * weights,
    }
    if product.units * weights > room + weights:  # plain training holds one
        del costs["keep"]
    if product.field.device.type != "cpu":  # what a sum rounds to is known of direct convolutions only
        del costs["ghost"]
        return next(iter(costs))
    return min(costs, key=lambda method: costs[method])


def _gram_cost(product: Product, pixels: int) -> float:
    """Both Gram matrices, and sums along the diagonals of the source's, one for each kernel offset and dimension."""
    source, field, window = product.source, product.field, product.window
    if window.is_disjoint:
        return _DOUBLE * pixels**2 * (source.shape[1] * math.prod(window.kernel) + field.shape[1])
    squared = _pixels(source, product.units) ** 2
    sums = 2 * _TOUCH * squared * sum(window.kernel)
    return _DOUBLE * (squared * source.shape[1] + pixels**2 * field.shape[1]) + sums


def _pixels(tensor: torch.Tensor, units: int) -> int:
    """Of all patches of a unit."""
    return len(tensor) // units * math.prod(tensor.shape[2:])
