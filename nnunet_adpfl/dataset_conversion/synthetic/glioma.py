"""A treated glioma: oedema along the white matter, a core with an enhancing rim, a resection cavity; how it is traced.

The tumour of a patient stays where it is and keeps its character; from scan to scan it grows or shrinks, and more
patients have a cavity. Depths (mm, above 0 inside) come first, labels follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_adpfl.dataset_conversion.synthetic.brain import Brain, BrainGrid
from nnunet_adpfl.dataset_conversion.synthetic.mri_site import MriSite

NETC, SNFH, ET, RC = 1, 2, 3, 4  # necrotic core, oedema, enhancing tissue, resection cavity
SMALLEST_MM, LARGEST_MM = 9.0, 42.0  # radius of the oedema
HAND_MM, HAND_SCALE_MM = 0.9, 14.0  # how far the traced outline wanders from the one to be seen
OPERATED_LATER = 0.4  # share of those without a cavity who have one at the next scan
CHANGES_MIND = 0.15  # chance that tissue that is there at one scan is missing at another, or the reverse


@dataclass(frozen=True)
class Glioma:
    """One patient's tumour. Fields have the grid's shape, mean 0 and deviation 1.

    Attributes:
        middle_mm: of the oedema, ``core_mm`` of the core, ``cavity_mm`` of the cavity.
        stretch: the three factors of its ellipsoid; their product is 1.
        radius_mm: of the oedema at the first scan; ``core`` and ``cavity`` are shares of it.
        trend: mean growth of the radius' logarithm from scan to scan.
        rim_mm: mean thickness of the enhancing rim.
        luck: three numbers from 0 to 1; below the prevalence, there is a cavity, enhancing tissue, necrosis.
        outlines: two fields that make its shapes irregular.
    """

    middle_mm: np.ndarray
    core_mm: np.ndarray
    cavity_mm: np.ndarray
    stretch: np.ndarray
    radius_mm: float
    core: float
    cavity: float
    trend: float
    rim_mm: float
    luck: np.ndarray
    outlines: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Depths:
    """Of one scan: mm below the surface of each part, and which parts there are (labels)."""

    oedema: np.ndarray
    core: np.ndarray
    cavity: np.ndarray
    rim: np.ndarray
    parts: frozenset[int]

    def labels(self, mask: np.ndarray, off_mm: np.ndarray | None = None) -> np.ndarray:
        """Labels (uint8) as seen, or as traced by a hand that is ``off_mm`` too far out. SNFH is never missing."""
        off_mm = np.zeros(mask.shape, dtype=np.float32) if off_mm is None else off_mm
        found = np.zeros(mask.shape, dtype=np.uint8)
        in_core = (self.core + 0.6 * off_mm > 0) & mask
        in_cavity = (self.cavity + 0.6 * off_mm > 0) & mask
        found[(self.oedema + off_mm > 0) & mask] = SNFH
        if NETC in self.parts:
            found[in_core] = NETC
        if ET in self.parts:
            found[in_core & (self.core < self.rim + 0.3 * off_mm)] = ET
        if RC in self.parts:
            found[in_cavity] = RC
            if ET in self.parts:  # what is left of the tumour lines the cavity's wall
                found[in_core & ~in_cavity & (self.cavity + 0.6 * off_mm > -0.5 * self.rim)] = ET
        for part, depth in ((RC, self.cavity), (ET, -np.abs(self.core)), (NETC, self.core), (SNFH, self.oedema)):
            if part in self.parts and not (found == part).any():  # too small for these voxels: it has one all the same
                found.flat[np.where(mask & ((found == 0) | (part != SNFH)), depth, -np.inf).argmax()] = part
        return found


def draw_glioma(brain: Brain, grid: BrainGrid, site: MriSite, generator: np.random.Generator) -> Glioma:
    middle = _place(brain, grid, generator)
    median, deviation = site.lesion
    radius = float(np.clip(median * np.exp(deviation * generator.standard_normal()), SMALLEST_MM, LARGEST_MM))
    core, cavity = generator.uniform(0.5, 0.8), generator.uniform(0.3, 0.55)
    stretch = np.exp(0.16 * generator.standard_normal(3))
    core_middle = middle + 0.3 * radius * (1 - core) * generator.standard_normal(3)
    towards = generator.standard_normal(3)
    towards[0] = abs(towards[0]) * np.sign(middle[0])  # surgeons come from outside
    towards /= np.linalg.norm(towards)
    scale = 0.55 * radius
    return Glioma(
        middle_mm=middle,
        core_mm=core_middle,
        cavity_mm=core_middle + towards * radius * core * generator.uniform(0.1, 0.8),
        stretch=stretch / np.prod(stretch) ** (1 / 3),
        radius_mm=radius,
        core=core,
        cavity=cavity,
        trend=0.12 * generator.standard_normal(),
        rim_mm=generator.uniform(2.5, 4.5),
        luck=generator.uniform(0, 1, 3),
        outlines=(_outline(grid, scale, generator), _outline(grid, 0.7 * scale, generator)),
    )


def depths_at(
    glioma: Glioma, brain: Brain, grid: BrainGrid, site: MriSite, timepoint: int, generator: np.random.Generator
) -> Depths:
    """The tumour at the patient's scan ``timepoint`` (0: the first one)."""
    growth = float(np.exp(glioma.trend * timepoint + 0.08 * generator.standard_normal()))
    radius = float(np.clip(glioma.radius_mm * growth, SMALLEST_MM, LARGEST_MM))
    first, second = glioma.outlines
    # Oedema follows the white matter, stops at the ventricles, and hardly crosses to the other side.
    other_side = np.clip(-brain.side_mm * np.sign(glioma.middle_mm[0]), 0, None)
    barrier = 5.0 * brain.grey + 12.0 * brain.fluid + 1.2 * other_side + np.clip(3 * brain.ventricle_mm, 0, None)
    oedema = radius * (1.05 + 0.22 * first) - _distance(glioma.middle_mm, glioma.stretch, grid) - barrier
    size = radius * glioma.core
    away = 8.0 * np.clip(brain.ventricle_mm, 0, 1) + 0.6 * other_side
    core = size * (1 + 0.2 * second) - _distance(glioma.core_mm, glioma.stretch, grid) - away
    parts = _parts(glioma, site, timepoint, generator)
    rim = glioma.rim_mm * np.clip(1.0 + 0.6 * first, 0.15, 2.0)
    if NETC not in parts and RC in parts:  # all that was dead is taken out, and the cavity takes its place
        cavity = core - (0.8 * rim if ET in parts else np.float32(0.1 * size))
    else:
        cavity = size * 1.25 * glioma.cavity / 0.5 * (0.75 + 0.1 * first) - _distance(
            glioma.cavity_mm, glioma.stretch, grid
        )
        cavity -= away
    if NETC not in parts and RC not in parts:  # solid: smaller, and enhancing throughout
        core, rim = core - np.float32(0.35 * size), np.full_like(rim, np.inf)
    return Depths(oedema=oedema, core=core, cavity=cavity, rim=rim, parts=parts)


def traced(depths: Depths, brain: Brain, grid: BrainGrid, site: MriSite, generator: np.random.Generator) -> np.ndarray:
    """The labels as the site's reader draws them: off by the site's habit and by the hand, as no two readers agree."""
    off_mm = site.tracing_mm[0] + HAND_MM * grid.field(HAND_SCALE_MM, generator)
    return depths.labels(brain.mask, off_mm.astype(np.float32))


def _parts(glioma: Glioma, site: MriSite, timepoint: int, generator: np.random.Generator) -> frozenset[int]:
    cavity, enhancing, necrosis = site.prevalence
    redrawn = np.where(generator.random(3) < CHANGES_MIND, generator.random(3), glioma.luck)
    parts = {SNFH}
    if glioma.luck[0] < 1 - (1 - cavity) * (1 - OPERATED_LATER) ** timepoint:  # what was cut out stays out
        parts.add(RC)
    if redrawn[1] < enhancing:
        parts.add(ET)
    if redrawn[2] < necrosis:
        parts.add(NETC)
    return frozenset(parts)


def _place(brain: Brain, grid: BrainGrid, generator: np.random.Generator) -> np.ndarray:
    """A point (mm) in the white matter of a hemisphere, not at its very border and not in the midline."""
    x, _, z = grid.coordinates()
    fits = (brain.white > 0.6) & brain.is_cerebrum & (np.abs(x) > 16) & (z > -22) & (brain.ventricle_mm < -4)
    found = np.flatnonzero(fits)
    at = np.unravel_index(found[generator.integers(len(found))], grid.shape)
    return (grid.affine @ [*at, 1.0])[:3]


def _distance(middle_mm: np.ndarray, stretch: np.ndarray, grid: BrainGrid) -> np.ndarray:
    """Distance (mm) from a point, measured along the axes of an ellipsoid."""
    first, second, third = (
        ((axis - np.float32(middle)) / np.float32(factor)) ** 2
        for axis, middle, factor in zip(grid.coordinates(), middle_mm, stretch, strict=True)
    )
    return np.sqrt(first + second + third)


def _outline(grid: BrainGrid, scale_mm: float, generator: np.random.Generator) -> np.ndarray:
    return 0.9 * grid.field(scale_mm, generator) + 0.4 * grid.field(0.4 * scale_mm, generator)
