"""A brain as maps of white matter, grey matter and CSF: deformed ellipsoids, two hemispheres, a warped and folded cortex.

All shapes are given in mm of the MNI152 space (x to the right, y to the front, z to the head), so that a small volume
shows the same head in larger voxels. Borders are ramps about a voxel wide: a voxel may be part grey, part white matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_adpfl.dataset_conversion.synthetic.volumes import smooth_field_3d

VIEW_MM = (182.0, 218.0, 182.0)  # that of the MNI152 template, which has voxels of 1 mm
CORNER_MM = (90.5, -126.5, -72.5)  # outer corner of the first voxel
WARP_MM, WARP_SCALE_MM = 2.0, 50.0
CORTEX_MM = 3.4
FOLD_MM = 10.0  # from one fold to the next
SULCUS_DEPTH_MM = 22.0
CEREBRUM_MM = ((0.0, -17.0, 14.0), (67.0, 87.0, 65.0))  # middle and half axes
# Middle and half axes in the right hemisphere; each has its mirror image.
CEREBELLUM_MM = ((19.0, -64.0, -38.0), (33.0, 31.0, 25.0))
LATERAL_VENTRICLE_MM = ((9.0, -12.0, 20.0), (5.0, 45.0, 7.5))  # before it is bent
VENTRICLES_MM = (
    ((25.0, -42.0, 11.0), (6.5, 11.0, 9.0)),  # atrium
    ((0.0, -12.0, 0.0), (2.0, 14.0, 10.0)),  # third ventricle, both halves in one
    ((0.0, -46.0, -34.0), (6.0, 7.0, 8.0)),  # fourth ventricle
)
NUCLEI_MM = (
    ((11.0, -18.0, 7.0), (8.5, 14.0, 9.0)),  # thalamus
    ((14.0, 12.0, 9.0), (6.0, 13.0, 10.0)),  # caudate
    ((26.0, 2.0, 1.0), (7.0, 17.0, 10.0)),  # lentiform
)
BRAINSTEM_MM = ((0.0, -28.0, -36.0), (15.0, 14.0, 34.0))


@dataclass(frozen=True)
class BrainGrid:
    """Where the voxels lie: axes from right to left, back to front, foot to head, as in the MNI152 template of FSL."""

    shape: tuple[int, int, int]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        first, second, third = (view / length for view, length in zip(VIEW_MM, self.shape, strict=True))
        return first, second, third

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to mm of MNI152."""
        steps = np.array(self.spacing_mm) * (-1, 1, 1)
        matrix = np.diag([*steps, 1.0])
        matrix[:3, 3] = np.array(CORNER_MM) + steps / 2
        return matrix

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z of all voxels (mm, float32), to be broadcast against each other."""
        x, y, z = (
            (self.affine[axis, 3] + self.affine[axis, axis] * np.arange(length)).astype(np.float32)
            for axis, length in enumerate(self.shape)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def field(self, scale_mm: float, generator: np.random.Generator) -> np.ndarray:
        """A random field of mean 0 and deviation 1 that varies over about ``scale_mm``."""
        first, second, third = (scale_mm / spacing for spacing in self.spacing_mm)
        return smooth_field_3d(self.shape, (first, second, third), generator)


@dataclass(frozen=True)
class Brain:
    """What a patient has in common at all timepoints. Maps have the grid's shape and are float32, 0 outside the mask.

    Attributes:
        mask: the brain with the fluid in its sulci, without the skull.
        white, grey, fluid: shares of a voxel; they add to 1 in the mask.
        ventricle_mm: depth in the ventricles; below 0 the distance to them.
        side_mm: x in the space in which the brain is not warped: its sign tells the hemispheres apart.
        is_cerebrum: where a glioma may start.
    """

    mask: np.ndarray
    white: np.ndarray
    grey: np.ndarray
    fluid: np.ndarray
    ventricle_mm: np.ndarray
    side_mm: np.ndarray
    is_cerebrum: np.ndarray


def draw_brain(grid: BrainGrid, atrophy: float, generator: np.random.Generator) -> Brain:
    """A brain of its own; ``atrophy``, 0 (young) to 1 (old), widens ventricles and sulci."""
    build = 1 + 0.025 * generator.standard_normal(3)
    x, y, z = (
        (axis / np.float32(factor) + WARP_MM * grid.field(WARP_SCALE_MM, generator)).astype(np.float32)
        for axis, factor in zip(grid.coordinates(), build, strict=True)
    )
    side = np.abs(x)
    cerebrum, cerebellum, stem = _cerebrum(x, y, z), _depth(side, y, z, *CEREBELLUM_MM), _depth(x, y, z, *BRAINSTEM_MM)
    depth = np.maximum(np.maximum(cerebrum, cerebellum), stem)
    mask = depth > 0
    folds = grid.field(FOLD_MM, generator)
    closest = np.minimum(np.abs(folds), np.abs(grid.field(FOLD_MM, generator)))  # one field alone leaves bald patches
    sulcus = 0.62 * FOLD_MM * closest + CORTEX_MM * (np.clip(depth, 0, None) / SULCUS_DEPTH_MM) ** 3
    fissure = np.minimum(_midline(side, y, z), _sylvian(side, y, z) + np.abs(folds))
    to_surface = np.minimum(np.minimum(sulcus, fissure), depth)
    soft = 0.9 * float(np.mean(grid.spacing_mm))
    is_cerebrum = (cerebrum > cerebellum) & (cerebrum > stem) & mask
    not_white, fluid = _cortex(to_surface, depth, folds, atrophy, soft, is_cerebrum, cerebellum >= stem)
    nuclei = _union(side, y, z, NUCLEI_MM, 1.0)
    np.maximum(not_white, 0.85 * _ramp(nuclei, soft), out=not_white)
    ventricle = _ventricles(side, y, z, 0.8 + 0.55 * atrophy)
    in_ventricle = _ramp(ventricle, soft)
    np.maximum(not_white, in_ventricle, out=not_white)
    np.maximum(fluid, in_ventricle, out=fluid)
    return Brain(
        mask=mask,
        white=(1 - not_white) * mask,
        grey=(not_white - fluid) * mask,
        fluid=fluid * mask,
        ventricle_mm=ventricle,
        side_mm=x,
        is_cerebrum=is_cerebrum,
    )


def _cerebrum(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Depth (mm) in an egg with its thin end in front, cut off below by the skull base and the tentorium."""
    (_, middle_y, middle_z), (half_x, half_y, half_z) = CEREBRUM_MM
    y_from, z_from = y - np.float32(middle_y), z - np.float32(middle_z)
    level = np.abs(x / (half_x - 0.05 * y_from)), np.abs(y_from / half_y), np.abs(z_from / half_z)
    # The power of 2.25 makes it a little boxier than an ellipsoid, as skulls are.
    egg = sum(part * part * np.sqrt(np.sqrt(part)) for part in level) ** np.float32(1 / 2.25)
    temporal = np.clip((38 - y) / 32, 0, 1) * np.clip((y + 64) / 30, 0, 1) * np.clip((np.abs(x) - 10) / 10, 0, 1)
    base = -21 - 25 * temporal
    return np.minimum((1 - egg) * 70, 0.8 * (z - base))


def _cortex(
    to_surface: np.ndarray,
    depth: np.ndarray,
    folds: np.ndarray,
    atrophy: float,
    soft: float,
    is_cerebrum: np.ndarray,
    is_cerebellum: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of all that is not white matter, and of fluid. Cerebellar folia are too fine to see: a grey shell."""
    fluid = _ramp(0.3 + 0.9 * atrophy - to_surface, soft)
    not_white = _ramp(CORTEX_MM + 0.9 * atrophy - to_surface, soft)
    shell = np.where(is_cerebellum, 0.8 * _ramp(10 + 3 * folds - depth, 2 * soft), 0.2)
    not_white = np.where(is_cerebrum, not_white, shell)
    fluid = np.where(is_cerebrum, fluid, _ramp(-depth, soft))
    return np.maximum(not_white, fluid), fluid


def _midline(side: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance (mm) to the fissure between the hemispheres, which ends at the corpus callosum."""
    callosum = 1 - np.sqrt(((y + 8) / 44) ** 2 + ((z - 2) / 30) ** 2)
    return side + np.clip(60 * callosum, 0, None) + np.clip(-20 - z, 0, None)


def _ventricles(side: np.ndarray, y: np.ndarray, z: np.ndarray, factor: float) -> np.ndarray:
    """Depth (mm) in the ventricles. The lateral ones bend outwards and down at both ends."""
    middle, half = LATERAL_VENTRICLE_MM
    bent = _depth(
        side - 0.006 * (y - 5) ** 2, y, z + 0.006 * (y + 8) ** 2, middle, (half[0] * factor, half[1], half[2] * factor)
    )
    return np.maximum(bent, _union(side, y, z, VENTRICLES_MM, factor))


def _sylvian(side: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance (mm) to the fissure above the temporal lobe, which ends at the insula."""
    away = np.abs(z - (-2 - 0.35 * (y + 5))) / 1.1
    return away + np.clip(36 - side, 0, None) + 0.6 * (np.clip(y - 22, 0, None) + np.clip(-30 - y, 0, None))


def _union(
    side: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    shapes: Sequence[tuple[Sequence[float], Sequence[float]]],
    factor: float,
) -> np.ndarray:
    depth = np.full(side.shape, -np.inf, dtype=np.float32)
    for middle, half in shapes:
        np.maximum(depth, _depth(side, y, z, middle, [factor * value for value in half]), out=depth)
    return depth


def _depth(x: np.ndarray, y: np.ndarray, z: np.ndarray, middle: Sequence[float], half: Sequence[float]) -> np.ndarray:
    """Depth in an ellipsoid, in mm near its border; below 0 outside."""
    level = ((x - np.float32(middle[0])) / np.float32(half[0])) ** 2
    level += ((y - np.float32(middle[1])) / np.float32(half[1])) ** 2
    level += ((z - np.float32(middle[2])) / np.float32(half[2])) ** 2
    # Of all that grows along the axes, the geometric mean is fair to long and to flat shapes.
    return (1 - np.sqrt(level)) * np.float32(np.prod(half) ** (1 / 3))


def _ramp(depth_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """0 well outside, 1 well inside, rising over ``width_mm`` about the border."""
    return np.clip(depth_mm / np.float32(width_mm) + np.float32(0.5), 0, 1)
