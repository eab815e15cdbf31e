"""Random shapes. Each is a level: about the distance to its edge in mean sides of the patch, positive inside."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from nnunet_adpfl.procedural.fields import Field, Space, direction, log_uniform, smooth_noise

_CURVE_POINTS = 12


def compact(random: np.random.Generator, space: Space, points: np.ndarray, radius: float, centre: np.ndarray) -> Field:
    """A closed body: ellipsoid or rounded box, with a wavy, lobed or ragged edge or without.

    Args:
        points: (axes, *shape), displaced or not.
        radius: geometric mean of its half axes.
        centre: of the body.
    """
    local = _rotated(random, points - centre.reshape(-1, *[1] * space.dims).astype(np.float32))
    stretch = np.exp(random.normal(0, 0.3, space.dims))
    stretch = np.clip(stretch / np.exp(np.log(stretch).mean()), 0.4, 2.5).astype(np.float32)
    local = local / stretch.reshape(-1, *[1] * space.dims)
    exponent = 2.0 if random.random() < 0.7 else random.uniform(1.3, 5.0)
    norm = np.sqrt((local**2).sum(0)) if exponent == 2.0 else (np.abs(local) ** exponent).sum(0) ** (1 / exponent)
    edge = _waves(random, local, norm) if random.random() < 0.6 else np.zeros((), np.float32)
    if random.random() < 0.4:
        edge = edge + random.uniform(0.05, 0.3) * smooth_noise(random, space, log_uniform(random, 0.15, 1.5) * radius)
    return np.asarray(radius * np.exp(edge) - norm, dtype=np.float32)


def _waves(random: np.random.Generator, local: np.ndarray, norm: Field) -> Field:
    """Logarithm of a star-like radius: plane waves over the unit sphere, which are Fourier-like in 2D too."""
    unit = local / np.maximum(norm, 1e-6)
    edge = np.zeros(norm.shape, np.float32)
    strength = random.uniform(0.05, 0.3)
    for _ in range(random.integers(2, 5)):
        frequency = random.uniform(1.0, 5.0)
        along = np.tensordot(direction(random, len(unit)), unit, axes=1)
        edge += strength / frequency**0.5 * np.cos(frequency * along + random.uniform(0, 2 * np.pi))
    return edge


def tube(random: np.random.Generator, space: Space, points: np.ndarray, radius: float) -> Field:
    """A bent tube across the patch."""
    extent = np.asarray(space.extent)
    start, bend, end = (random.uniform(-0.7, 0.7, space.dims) * extent for _ in range(3))
    nearest = np.full(space.shape, np.inf, np.float32)
    steps = np.linspace(0, 1, _CURVE_POINTS + 1)
    curve = (1 - steps)[:, None] ** 2 * start + 2 * (steps * (1 - steps))[:, None] * bend + steps[:, None] ** 2 * end
    for first, second in pairwise(curve):
        span = (second - first).astype(np.float32)
        local = points - first.reshape(-1, *[1] * space.dims).astype(np.float32)
        share = np.clip(np.tensordot(span, local, axes=1) / max(float(span @ span), 1e-9), 0, 1)
        nearest = np.minimum(nearest, ((local - span.reshape(-1, *[1] * space.dims) * share) ** 2).sum(0))
    return np.asarray(radius - np.sqrt(nearest), dtype=np.float32)


def sheet(random: np.random.Generator, space: Space, width: float) -> Field:
    """Where a smooth field crosses zero: hair-like lines in 2D, folds in 3D."""
    wavelength = random.uniform(0.2, 0.8)
    field = smooth_noise(random, space, wavelength)
    return np.asarray(width - np.abs(field) * wavelength * 0.5, dtype=np.float32)


def cloud(random: np.random.Generator, space: Space) -> Field:
    """Patches of any form, without middle or end: where a smooth field is high."""
    wavelength = log_uniform(random, 0.1, 0.8)
    return np.asarray((smooth_noise(random, space, wavelength) - random.uniform(0.2, 1.5)) * wavelength * 0.5, dtype=np.float32)


def _rotated(random: np.random.Generator, local: np.ndarray) -> np.ndarray:
    basis, _ = np.linalg.qr(random.standard_normal((len(local), len(local))))
    return np.asarray(np.tensordot(basis.astype(np.float32), local, axes=1))
