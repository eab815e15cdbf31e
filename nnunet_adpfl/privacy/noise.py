"""Gaussian noise and the secret randomness behind it (design section 5, rules 2 and 7).

In real runs every generator is keyed afresh by the operating system, used for one step and forgotten: nothing can be
stored, replayed or derived from the run's seed. Tests inject their own `Randomness`. Two generators:

- ``os_seeded``: numpy's Philox with a key of 128 bits: statistically excellent and fast, but not a cipher;
- ``secure``: ChaCha20 (RFC 8439) with a key of 256 bits, from randomgen: who sees all noise but one number still
  cannot compute that number. Cost: docs/performance.md.

Noise of finite precision is not quite Gaussian, and the guarantee holds up to that; what noise and sum show in their last
bits is rounded away (`on_grid`). The sum of four Gaussians makes the noise of a step harder to invert (Holohan and
Braghin 2021); it is no substitute for the rounding.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Literal, Protocol

import numpy as np
import torch

KEY_BYTES = 32
CHACHA_ROUNDS = 20  # fewer would be faster and no longer the cipher of the RFC
_GRID_BITS = 20
_CHUNK = 2**18  # coordinates; float64 copies stay in the cache
Source = Literal["os_seeded", "secure"]


class Randomness(Protocol):
    """Where a private run gets its secret randomness from; independent for every (site, step) and purpose."""

    def draws(self, site: str, step: int) -> np.random.Generator:
        """Generator of the Poisson draw."""

    def noise(self, site: str, step: int) -> np.random.Generator:
        """Generator of the Gaussian noise of one step."""

    def patch_key(self, site: str, step: int, unit: str) -> bytes:
        """Key of one unit's patch positions and augmentation: a function of these names only, so that it does not
        depend on who else was drawn."""


class SecretRandomness:
    """Operating system entropy. Holds one secret for patch keys; draws and noise get a new key on every call.

    Args:
        source: which generator; there is no argument for a seed or a key.
    """

    def __init__(self, source: Source = "os_seeded") -> None:
        self._fresh_generator = _chacha_generator if source == "secure" else _philox_generator
        self._patch_secret = os.urandom(KEY_BYTES)

    def draws(self, site: str, step: int) -> np.random.Generator:
        return self._fresh_generator()

    def noise(self, site: str, step: int) -> np.random.Generator:
        return self._fresh_generator()

    def patch_key(self, site: str, step: int, unit: str) -> bytes:
        message = "\0".join((site, str(step), unit)).encode()
        return hashlib.blake2b(message, key=self._patch_secret, digest_size=KEY_BYTES).digest()

    def __getstate__(self) -> None:
        raise TypeError("secret randomness is never stored or sent")


def _philox_generator() -> np.random.Generator:
    # Philox has a key of 128 bits; SeedSequence mixes 256 bits of entropy into it.
    entropy = int.from_bytes(os.urandom(KEY_BYTES), "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def _chacha_generator() -> np.random.Generator:
    from randomgen import ChaCha  # noqa: PLC0415  (for those who ask for it)

    key = int.from_bytes(os.urandom(KEY_BYTES), "little")
    return np.random.Generator(ChaCha(key=key, rounds=CHACHA_ROUNDS))


def add_gaussian_(
    tensor: torch.Tensor, standard_deviation: float, generator: np.random.Generator, terms: int = 1
) -> None:
    """Add independent N(0, standard_deviation^2) noise to every coordinate of a float32 or float64 tensor, in place.

    Noise and sum are float64, and the result is rounded to the public grid of `on_grid`.

    Args:
        terms: each coordinate gets the sum of this many Gaussians, scaled to the same standard deviation.
    """
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"noise is added in float32 or better, not {tensor.dtype}")
    if not (math.isfinite(standard_deviation) and standard_deviation > 0):
        raise ValueError(f"noise must have a standard deviation above 0, not {standard_deviation}")
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device  # mps has no float64
    drawn = np.empty((min(terms, 2), min(_CHUNK, flat.numel())))
    for first in range(0, flat.numel(), _CHUNK):
        part = flat[first : first + _CHUNK]
        sample = _gaussian_sums(generator, drawn[:, : part.numel()], terms)
        noisy = part.to(device, torch.float64).add_(
            torch.from_numpy(sample).to(device), alpha=standard_deviation / math.sqrt(terms)
        )
        part.copy_(on_grid(noisy, standard_deviation))
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def _gaussian_sums(generator: np.random.Generator, drawn: np.ndarray, terms: int) -> np.ndarray:
    """Sums of Gaussians, in the first row of ``drawn``: fresh memory for every chunk would cost a little more time."""
    size = drawn.shape[1]
    generator.standard_normal(size, out=drawn[0])
    for _ in range(terms - 1):
        drawn[0] += generator.standard_normal(size, out=drawn[1])
    return drawn[0]


def noisy_number(value: float, standard_deviation: float, generator: np.random.Generator) -> float:
    """One number with Gaussian noise, on the same grid."""
    tensor = torch.tensor([value], dtype=torch.float64)
    add_gaussian_(tensor, standard_deviation, generator)
    return float(tensor[0])


def on_grid(noisy: torch.Tensor, standard_deviation: float) -> torch.Tensor:
    """Round float64 sums with their noise, in place, to multiples of a power of two about 2^-20 of the deviation.

    The last bits of a floating-point sum show which numbers were added (Mironov 2012): without this, one step told apart
    two data sets. Every point of a grid that is much coarser than float64 is reached from every data set, with the
    probability that the Gaussian has there to within float64. Rounding what was noised is post-processing.
    """
    step = 2.0 ** (math.floor(math.log2(standard_deviation)) - _GRID_BITS)
    return noisy.div_(step).round_().mul_(step)
