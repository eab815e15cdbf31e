"""A dermoscopic picture made from its mask: skin, pigment inside the outline, then clutter, light and camera.

Colours follow from absorption: melanin takes mostly blue, blood mostly green, so that brown, black and red lesions come
from two densities. Faint lesions, pale areas inside dark ones, freckles, hair and uneven light see to it that no
threshold on brightness finds the outline.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nnunet_adpfl.dataset_conversion.synthetic import skin_clutter
from nnunet_adpfl.dataset_conversion.synthetic.randomness import smooth_field
from nnunet_adpfl.dataset_conversion.synthetic.skin_lesion import Lesion, levels_in_view
from nnunet_adpfl.dataset_conversion.synthetic.skin_site import SkinSite

BARE_SKIN = np.array([0.95, 0.8, 0.73], dtype=np.float32)
MELANIN = np.array([0.62, 1.0, 1.32], dtype=np.float32)  # absorption of red, green, blue
BLOOD = np.array([0.15, 0.9, 0.65], dtype=np.float32)


def draw_case(
    lesion: Lesion, site: SkinSite, size: tuple[int, int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Picture (rows x columns x RGB, uint8) and mask (0 and 255) of a lesion in one of its images."""
    traced, level = levels_in_view(lesion, site, size, generator)
    melanin, blood = _skin(lesion, size, generator)
    added_melanin, added_blood = _pigment(lesion, level, generator)
    picture = BARE_SKIN * np.exp(
        -np.maximum(melanin + added_melanin, 0)[..., None] * MELANIN
        - np.maximum(blood + added_blood, 0)[..., None] * BLOOD
    )
    picture = skin_clutter.add_hair(picture, site.clutter[0], generator)
    picture = skin_clutter.add_bubbles(picture, site.clutter[1], generator)
    picture = skin_clutter.add_ruler(picture, site.clutter[2], generator)
    picture = skin_clutter.add_shading(picture, site.vignette, generator)
    return _photographed(picture, site, generator), np.where(traced < 1, 255, 0).astype(np.uint8)


def _skin(lesion: Lesion, size: tuple[int, int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Densities of the skin: blotches, skin lines, fine vessels and a few freckles."""
    height = size[0]
    lines = np.abs(smooth_field(size, 0.03 * height, generator))
    melanin = lesion.skin[0] + 0.03 * smooth_field(size, 0.35 * height, generator) - 0.018 * lines
    blood = lesion.skin[1] + 0.04 * smooth_field(size, 0.25 * height, generator)
    blood += 0.02 * smooth_field(size, 0.05 * height, generator)
    rows, columns = np.ogrid[: size[0], : size[1]]
    for _ in range(generator.poisson(1.5)):
        row, column = generator.uniform(0, 1, 2) * size
        radius = generator.uniform(0.012, 0.07) * height
        distance = np.hypot(rows - row, columns - column) / radius
        melanin = melanin + generator.uniform(0.1, 0.55) * np.exp(-(distance**3))
    return melanin, blood


def _pigment(lesion: Lesion, level: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Densities that the lesion adds; they fade over its soft border."""
    size, height = level.shape, level.shape[0]
    inside = ndimage.gaussian_filter((level < 1).astype(np.float32), lesion.border * height, truncate=3.0)
    uneven = 1 + 0.16 * smooth_field(size, 0.12 * height, generator)
    fading = generator.uniform(-0.25, 0.55)  # most lesions are darkest in the middle, some at the rim
    profile = uneven * (1 - fading * np.clip(level, 0, 1.2) ** 2)
    rows, columns = np.ogrid[:height, : size[1]]
    within = np.argwhere(level < 0.85)
    for _ in range(lesion.patches if len(within) else 0):
        row, column = within[generator.integers(len(within))]
        radius = generator.uniform(0.05, 0.16) * height
        spot = np.exp(-((np.hypot(rows - row, columns - column) / radius) ** 2.5))
        profile = profile * (1 + generator.uniform(-0.75, 0.8) * spot)
    network = np.exp(-((smooth_field(size, max(2.0, 0.025 * height), generator) / 0.5) ** 2)) - 0.45
    profile = profile + lesion.network * network
    return lesion.melanin * inside * profile, lesion.blood * inside * np.maximum(uneven, 0.2)


def _photographed(picture: np.ndarray, site: SkinSite, generator: np.random.Generator) -> np.ndarray:
    """The camera: focus, gamma, contrast, saturation, colour cast, noise."""
    blur, noise, _ = site.sharpness
    gamma, contrast, saturation = site.tone
    picture = skin_clutter.blurred(picture, blur * generator.uniform(0.5, 1.5))
    picture = np.clip(picture, 0, 1) ** (gamma * generator.uniform(0.93, 1.07))
    picture = 0.6 + contrast * (picture - 0.6)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + saturation * (picture - grey)
    picture = picture * (np.array(site.gains) * generator.normal(1, 0.015, 3)).astype(np.float32)
    picture = picture + noise * generator.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
