"""Kidneys with a tumour and cysts as parametric shapes, and how three readers trace them.

A map of instances comes first; the labels follow from it, and so does the image (see ``abdomen_ct``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_adpfl.dataset_conversion.synthetic.ct_site import CtSite, Grid
from nnunet_adpfl.dataset_conversion.synthetic.volumes import smooth_field_3d

LABELS = {"kidney": 1, "tumor": 2, "cyst": 3}
KIDNEY_MM = np.array([56.0, 28.0, 31.0])  # half its length, thickness and width (towards the hilum)
KIDNEY_PLACE_MM = np.array([0.0, 26.0, 64.0])  # from the middle of the body: slices, rows, columns
LEAST_LIFT_MM = 14.0  # the slices were planned by eye: in a short volume a pole may be cut off
SMALLEST_ML, LARGEST_ML = 2.0, 500.0  # of a tumour; KiTS has 0.2 to 2,591, the median is 32
SECOND_TUMOUR = 0.06  # share of patients
CYST_RADIUS_MM = (6.0, 32.0)
SPINE = 0.4  # of half the body's depth: how far behind its middle the vertebrae lie
VERTEBRA_MM = (17.0, 23.0)  # half a vertebra's depth and width
WALL_MM = 11.0  # of muscle under the fat
HAND = 0.35  # pixels by which a reader's outline wanders
FIRMLY_SEEN = 40  # voxels: smaller instances are never traced too small, lest they vanish

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Body:
    """The patient's place on the table: coordinates in mm from the middle of the body.

    Attributes:
        middle_mm: rows and columns, from the middle of the volume.
        roll: radians; ``lean``: mm that the body goes back for each mm towards the feet.
        half_mm: half its depth and width, ``fat_mm``: under the skin.
    """

    middle_mm: tuple[float, float]
    roll: float
    lean: float
    half_mm: tuple[float, float]
    fat_mm: float

    def coordinates(self, grid: Grid, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Towards feet, back and left of each voxel of the box (mm, float32), to be broadcast against each other."""
        down, back, left = (
            ((np.arange(part.start, part.stop) - (length - 1) / 2) * spacing).astype(np.float32)
            for part, length, spacing in zip(box, grid.shape, grid.spacing_mm, strict=True)
        )
        back, left = back[:, None] - np.float32(self.middle_mm[0]), left[None] - np.float32(self.middle_mm[1])
        cosine, sine = np.float32(np.cos(self.roll)), np.float32(np.sin(self.roll))
        down = down[:, None, None]
        turned_back, turned_left = (cosine * back - sine * left)[None], (sine * back + cosine * left)[None]
        return down, turned_back - np.float32(self.lean) * down, turned_left

    def box_around(self, grid: Grid, point_mm: np.ndarray, radius_mm: float) -> Box:
        """The voxels that may lie within ``radius_mm`` of a point; where there are none, the nearest ones."""
        down, back, left = point_mm
        back = back + self.lean * down
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        place = (down, self.middle_mm[0] + cosine * back + sine * left, self.middle_mm[1] - sine * back + cosine * left)
        parts = []
        for at, length, spacing in zip(place, grid.shape, grid.spacing_mm, strict=True):
            middle, reach = at / spacing + (length - 1) / 2, radius_mm / spacing + 1
            start = int(np.clip(np.floor(middle - reach), 0, length - 1))
            parts.append(slice(start, int(np.clip(np.ceil(middle + reach) + 1, start + 1, length))))
        first, second, third = parts
        return first, second, third


@dataclass(frozen=True)
class Anatomy:
    """What is to be seen. ``instances`` (uint8) holds 0 and, for the instance ``kinds[i]``, i + 1."""

    grid: Grid
    body: Body
    instances: np.ndarray
    kinds: tuple[str, ...]

    def labels(self, instances: np.ndarray) -> np.ndarray:
        """KiTS's labels (uint8) of a map of this patient's instances."""
        return np.array([0, *(LABELS[kind] for kind in self.kinds)], dtype=np.uint8)[instances]


@dataclass(frozen=True)
class _Kidney:
    """``axes``: rows are the directions of its length, thickness and hilum; ``half_mm`` goes with them."""

    middle_mm: np.ndarray
    axes: np.ndarray
    half_mm: np.ndarray


def draw_anatomy(site: CtSite, grid: Grid, generator: np.random.Generator) -> Anatomy:
    """A patient of the site: two kidneys, one tumour (rarely two), and, in some patients, one to three cysts."""
    body = draw_body(site, generator)
    room = max(LEAST_LIFT_MM, grid.shape[0] * grid.spacing_mm[0] / 2 - 70)
    lift = generator.uniform(-room, room)
    kidneys = [_draw_kidney(side, lift, body, generator) for side in (-1, 1)]
    painted = [("kidney", *_kidney_mask(kidney, body, grid, generator)) for kidney in kidneys]
    volume = float(np.clip(_lognormal(site.tumour[0], site.tumour[1], generator), SMALLEST_ML, LARGEST_ML))
    tumours = []
    for share in (1.0, 0.3)[: 2 if generator.random() < SECOND_TUMOUR else 1]:
        radius = float(np.cbrt(share * volume * 1000 * 3 / (4 * np.pi)))
        tumours.append((_place_mass(kidneys[generator.integers(2)], radius, generator), radius))
    cysts = []
    for _ in range(generator.integers(1, 4) if generator.random() < site.cysts[0] else 0):
        radius = float(np.clip(_lognormal(10.0, 0.4, generator), *CYST_RADIUS_MM))
        places = [_place_mass(kidneys[generator.integers(2)], radius, generator) for _ in range(4)]
        free = [min(np.linalg.norm(place - middle) - size for middle, size in tumours) for place in places]
        cysts.append((places[int(np.argmax(free))], radius))
    painted += [("cyst", *_blob_mask(*cyst, 0.04, body, grid, generator)) for cyst in cysts]
    painted += [("tumor", *_blob_mask(*tumour, 0.1, body, grid, generator)) for tumour in tumours]
    return _painted(painted, body, grid)


def draw_body(site: CtSite, generator: np.random.Generator) -> Body:
    width = float(np.clip(generator.normal(site.build[0], 9), 130, 205))
    return Body(
        middle_mm=(_within(generator.normal(0, 17), 40), _within(generator.normal(0, 18), 30)),
        roll=np.radians(site.tilt[0] + generator.normal(0, 2.5)),
        lean=float(np.tan(np.radians(site.tilt[1] + generator.normal(0, 2)))),
        half_mm=(width * generator.uniform(0.64, 0.76), width),
        fat_mm=float(np.clip(_lognormal(site.build[1], 0.3, generator), 6, 0.25 * width)),
    )


def _draw_kidney(side: int, lift_mm: float, body: Body, generator: np.random.Generator) -> _Kidney:
    """``side`` is 1 on the patient's left. The upper poles lie further back and nearer to the spine, the right lower."""
    length = np.array([1.0, -0.25, 0.2 * side]) + generator.normal(0, 0.09, 3)
    length /= np.linalg.norm(length)
    hilum = np.array([0.0, -0.55, -0.84 * side]) + generator.normal(0, 0.15, 3)
    hilum -= length * (hilum @ length)
    hilum /= np.linalg.norm(hilum)
    wide = body.half_mm[1] / 165
    middle = KIDNEY_PLACE_MM * (1, body.half_mm[0] / 115, side * wide**0.5)
    middle = middle + np.array([lift_mm - 5 * side, 0, 0]) + generator.normal(0, (7, 7, 5))
    half = KIDNEY_MM * np.exp(np.clip(generator.normal(0, 0.06) + generator.normal(0, 0.04, 3), -0.17, 0.17))
    return _Kidney(middle, np.array([length, np.cross(length, hilum), hilum]), half)


def _kidney_mask(kidney: _Kidney, body: Body, grid: Grid, generator: np.random.Generator) -> tuple[Box, np.ndarray]:
    """A bean: an ellipsoid bent towards its hilum, without the sinus, slightly uneven."""
    box = body.box_around(grid, kidney.middle_mm, 1.2 * kidney.half_mm.max())
    offsets = [axis - np.float32(at) for axis, at in zip(body.coordinates(grid, box), kidney.middle_mm, strict=True)]
    along, across, inward = (
        sum(part * np.float32(share) for part, share in zip(offsets, direction, strict=True)) / np.float32(half)
        for direction, half in zip(kidney.axes, kidney.half_mm, strict=True)
    )
    bend, depth = generator.uniform(0.2, 0.4), generator.uniform(0.65, 0.95)
    bean = along**2 + across**2 + (inward - bend * (along**2 - 0.3)) ** 2
    bean *= 1 + 0.1 * field_in(grid, box, 22.0, generator)
    sinus = (along / 0.42) ** 2 + (across / 0.42) ** 2 + ((inward - 1.05) / depth) ** 2
    return box, (bean < 1) & (sinus > 1)


def _place_mass(kidney: _Kidney, radius_mm: float, generator: np.random.Generator) -> np.ndarray:
    """Middle of a mass (mm): half buried in the kidney or standing out of it, not in its hilum; large ones in front."""
    for _ in range(30):
        direction = generator.standard_normal(3)
        direction /= np.linalg.norm(direction)
        offset = (direction * kidney.half_mm) @ kidney.axes
        back = offset[1] / np.linalg.norm(offset)
        if direction[2] < 0.25 and (radius_mm < 25 or back < 0.2):
            break
    buried = generator.uniform(-0.75, 0.6) if radius_mm < 25 else generator.uniform(-0.2, 0.6)
    return kidney.middle_mm + offset * (1 + buried * radius_mm / np.linalg.norm(offset))


def _blob_mask(
    middle_mm: np.ndarray, radius_mm: float, roughness: float, body: Body, grid: Grid, generator: np.random.Generator
) -> tuple[Box, np.ndarray]:
    """A ball out of shape, inside the muscle of the body's wall and beside the spine; never without a voxel."""
    box = body.box_around(grid, middle_mm, 1.5 * radius_mm)
    stretch = np.exp(generator.normal(0, roughness, 3))
    stretch *= radius_mm / np.cbrt(stretch.prod())
    down, back, left = body.coordinates(grid, box)
    level = sum(
        ((axis - at) / half) ** 2 for axis, at, half in zip((down, back, left), middle_mm, stretch, strict=True)
    )
    level = level * np.exp(2 * roughness * field_in(grid, box, 0.8 * radius_mm, generator))
    level += 10 * (wall_level(body, back, left, WALL_MM) > 1)
    spine = SPINE * body.half_mm[0]
    level += 10 * (((back - spine) / VERTEBRA_MM[0]) ** 2 + (left / VERTEBRA_MM[1]) ** 2 < 1)
    return box, level <= max(1.0, float(level.min()))


def wall_level(body: Body, back: np.ndarray, left: np.ndarray, below_fat_mm: float) -> np.ndarray:
    """Below 1 inside the ellipse that lies ``below_fat_mm`` under the fat of the skin, which is thicker in front."""
    depth, width = (half - body.fat_mm - below_fat_mm for half in body.half_mm)
    return ((back - np.float32(0.4 * body.fat_mm)) / np.float32(depth)) ** 2 + (left / np.float32(width)) ** 2


def _painted(painted: list[tuple[str, Box, np.ndarray]], body: Body, grid: Grid) -> Anatomy:
    """The map of all instances; later ones cover earlier ones, and those wholly covered are left out."""
    instances = np.zeros(grid.shape, dtype=np.uint8)
    for number, (_, box, mask) in enumerate(painted, start=1):
        instances[box][mask] = number
    there = np.bincount(instances.ravel(), minlength=len(painted) + 1) > 0
    there[0] = False
    renumbered = (np.cumsum(there) * there).astype(np.uint8)
    kinds = tuple(kind for (kind, *_), kept in zip(painted, there[1:], strict=True) if kept)
    return Anatomy(grid, body, renumbered[instances], kinds)


def trace(anatomy: Anatomy, too_large_pixels: float, generator: np.random.Generator) -> list[np.ndarray]:
    """The maps of instances that three readers drew, slice by slice; all share the site's habit (-1 to 1 pixels)."""
    box = box_of(anatomy.instances > 0, (1, 2, 2))
    seen = anatomy.instances[box]
    cross = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)
    grown = ndimage.maximum_filter(seen, footprint=cross)
    inner = ndimage.minimum_filter((seen > 0).view(np.uint8), footprint=cross) > 0
    firm = np.bincount(seen.ravel(), minlength=256) >= FIRMLY_SEEN
    edge = (seen > 0) & ~inner & firm[seen]
    traced = []
    for _ in range(3):
        shift = too_large_pixels + HAND * field_in(anatomy.grid, box, 15.0, generator)
        whole = np.zeros_like(anatomy.instances)
        whole[box] = np.where((seen == 0) & (shift > 0.5), grown, np.where(edge & (shift < -0.5), 0, seen))
        traced.append(whole)
    return traced


def majority(maps: list[np.ndarray]) -> np.ndarray:
    """What two of three readers drew; where all differ, the first."""
    first, second, third = maps
    return np.where(second == third, second, first)


def box_of(mask: np.ndarray, margin_voxels: tuple[int, int, int]) -> Box:
    """The smallest box that holds the mask (not empty), with a margin where there is room."""
    parts = []
    for axis, (length, margin) in enumerate(zip(mask.shape, margin_voxels, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        there = np.flatnonzero(mask.any(axis=others))
        parts.append(slice(max(0, int(there[0]) - margin), min(length, int(there[-1]) + 1 + margin)))
    first, second, third = parts
    return first, second, third


def field_in(grid: Grid, box: Box, scale_mm: float, generator: np.random.Generator) -> np.ndarray:
    """A smooth field over the box that varies over about ``scale_mm`` along all axes."""
    shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
    down, back, left = (scale_mm / spacing for spacing in grid.spacing_mm)
    return smooth_field_3d(shape, (down, back, left), generator)


def _within(value: float, limit: float) -> float:
    return float(np.clip(value, -limit, limit))


def _lognormal(median: float, deviation: float, generator: np.random.Generator) -> float:
    return float(median * np.exp(deviation * generator.standard_normal()))
