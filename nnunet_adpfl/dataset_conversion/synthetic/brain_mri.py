"""Four MRI channels made from maps of tissue and tumour: contrast, texture, then coil, slices, noise and scale.

Faint oedema, white matter lesions of old age, enhancing vessels and the coil's shading see to it that no threshold on
one channel finds the tumour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_adpfl.dataset_conversion.synthetic.brain import Brain, BrainGrid
from nnunet_adpfl.dataset_conversion.synthetic.glioma import ET, NETC, RC, SNFH, Depths
from nnunet_adpfl.dataset_conversion.synthetic.mri_site import CHANNELS, MriSite

# Mean intensity of white matter, grey matter and fluid.
TISSUES: Mapping[str, tuple[float, float, float]] = {
    "t1c": (112.0, 88.0, 36.0), "t1n": (110.0, 85.0, 35.0), "t2f": (75.0, 100.0, 30.0), "t2w": (70.0, 95.0, 190.0),
}  # fmt: skip
TUMOUR: Mapping[str, Mapping[int, float]] = {
    "t1c": {NETC: 62.0, SNFH: 76.0, ET: 170.0, RC: 42.0},
    "t1n": {NETC: 60.0, SNFH: 75.0, ET: 80.0, RC: 40.0},
    "t2f": {NETC: 120.0, SNFH: 160.0, ET: 130.0, RC: 35.0},
    "t2w": {NETC: 160.0, SNFH: 150.0, ET: 130.0, RC: 185.0},
}
OLD_AGE: Mapping[str, float] = {"t1c": -14.0, "t1n": -15.0, "t2f": 75.0, "t2w": 55.0}  # added by a white matter lesion
VESSELS = 95.0  # added to t1c by contrast medium
RELATIVE = {"t1c": "t1n", "t1n": "t1c", "t2f": "t2w", "t2w": "t2f"}  # stands in for a missing channel
WHITE = 110.0  # noise is a share of it
SLICE_TO_DEVIATION = 1 / 2.355  # a slice profile is about a bell as wide as the slice is thick
POINT_SPREAD_MM = 0.8
BIAS_SCALE_MM = 110.0
STEP = 1 / 16  # intensities are multiples of it (before the gain), as scanners write integers


@dataclass(frozen=True)
class Scanner:
    """What the table says of the scan, and what it does to it."""

    manufacturer: str
    field_tesla: float

    def noise(self, site: MriSite) -> float:
        return site.noise[0] * (1.0 if self.field_tesla > 2 else 1.6)


def draw_channels(
    brain: Brain,
    depths: Depths,
    age: float,
    scanner: Scanner,
    site: MriSite,
    grid: BrainGrid,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Channel -> volume (float32), 0 outside the brain and above 0 in it."""
    seen = depths.labels(brain.mask)
    texture = 1 + 0.03 * grid.field(9.0, generator) + 0.02 * grid.field(25.0, generator)
    spots = _old_age(brain, grid, age, generator)
    vessels = brain.fluid * np.clip(grid.field(9.0, generator) - 0.6, 0, 1) * (brain.ventricle_mm < -3)
    box = _box(seen > 0)
    strength = _strength(depths, seen, site, grid, box, generator)
    # Protein in the cavity keeps FLAIR from darkening it.
    fluid_in_cavity = generator.uniform(0, 90) if generator.random() < 0.3 else 0.0
    enhancement = generator.uniform(0.6, 1.15)
    shading = grid.field(BIAS_SCALE_MM, generator)
    channels = {}
    for channel in CHANNELS:
        white, grey, fluid = TISSUES[channel]
        picture = white * brain.white + grey * brain.grey + fluid * brain.fluid
        picture += np.float32(OLD_AGE[channel]) * spots
        if channel == "t1c":
            picture += np.float32(VESSELS) * vessels
        means = np.array([0.0, *(TUMOUR[channel][part] for part in (NETC, SNFH, ET, RC))], dtype=np.float32)
        means[RC] += fluid_in_cavity if channel == "t2f" else 0.0
        if channel == "t1c":
            means[ET] = TUMOUR["t1n"][ET] + enhancement * (means[ET] - TUMOUR["t1n"][ET])
        inside = picture[box]
        inside += strength * (means[seen[box]] - inside)
        picture *= texture
        channels[channel] = _scanned(picture, shading, channel, brain, scanner, site, grid, generator)
    if generator.random() < site.missing[0]:
        lost = str(generator.choice(CHANNELS))
        channels[lost] = channels[RELATIVE[lost]].copy()
    gain = np.float32(np.exp(site.log_gain[0] + 0.1 * generator.standard_normal()))
    return {channel: picture * gain for channel, picture in channels.items()}


def _old_age(brain: Brain, grid: BrainGrid, age: float, generator: np.random.Generator) -> np.ndarray:
    """White matter lesions, 0 to 1: caps round the ventricles and scattered spots, more of them in the old."""
    wear = np.clip((age - 30) / 50, 0.1, 1.0) * generator.uniform(0.3, 1.3)
    caps = np.clip(1 + (brain.ventricle_mm + 1) / np.float32(2.0 + 5.0 * wear), 0, 1)
    spots = np.clip((grid.field(8.0, generator) - np.float32(2.9 - 0.9 * wear)) * 2.5, 0, 1)
    return np.clip(np.float32(0.9 * wear) * caps + spots, 0, 1) * brain.white


def _strength(
    depths: Depths,
    seen: np.ndarray,
    site: MriSite,
    grid: BrainGrid,
    box: tuple[slice, ...],
    generator: np.random.Generator,
) -> np.ndarray:
    """How much of each voxel of the box has the tumour's intensity; oedema is patchy and fades towards its border."""
    contrast = site.conspicuity[0]
    patchy = 1 + 0.22 * grid.field(10.0, generator)[box]
    oedema = generator.uniform(0.45, 0.95) * contrast * patchy * np.clip(0.4 + depths.oedema[box] / 9.0, 0.4, 1.0)
    others = min(1.1, contrast) * generator.uniform(0.8, 1.0) * (0.5 + 0.5 * patchy)
    part = seen[box]
    return np.where(part == SNFH, oedema, np.where(part > 0, others, 0)).astype(np.float32)


def _scanned(
    picture: np.ndarray,
    shading: np.ndarray,
    channel: str,
    brain: Brain,
    scanner: Scanner,
    site: MriSite,
    grid: BrainGrid,
    generator: np.random.Generator,
) -> np.ndarray:
    """Slices, gamma, shading of the coil, Rician noise; the skull's place stays exactly 0."""
    slices = site.flair_slices_mm if channel == "t2f" else site.other_slices_mm
    picture = _blurred(picture, slices, grid)
    values = picture[brain.mask]
    gamma = site.gamma[CHANNELS.index(channel)] * generator.uniform(0.95, 1.05)
    values = 100 * (np.clip(values, 1, None) / 100) ** np.float32(gamma)
    bias = site.bias[0] * generator.uniform(0.6, 1.4)
    values *= np.exp(np.float32(bias) * shading[brain.mask])
    sd = np.float32(WHITE * scanner.noise(site) * generator.uniform(0.7, 1.3))
    noise = sd * generator.standard_normal((2, len(values)), dtype=np.float32)
    values = np.hypot(values + noise[0], noise[1])
    result = np.zeros(brain.mask.shape, dtype=np.float32)
    result[brain.mask] = np.maximum(np.round(values / STEP), 1) * np.float32(STEP)
    return result


def _blurred(picture: np.ndarray, slices_mm: tuple[float, ...], grid: BrainGrid) -> np.ndarray:
    for axis, (slice_mm, spacing) in enumerate(zip(slices_mm, grid.spacing_mm, strict=True)):
        deviation = np.hypot(POINT_SPREAD_MM, slice_mm * SLICE_TO_DEVIATION) / spacing
        if deviation > 0.25:
            picture = ndimage.gaussian_filter1d(picture, deviation, axis=axis, truncate=2.5)
    return picture


def _box(where: np.ndarray) -> tuple[slice, ...]:
    return ndimage.find_objects(where.astype(np.uint8))[0]
