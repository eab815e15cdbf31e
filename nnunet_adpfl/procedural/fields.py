"""Coordinates of a patch and smooth random fields over it: what shapes and textures are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Field = np.ndarray  # float32, in the shape of a patch
_COARSEST, _FINEST = 1, 0.7  # cells along an axis at the least; cells a voxel from which on noise is drawn voxel by voxel


@dataclass(frozen=True)
class Space:
    """Where a patch lies: lengths in units of its mean side, so that shapes are as round as they are in mm.

    Attributes:
        shape: voxels along each axis.
        extent: length of each axis; their geometric mean is 1.
    """

    shape: tuple[int, ...]
    extent: tuple[float, ...]

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float]) -> Space:
        """Patch size in voxels and the plan's spacing, of which only the ratio between axes counts."""
        sides = np.asarray(shape, dtype=float) * np.asarray(spacing, dtype=float)
        extent = sides / np.exp(np.log(sides).mean())
        return cls(tuple(map(int, shape)), tuple(map(float, extent)))

    @property
    def dims(self) -> int:
        return len(self.shape)

    @property
    def voxel(self) -> float:
        """Mean side of a voxel."""
        return float(np.prod(self.shape) ** (-1 / self.dims))

    @functools.cached_property
    def points(self) -> np.ndarray:
        """Centres of the voxels, (axes, *shape), zero in the middle."""
        axes = [(np.arange(n) + 0.5) / n * length - length / 2 for n, length in zip(self.shape, self.extent, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def smooth_noise(random: np.random.Generator, space: Space, wavelength: float) -> Field:
    """Noise of mean 0 and deviation about 1 whose bumps are ``wavelength`` apart (cubic B-splines over a coarse grid)."""
    cells = [max(_COARSEST, round(length / wavelength)) for length in space.extent]
    matrices = [_spline(n, c) if c < _FINEST * n else None for n, c in zip(space.shape, cells, strict=True)]
    grid = [n if matrix is None else matrix.shape[1] for n, matrix in zip(space.shape, matrices, strict=True)]
    field = random.standard_normal(grid, dtype=np.float32)
    for matrix in matrices:  # each turn handles the first axis and moves it to the end
        field = np.moveaxis(field, 0, -1) if matrix is None else np.tensordot(field, matrix, axes=(0, 1))
    return np.ascontiguousarray(field)


@functools.lru_cache(maxsize=512)
def _spline(size: int, cells: int) -> np.ndarray:
    """(size, cells + 3): weights of control points at each voxel, scaled to keep a deviation of 1."""
    position = (np.arange(size) + 0.5) / size * cells
    distance = np.abs(position[:, None] - (np.arange(cells + 3) - 1)[None])
    inner = 2 / 3 - distance**2 * (1 - distance / 2)
    outer = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, inner, outer)
    return np.asarray(weights / np.sqrt((weights**2).sum(1, keepdims=True)), dtype=np.float32)


def displaced(random: np.random.Generator, space: Space, strength: float) -> np.ndarray:
    """The points of a patch after a smooth random displacement of about ``strength`` (in mean sides)."""
    wavelength = random.uniform(0.2, 0.7)
    shift = np.stack([smooth_noise(random, space, wavelength) for _ in range(space.dims)])
    return np.asarray(space.points + np.float32(strength * wavelength) * shift)


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def direction(random: np.random.Generator, dims: int) -> np.ndarray:
    """A unit vector."""
    vector = random.standard_normal(dims)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)
