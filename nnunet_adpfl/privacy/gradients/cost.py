"""How a layer's per-unit gradients are handled, decided by shapes alone, so that no patient's content can matter.

- ``keep``: each unit's gradient is computed and kept; for layers whose gradient is no larger than the activations that
  it is made from.
- ``ghost``: norms from Gram matrices of pixels; source and field are kept, and one weighted gradient follows.
- ``twice``: each unit's gradient is computed for its norm and dropped; one weighted gradient follows.
"""

from __future__ import annotations

import math
from typing import Literal

from nnunet_adpfl.privacy.gradients.weight_gradients import Product

Method = Literal["keep", "ghost", "twice"]
_GRAM_IS_DEARER = 2.0  # Gram matrices are float64: about twice the time of the same number of products in float32


def choose(product: Product) -> Method:
    """The cheapest way that never holds more than the activations of the layer."""
    source, field, window = product.source, product.field, product.window
    patches = len(source) // product.units
    weights = product.weight.numel()
    if weights <= (source.numel() + field.numel()) // product.units:
        return "keep"
    pixels = patches * math.prod(field.shape[2:])
    if window.is_disjoint:
        gram = pixels**2 * (weights // field.shape[1])
    else:
        gram = (patches * math.prod(source.shape[2:])) ** 2 * source.shape[1]
    gram += pixels**2 * field.shape[1]
    return "ghost" if _GRAM_IS_DEARER * gram <= pixels * weights else "twice"
