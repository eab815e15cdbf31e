"""Bounding one unit's gradient: each rule scales it so that its L2 norm is at most one.

All rules are *normalised*: the gradient is divided by the clip norm, so the sum has sensitivity 1, the noise has
standard deviation z, and the learning rate does not change its meaning when the clip norm adapts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NormClip:
    """g -> g / max(C, |g|): fixed and percentile clipping (Abadi et al. 2016, divided by C)."""

    clip_norm: float

    def factor(self, norm: float) -> float:
        """What to multiply a gradient of this L2 norm with; ``factor(norm) * norm <= 1``."""
        return 1.0 / max(self.clip_norm, norm)

    def is_below(self, norm: float) -> bool:
        """Whether the gradient stays below the clip norm: the bit that percentile clipping counts."""
        return norm <= self.clip_norm


@dataclass(frozen=True)
class AutoClip:
    """g -> g / (|g| + gamma): AUTO-S (Bu et al. 2023, eq. 7); the norm of the result is below 1, no C to tune."""

    stabiliser: float = 0.01

    def factor(self, norm: float) -> float:
        return 1.0 / (norm + self.stabiliser)

    def is_below(self, norm: float) -> bool:
        return False


@dataclass(frozen=True)
class NoClip:
    """The non-private baseline: gradients as they are."""

    def factor(self, norm: float) -> float:
        return 1.0

    def is_below(self, norm: float) -> bool:
        return False


ClipRule = NormClip | AutoClip | NoClip


def gradient_noise_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """z_d, the noise of the gradients when the centred count is released with them in one Gaussian event.

    z^-2 = z_d^-2 + (2 sigma_b)^-2: the count of (b - 1/2) has sensitivity 1/2 (Andrew et al. 2021, theorem 1).

    Args:
        noise_multiplier: z, the joint noise multiplier that is accounted for.
        count_noise: sigma_b, standard deviation of the noise on the count; at least 2z.
    """
    if not count_noise >= 2 * noise_multiplier:
        raise ValueError(f"count noise {count_noise} must be at least twice the noise multiplier {noise_multiplier}")
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def updated_clip_norm(
    clip_norm: float,
    noisy_count: float,
    count_noise_std: float,
    expected_units: float,
    *,
    quantile: float,
    max_log_step_noise: float,
    limits: tuple[float, float],
) -> float:
    """Move the clip norm towards the quantile: C <- C exp(-eta (b~ - quantile)) (Andrew et al. 2021, eq. 1).

    Args:
        noisy_count: sum over steps and sites of (b - 1/2) plus its noise; a differentially private output.
        count_noise_std: standard deviation of all noise in ``noisy_count``.
        expected_units: q times the declared number of units, summed over the same steps and sites (public).
        quantile: wanted share of units with a gradient norm below C.
        max_log_step_noise: eta is at most 1 and such that the noise alone moves log C by this much (one deviation).
        limits: public lower and upper limit of C.
    """
    below = min(max(noisy_count / expected_units + 0.5, 0.0), 1.0)
    rate = min(1.0, max_log_step_noise * expected_units / count_noise_std)
    moved = clip_norm * math.exp(-rate * (below - quantile))
    return min(max(moved, limits[0]), limits[1])


def bounded_sum(vectors: np.ndarray) -> np.ndarray:
    """Sum of one vector per unit, shape (units, coordinates), each scaled down to L2 norm 1 where it is longer.

    A vector that is not finite is left out, not multiplied by zero (rule 5).
    """
    kept = vectors[np.isfinite(vectors).all(axis=1)]
    with np.errstate(over="ignore"):  # a norm beyond all numbers leaves nothing of its vector
        norms = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.asarray((kept / np.maximum(norms, 1.0)).sum(axis=0))
