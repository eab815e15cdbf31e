"""Boundaries of masks and the distances between them, in millimetres, in 2D and 3D.

A boundary element is a point between 2 x 2 (x 2) pixels (voxels) that are not all equal. Its weight is the length (area)
that marching squares (cubes) gives such a neighbourhood, so no figure depends on how densely a boundary is sampled.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two boundaries that both exist; sorted, with the weights of the elements in the same order.

    Attributes:
        truth_to_prediction_mm: from each element of the true boundary to the nearest one of the predicted boundary.
        prediction_to_truth_mm: the other way round.
        truth_areas, prediction_areas: length in mm (2D) or area in square mm (3D) of each element.
    """

    truth_to_prediction_mm: Floats
    prediction_to_truth_mm: Floats
    truth_areas: Floats
    prediction_areas: Floats

    def hausdorff_mm(self, share: float) -> float:
        """The distance that ``share`` of a boundary (by area) does not exceed; the larger of both directions."""
        return max(
            _weighted_quantile(self.truth_to_prediction_mm, self.truth_areas, share),
            _weighted_quantile(self.prediction_to_truth_mm, self.prediction_areas, share),
        )

    def average_mm(self) -> float:
        """Mean distance over both boundaries together, weighted by area."""
        weighted = self.truth_to_prediction_mm @ self.truth_areas + self.prediction_to_truth_mm @ self.prediction_areas
        return float(weighted / (self.truth_areas.sum() + self.prediction_areas.sum()))

    def share_within(self, tolerance_mm: float) -> float:
        """Share of both boundaries, by area, that is within ``tolerance_mm`` of the other one; 0 to 1."""
        truth = self.truth_areas[self.truth_to_prediction_mm <= tolerance_mm].sum()
        prediction = self.prediction_areas[self.prediction_to_truth_mm <= tolerance_mm].sum()
        return float((truth + prediction) / (self.truth_areas.sum() + self.prediction_areas.sum()))


def surface_distances(truth: Mask, prediction: Mask, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances between the boundaries of two masks of shape (x, y) or (x, y, z), neither of them empty."""
    spacing = tuple(float(step) for step in spacing_mm)
    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    truth_areas, prediction_areas = _areas(truth[box], spacing), _areas(prediction[box], spacing)
    forth, forth_areas = _directed(truth_areas, prediction_areas, spacing)
    back, back_areas = _directed(prediction_areas, truth_areas, spacing)
    return SurfaceDistances(forth, back, forth_areas, back_areas)


def _areas(mask: Mask, spacing: tuple[float, ...]) -> Floats:
    """Area of the boundary element at every corner of the pixel grid; 0 where there is none."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([size - 1 for size in padded.shape], dtype=np.uint8)
    for bit, offset in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        corner = tuple(slice(o, size - 1 + o) for o, size in zip(offset, padded.shape, strict=True))
        codes |= padded[corner] << bit
    return _area_of_neighbourhood(spacing)[codes]


def _directed(source: Floats, target: Floats, spacing: tuple[float, ...]) -> tuple[Floats, Floats]:
    nearest = ndimage.distance_transform_edt(target == 0, sampling=spacing)
    elements = source > 0
    distances, areas = nearest[elements], source[elements]
    order = np.argsort(distances, kind="stable")
    return distances[order], areas[order]


@functools.lru_cache(maxsize=256)
def _area_of_neighbourhood(spacing: tuple[float, ...]) -> Floats:
    """Area for each of the 16 (256) neighbourhoods; bit k of the code is corner k in the order of itertools.product."""
    dims = len(spacing)
    codes = np.arange(2 ** (2**dims))
    corners = (codes[:, None] >> np.arange(2**dims)) & 1
    neighbourhoods = corners.reshape(-1, *[2] * dims).astype(float)
    return np.array([min(_marched_area(n, spacing), _marched_area(1 - n, spacing)) for n in neighbourhoods])


def _marched_area(neighbourhood: Floats, spacing: tuple[float, ...]) -> float:
    """Marching squares or cubes; callers take the smaller of a neighbourhood and its inverse where it is ambiguous."""
    if neighbourhood.min() == neighbourhood.max():
        return 0.0
    if len(spacing) == 2:
        contours = measure.find_contours(neighbourhood, 0.5)
        return float(sum(np.linalg.norm(np.diff(line * spacing, axis=0), axis=1).sum() for line in contours))
    vertices, faces, _, _ = measure.marching_cubes(neighbourhood, 0.5, spacing=spacing, method="lorensen")
    return float(measure.mesh_surface_area(vertices, faces))


def _weighted_quantile(values: Floats, weights: Floats, share: float) -> float:
    cumulative = np.cumsum(weights) / weights.sum()
    return float(values[min(int(np.searchsorted(cumulative, share)), len(values) - 1)])
