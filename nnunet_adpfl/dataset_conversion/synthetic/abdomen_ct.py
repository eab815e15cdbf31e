"""An abdominal CT made from a map of kidneys, tumours and cysts: the body round them, their inside, then the scanner.

Liver, spleen, vessels, bowel with contrast medium and bones share the kidney's densities, so that no window of HU
finds it; a tumour may be as bright as the cortex or as dark as a dense cyst.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_adpfl.dataset_conversion.synthetic.ct_site import CtSite
from nnunet_adpfl.dataset_conversion.synthetic.kidney import (
    SPINE,
    VERTEBRA_MM,
    WALL_MM,
    Anatomy,
    Box,
    box_of,
    field_in,
    wall_level,
)
from nnunet_adpfl.dataset_conversion.synthetic.volumes import smooth_field_3d

AIR, FAT, MUSCLE, BOWEL, GAS, TABLE = -1000.0, -105.0, 55.0, 38.0, -850.0, -250.0
MARROW, COMPACT_BONE, DISC, CANAL = 170.0, 420.0, 85.0, 30.0
LOWEST, HIGHEST = -1024.0, 3071.0
CORTEX_MM, SINUS_MM = 7.0, 13.0
DISC_EVERY_MM, DISC_SHARE = 36.0, 0.2
RIB_EVERY_MM = 30.0


@dataclass(frozen=True)
class _Phase:
    """HU in this patient."""

    cortex: float
    medulla: float
    aorta: float
    cava: float
    liver: float
    spleen: float


class _Canvas:
    """The image being painted, and the patient's coordinates in it. Lengths in mm, order: feet, back, left."""

    def __init__(self, anatomy: Anatomy, generator: np.random.Generator) -> None:
        self.anatomy, self.grid, self.body, self.generator = anatomy, anatomy.grid, anatomy.body, generator
        self.down, self.back, self.left = self.body.coordinates(self.grid, self.grid.whole())
        self.image = np.full(self.grid.shape, AIR, dtype=np.float32)
        self.in_cavity = wall_level(self.body, self.back, self.left, WALL_MM) < 1

    def field(self, box: Box, scale_mm: float) -> np.ndarray:
        return field_in(self.grid, box, scale_mm, self.generator)

    def blob(self, middle: tuple[float, float, float], half: tuple[float, float, float], hu: float) -> None:
        """An uneven ellipsoid, as far as it lies in the cavity."""
        box = self.body.box_around(self.grid, np.array(middle), 1.3 * max(half))
        axes = self.body.coordinates(self.grid, box)
        level = sum(((axis - at) / length) ** 2 for axis, at, length in zip(axes, middle, half, strict=True))
        inside = (level < 1 + 0.25 * self.field(box, 35.0)) & self.in_cavity[box]
        np.copyto(self.image[box], hu + 3 * self.field(box, 25.0), where=inside)

    def column(self, back: float, left: float, half: tuple[float, float], hu: float | np.ndarray) -> None:
        """An upright elliptic column through all slices, under the fat of the skin; ``hu`` may differ by slice."""
        reach = self.grid.shape[0] * self.grid.spacing_mm[0] / 2
        ends = [self.body.box_around(self.grid, np.array([end, back, left]), max(half)) for end in (-reach, reach)]
        rows, columns = (
            slice(min(box[axis].start for box in ends), max(box[axis].stop for box in ends)) for axis in (1, 2)
        )
        box = (slice(0, self.grid.shape[0]), rows, columns)
        _, backs, lefts = self.body.coordinates(self.grid, box)
        inside = ((backs - back) / half[0]) ** 2 + ((lefts - left) / half[1]) ** 2 < 1
        inside &= wall_level(self.body, backs, lefts, 0) < 1
        np.copyto(self.image[box], np.asarray(hu, dtype=np.float32), where=inside)


def draw_scan(anatomy: Anatomy, site: CtSite, generator: np.random.Generator) -> np.ndarray:
    """Image (float32, whole HU, -1024 to 3071) of the patient as the site's scanner shows it."""
    phase = _draw_phase(site, generator)
    canvas = _Canvas(anatomy, generator)
    _paint_wall(canvas)
    _paint_bowel(canvas)
    _paint_liver_and_spleen(canvas, phase)
    margin_mm = SINUS_MM + 2
    down, back, left = (int(np.ceil(margin_mm / spacing)) for spacing in anatomy.grid.spacing_mm)
    box = box_of(anatomy.instances > 0, (down, back, left))
    outside = ndimage.distance_transform_edt(anatomy.instances[box] == 0, sampling=anatomy.grid.spacing_mm)
    outside = outside.astype(np.float32)
    _paint_renal_fat(canvas, box, outside)
    _paint_spine_and_muscles(canvas)
    _paint_vessels(canvas, phase)
    _paint_kidneys(canvas, box, outside, phase)
    _paint_masses(canvas, phase)
    return _scanned(canvas, site)


def _draw_phase(site: CtSite, generator: np.random.Generator) -> _Phase:
    """The site's phase, hit more or less well."""
    cortex, difference, aorta, liver, spleen = site.phase
    cortex += generator.normal(0, 12)
    aorta = max(60.0, aorta + generator.normal(0, 18))
    return _Phase(
        cortex=cortex,
        medulla=cortex - max(0.0, difference + generator.normal(0, 8)),
        aorta=aorta,
        cava=0.4 * aorta + 0.6 * liver,
        liver=liver + generator.normal(0, 10) - 40 * float(generator.random() < 0.12),  # some livers are fatty
        spleen=spleen + generator.normal(0, 8),
    )


def _paint_wall(canvas: _Canvas) -> None:
    """Table, skin, fat, muscle, and ribs that run forwards and down in the upper half."""
    image, body, back, left = canvas.image, canvas.body, canvas.back, canvas.left
    above_table = back - (body.half_mm[0] + 5) + left**2 / 1400
    np.copyto(image, TABLE, where=(above_table > 0) & (above_table < 9) & (np.abs(left) < 210))
    uneven = 1 + 0.04 * canvas.field(canvas.grid.whole(), 90.0)
    skin = ((back / body.half_mm[0]) ** 2 + (left / body.half_mm[1]) ** 2) * uneven
    np.copyto(image, FAT, where=skin < 1)
    np.copyto(image, 10.0, where=(skin < 1) & (skin > 0.97))
    np.copyto(image, MUSCLE, where=(wall_level(body, back, left, 0) * uneven < 1) & (skin < 1))
    ring = (wall_level(body, back, left, 2) < 1) & ~canvas.in_cavity
    from_behind = np.arctan2(np.abs(left), back)
    slant = canvas.down - 34 * from_behind + canvas.generator.uniform(0, RIB_EVERY_MM)
    ribs = np.cos(2 * np.pi / RIB_EVERY_MM * slant)
    np.copyto(image, COMPACT_BONE - 150, where=ring & (ribs > 0.75) & (canvas.down < 75 - 45 * from_behind))


def _paint_bowel(canvas: _Canvas) -> None:
    """Fat, and in it loops of bowel; they hold gas in front and, in some patients, contrast medium."""
    generator, whole = canvas.generator, canvas.grid.whole()
    loops = canvas.field(whole, 16.0) - np.clip(canvas.back / 25, -0.3, 3)
    contents = canvas.field(whole, 22.0)
    filling = generator.uniform(0, 330) if generator.random() < 0.45 else 0.0
    hu = BOWEL + 14 * contents + filling * (contents > 0.4)
    hu = np.where((contents < -1.1) & (canvas.back < 0) & (loops > 0.3), np.float32(GAS), hu)
    np.copyto(canvas.image, np.where(loops > -0.15, hu, np.float32(FAT)), where=canvas.in_cavity)


def _paint_liver_and_spleen(canvas: _Canvas, phase: _Phase) -> None:
    """They lie high; how much of them is in view differs between patients."""
    depth, width = canvas.body.half_mm
    low = canvas.generator.normal(-45, 18)
    canvas.blob((low, -0.12 * depth, -0.5 * width), (85, 0.62 * depth, 0.42 * width), phase.liver)
    canvas.blob((low - 10, -0.4 * depth, -0.15 * width), (50, 0.3 * depth, 0.4 * width), phase.liver)
    canvas.blob((low - 15, 0.25 * depth, 0.66 * width), (58, 0.42 * depth, 0.17 * width), phase.spleen)


def _paint_renal_fat(canvas: _Canvas, box: Box, outside: np.ndarray) -> None:
    """Round each kidney, thick here and thin there: where it is thin, the kidney touches the liver or the bowel."""
    thickness = 8 + 5 * canvas.field(box, 30.0)
    np.copyto(canvas.image[box], np.float32(FAT), where=(outside < thickness) & canvas.in_cavity[box])


def _paint_spine_and_muscles(canvas: _Canvas) -> None:
    spine = SPINE * canvas.body.half_mm[0]
    wide = VERTEBRA_MM[1]
    for side in (-1, 1):
        canvas.column(spine - 2, side * (wide + 13), (19, 15), MUSCLE + 5)  # psoas
        canvas.column(spine + 42, side * 33, (18, 27), MUSCLE)
        canvas.column(spine + 22, side * (wide + 8), (5, 16), MARROW + 60)  # transverse process
    where = (canvas.down[:, 0, 0] + canvas.generator.uniform(0, DISC_EVERY_MM)) / DISC_EVERY_MM % 1
    is_disc = (where < DISC_SHARE)[:, None, None]
    canvas.column(spine, 0, VERTEBRA_MM, np.where(is_disc, DISC, COMPACT_BONE - 120))
    canvas.column(spine, 0, (VERTEBRA_MM[0] - 3, wide - 3), np.where(is_disc, DISC, MARROW))
    canvas.column(spine + 26, 0, (14, 15), COMPACT_BONE - 80)
    canvas.column(spine + 44, 0, (14, 4), COMPACT_BONE - 80)
    canvas.column(spine + 25, 0, (8, 10), CANAL)


def _paint_vessels(canvas: _Canvas, phase: _Phase) -> None:
    """Aorta and vena cava before the spine, and a vessel from each kidney to them."""
    front = SPINE * canvas.body.half_mm[0] - VERTEBRA_MM[0] - 11
    for kind, number in zip(canvas.anatomy.kinds, range(1, 256), strict=False):
        if kind == "kidney":
            _paint_renal_vessel(canvas, canvas.anatomy.instances == number, front, phase)
    canvas.column(front, 11, (10, 10), phase.aorta)
    canvas.column(front - 1, -15, (9, 13), phase.cava)


def _paint_renal_vessel(canvas: _Canvas, kidney: np.ndarray, front: float, phase: _Phase) -> None:
    rows = [axis[tuple(at if length > 1 else 0 * at for at, length in zip(np.nonzero(kidney), axis.shape, strict=True))]
            for axis in (canvas.down, canvas.back, canvas.left)]  # fmt: skip
    down, back, left = (float(row.mean()) for row in rows)
    share = canvas.left / left  # 0 at the spine, 1 in the middle of the kidney
    for shift, hu in ((-4.0, phase.aorta), (5.0, phase.cava)):
        away = (canvas.down - down - shift) ** 2 + (canvas.back - front - share * (back - front)) ** 2
        np.copyto(canvas.image, np.float32(hu), where=(away < 5.0**2) & (share > 0) & (share < 1))


def _paint_kidneys(canvas: _Canvas, box: Box, outside: np.ndarray, phase: _Phase) -> None:
    """Cortex outside, pyramids of medulla inside; in the sinus fat, vessels and urine.

    Depth is counted from the outline with the sinus filled in: it has no cortex.
    """
    spacing = canvas.grid.spacing_mm
    depth = ndimage.distance_transform_edt(outside < SINUS_MM, sampling=spacing).astype(np.float32)
    depth -= np.float32(SINUS_MM)
    pattern = canvas.field(box, 8.0)
    hu = np.where((depth > CORTEX_MM) & (pattern > -0.6), np.float32(phase.medulla), np.float32(phase.cortex))
    image = canvas.image[box]
    sinus = (outside > 0) & (depth > 4)
    filling = np.where(pattern > 0.9, np.float32(canvas.generator.uniform(0, 25)), np.float32(FAT + 30))
    np.copyto(image, filling, where=sinus & (np.abs(pattern) > 0.4))
    np.copyto(image, hu + 4 * pattern, where=outside == 0)


def _paint_masses(canvas: _Canvas, phase: _Phase) -> None:
    """Tumours, whose core dies when they are large, and cysts."""
    generator, instances = canvas.generator, canvas.anatomy.instances
    for number, kind in enumerate(canvas.anatomy.kinds, start=1):
        if kind == "kidney":
            continue
        box = box_of(instances == number, (1, 1, 1))
        mask = instances[box] == number
        if kind == "cyst":
            hu = generator.uniform(0, 20) if generator.random() < 0.9 else generator.uniform(45, 75)
            np.copyto(canvas.image[box], np.float32(hu), where=mask)
            continue
        depth = ndimage.distance_transform_edt(mask, sampling=canvas.grid.spacing_mm).astype(np.float32)
        uneven = canvas.field(box, 0.4 * float(depth.max()) + 3)
        low_enhancing = generator.random() < 0.25
        hu = generator.uniform(45, 75) if low_enhancing else max(45.0, phase.cortex - generator.uniform(15, 80))
        inside = np.where(uneven > 0.8, hu - 25, hu) + 8 * uneven
        if depth.max() > 16 and generator.random() < 0.75:
            core = depth > float(depth.max()) * (generator.uniform(0.3, 0.6) + 0.2 * uneven)
            inside = np.where(core, generator.uniform(12, 38) + 5 * uneven, inside)
        np.copyto(canvas.image[box], inside, where=mask)


def _scanned(canvas: _Canvas, site: CtSite) -> np.ndarray:
    """Texture, point spread, kernel, noise, offset."""
    image, generator, whole = canvas.image, canvas.generator, canvas.grid.whole()
    image += 8 * canvas.field(whole, 4.0)
    blur, sharpening = site.kernel
    image = ndimage.gaussian_filter(image, (0.35, blur, blur), truncate=2.5)
    if sharpening > 0.02:
        image += np.float32(sharpening) * (image - ndimage.gaussian_filter(image, (0, 1.0, 1.0), truncate=2.0))
    deviation, grain = site.noise
    deviation *= generator.uniform(0.8, 1.25)
    image += np.float32(deviation) * smooth_field_3d(image.shape, (1.0, grain, grain), generator)
    image += np.float32(site.offset[0] + generator.normal(0, 2))
    return np.clip(np.rint(image, out=image), LOWEST, HIGHEST, out=image)
