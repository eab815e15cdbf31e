"""Random numbers that depend on a name alone, and random fields for textures and shading."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image


def generator_for(seed: int, *names: object) -> np.random.Generator:
    """A generator of its own for each name (site, lesion, case): adding one changes none of the others."""
    text = "/".join(map(str, (seed, *names)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def smooth_field(size: tuple[int, int], scale: float, generator: np.random.Generator) -> np.ndarray:
    """A field (rows x columns) of mean 0 and deviation 1 that varies over about ``scale`` pixels.

    A coarse grid of independent values, enlarged: many times cheaper than blurring noise of full size.
    """
    rows, columns = (max(2, round(length / max(scale, 1.0))) + 3 for length in size)
    coarse = Image.fromarray(generator.standard_normal((rows, columns)).astype(np.float32))
    shift = generator.uniform(0, 1, 2)  # else all fields would have their knots at the same places
    box = (1 + shift[0] - 0.5, 1 + shift[1] - 0.5, columns - 2 + shift[0], rows - 2 + shift[1])
    field = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC, box=box))
    return (field - field.mean()) / (field.std() + 1e-6)
