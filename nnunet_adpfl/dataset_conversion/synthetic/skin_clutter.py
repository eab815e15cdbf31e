"""What lies between lens and lesion: hair, gel bubbles, a ruler, a dark frame."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from nnunet_adpfl.dataset_conversion.synthetic.randomness import smooth_field

FINER = 2  # hairs are thinner than a pixel of a small image: drawn on a finer grid, then averaged


def add_hair(picture: np.ndarray, mean_number: float, generator: np.random.Generator) -> np.ndarray:
    """Curved strands that mostly lie one way; dark, now and then fair."""
    height, width = picture.shape[:2]
    number = generator.poisson(mean_number * generator.gamma(1.5, 1 / 1.5))  # most images have few, some very many
    if number == 0:
        return picture
    canvas = Image.new("L", (width * FINER, height * FINER))
    draw = ImageDraw.Draw(canvas)
    direction = generator.uniform(0, np.pi)
    for _ in range(number):
        start = generator.uniform(-0.1, 1.1, 2) * (width, height)
        angle = direction + generator.normal(0, 0.5)
        length, bend = generator.uniform(0.3, 1.1) * height, generator.normal(0, 0.6)
        steps = np.linspace(0, 1, 14)[:, None]
        headings = angle + bend * steps
        points = start + length / 14 * np.cumsum(np.hstack([np.cos(headings), np.sin(headings)]), axis=0)
        thickness = max(1, round(generator.uniform(0.003, 0.009) * height * FINER))
        draw.line(
            [tuple(point) for point in (points * FINER).tolist()],
            fill=int(generator.uniform(120, 255)),
            width=thickness,
        )
    cover = np.asarray(canvas.reduce(FINER), dtype=np.float32)[..., None] / 255
    colour = np.array([0.14, 0.1, 0.09] if generator.random() < 0.85 else [0.75, 0.6, 0.42], dtype=np.float32)
    return picture * (1 - cover) + colour * cover


def add_bubbles(picture: np.ndarray, mean_number: float, generator: np.random.Generator) -> np.ndarray:
    """Bubbles in the immersion gel: a darker ring with a bright spot to one side."""
    height, width = picture.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    light = np.zeros((height, width), dtype=np.float32)
    for _ in range(generator.poisson(mean_number)):
        radius = generator.uniform(0.015, 0.07) * height
        row, column = generator.uniform(0, 1, 2) * (height, width)
        distance = np.hypot(rows - row, columns - column) / radius
        glint = np.hypot(rows - row + 0.45 * radius, columns - column + 0.35 * radius) / radius
        light += (
            0.5 * np.exp(-((glint / 0.3) ** 2)) + 0.1 * (distance < 1) - 0.18 * np.exp(-(((distance - 1) / 0.15) ** 2))
        )
    return picture + light[..., None] * (1.05 - picture)


def add_ruler(picture: np.ndarray, chance: float, generator: np.random.Generator) -> np.ndarray:
    """Dark ticks of a scale along one edge, every fifth longer."""
    height, width = picture.shape[:2]
    if generator.random() >= chance:
        return picture
    cover = np.zeros((height, width), dtype=np.float32)
    pitch, thickness = generator.uniform(0.05, 0.09) * height, max(1, round(0.008 * height))
    for index, at in enumerate(np.arange(generator.uniform(0, pitch), width - thickness, pitch)):
        length = round((0.1 if index % 5 == 0 else 0.06) * height)
        cover[:length, round(at) : round(at) + thickness] = 0.75
    if generator.random() < 0.5:
        cover = cover[::-1]
    return picture * (1 - cover[..., None]) + 0.08 * cover[..., None]


def add_shading(picture: np.ndarray, vignette: tuple[float, ...], generator: np.random.Generator) -> np.ndarray:
    """Uneven light, corners that darken, and on some devices a round black frame."""
    height, width = picture.shape[:2]
    darkening, frame = vignette
    rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5
    columns = ((np.arange(width, dtype=np.float32)[None] + 0.5) / width - 0.5) * width / height
    slope = generator.normal(0, 0.13, 2)
    light = 1 + slope[0] * rows + slope[1] * columns + 0.04 * smooth_field((height, width), 0.5 * height, generator)
    corner = np.hypot(0.5, 0.5 * width / height)
    middle = generator.normal(0, 0.03, 2)
    distance = np.hypot(rows - middle[0], columns - middle[1]) / corner
    light *= 1 - darkening * generator.uniform(0.6, 1.2) * np.clip(distance, 0, 1.2) ** 2.5
    if generator.random() < 2 * frame:
        edge = 1.02 - 0.4 * frame * generator.uniform(0.5, 1.0)
        light *= 0.03 + 0.97 / (1 + np.exp(np.clip((distance - edge) / 0.012, -30, 30)))
    return picture * np.maximum(light, 0.02)[..., None]


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    """Out of focus by ``radius`` (share of the height)."""
    sigma = radius * picture.shape[0]
    return picture if sigma < 0.2 else ndimage.gaussian_filter(picture, (sigma, sigma, 0), truncate=3.0)
