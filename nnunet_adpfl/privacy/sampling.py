"""Poisson sampling over units of privacy (design section 5, rule 2).

Each unit is drawn independently with the sampling rate, afresh every step: no cap, no redraw of an empty draw, no
shuffling. This is the sampler that `accounting` assumes; any other one needs other accounting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_adpfl.errors import InputError


def poisson_draw(units: Sequence[str], sampling_rate: float, generator: np.random.Generator) -> list[str]:
    """Draw a random subset of ``units``; it may be empty and it may be all of them.

    Args:
        units: all units of the site that train, in any fixed order.
        sampling_rate: probability q of each unit, in (0, 1].
        generator: secret randomness (OS entropy in real runs); never derived from the run's seed.
    """
    if not 0 < sampling_rate <= 1:
        raise InputError(f"sampling rate must lie in (0, 1], not {sampling_rate}")
    chosen = generator.random(len(units)) < sampling_rate
    return [unit for unit, drawn in zip(units, chosen, strict=True) if drawn]
