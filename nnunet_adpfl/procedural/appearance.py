"""How a scene looks: contrasts, textures, shading, blur, noise and the edge of the field of view, all at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_adpfl.procedural import shapes
from nnunet_adpfl.procedural.fields import Field, Space, direction, log_uniform, smooth_noise
from nnunet_adpfl.procedural.scenes import Layer, Role, Scene

_TEXTURES = 3
_CONTRASTS = {  # against what is behind, where the contrast of labelled bodies is about 1
    Role.SURROUNDINGS: (0.1, 1.0),
    Role.CLUTTER: (0.1, 0.8),
    Role.BODY: (0.5, 2.0),
    Role.PART: (0.2, 1.2),
    Role.OVERLAY: (0.3, 1.5),
}
_SAME_LOOK = 0.3  # of parts: told by their place alone


@dataclass(frozen=True)
class _Style:
    """What all layers of a patch have in common.

    Attributes:
        alike: 1: channels show the same (colours), 0: each has contrasts of its own (sequences).
        textures: (kinds, *shape), deviation 1.
        roughness: deviation of textures.
        softness: width of the edges, in mean sides.
    """

    alike: float
    textures: np.ndarray
    roughness: float
    softness: float


def paint(random: np.random.Generator, scene: Scene, channels: int) -> np.ndarray:
    """The image of a scene, (channels, *shape) float32; mean 0 and deviation 1 up to a random gain and offset.

    Outside the field of view, where there is one, the scene's labels are removed.
    """
    space = scene.space
    style = _Style(
        alike=1.0 if random.random() < 0.4 else random.random(),
        textures=np.stack([_texture(random, space) for _ in range(_TEXTURES)]),
        roughness=log_uniform(random, 0.03, 0.35),
        softness=log_uniform(random, 0.3, 4.0) * space.voxel,
    )
    image = np.zeros((channels, *space.shape), np.float32) + _roughness(random, style, channels)
    looks: dict[int, np.ndarray] = {}
    for layer in scene.layers:
        _paint_layer(random, image, layer, style, looks)
    _shade(random, image, space)
    _blur_and_noise(random, image, space)
    if random.random() < 0.15:
        _cut_view(random, image, scene)
    return _normalised(random, image)


def _paint_layer(random: np.random.Generator, image: np.ndarray, layer: Layer, style: _Style, looks: dict[int, np.ndarray]) -> None:
    """Blend a layer in; its contrast counts from what lies behind it."""
    softness = style.softness * (random.uniform(0.5, 2.0) if layer.role is not Role.OVERLAY else 0.2)
    opacity = np.clip(0.5 + layer.level / np.float32(softness), 0, 1)
    weight = float(opacity.sum())
    if weight == 0:
        return
    channels = len(image)
    behind = (image * opacity).reshape(channels, -1).sum(1) / weight
    contrast = _contrast(random, layer.role, channels, style.alike)
    if layer.role is Role.BODY:
        contrast = looks.setdefault(layer.family, contrast) if random.random() < 0.8 else contrast
    elif layer.role is Role.PART and random.random() < _SAME_LOOK:
        return
    opacity *= np.float32(random.uniform(0.6, 1.0))
    look = _column(behind + contrast, image.ndim) + _roughness(random, style, channels)
    image += (look - image) * opacity


def _contrast(random: np.random.Generator, role: Role, channels: int, alike: float) -> np.ndarray:
    """Brighter or darker in each channel; the strongest channel has the full contrast."""
    vector = alike * random.choice([-1.0, 1.0]) * random.uniform(0.5, 1.0, channels) + (1 - alike) * random.standard_normal(channels)
    return np.asarray(vector / max(np.abs(vector).max(), 1e-6) * log_uniform(random, *_CONTRASTS[role]))


def _roughness(random: np.random.Generator, style: _Style, channels: int) -> np.ndarray:
    """Texture of one layer, (channels, *shape), mixed from those of the patch."""
    shared, own = random.standard_normal(_TEXTURES), random.standard_normal((channels, _TEXTURES))
    mixture = style.alike * shared + (1 - style.alike) * own
    mixture *= style.roughness * random.uniform(0.2, 1.5) / np.maximum(np.linalg.norm(mixture, axis=1, keepdims=True), 1e-6)
    return np.asarray(np.tensordot(mixture.astype(np.float32), style.textures, axes=1))


def _texture(random: np.random.Generator, space: Space) -> Field:
    """Coloured noise, or stripes that bend."""
    if random.random() < 0.8:
        return smooth_noise(random, space, log_uniform(random, 1.5 * space.voxel, 0.5))
    wavelength = log_uniform(random, 4 * space.voxel, 0.4)
    along = np.tensordot(direction(random, space.dims), space.points, axes=1)
    along = along + wavelength * random.uniform(0, 0.6) * smooth_noise(random, space, random.uniform(0.2, 0.8))
    return np.asarray(1.4 * np.sin(2 * np.pi / wavelength * along), dtype=np.float32)


def _shade(random: np.random.Generator, image: np.ndarray, space: Space) -> None:
    """Bias field, a gradient across the patch, a vignette: shared by the channels up to a factor."""
    shade = np.zeros(space.shape, np.float32)
    if random.random() < 0.5:
        shade += random.uniform(0.1, 0.5) * smooth_noise(random, space, random.uniform(0.6, 1.5))
    if random.random() < 0.4:
        shade += random.uniform(0.1, 1.2) * np.tensordot(direction(random, space.dims), space.points, axes=1)
    if random.random() < 0.2:
        shade -= random.uniform(0.2, 1.0) * (space.points**2).sum(0)
    for channel in image:
        channel += np.float32(random.uniform(0.5, 1.0)) * shade
        if random.random() < 0.3:  # a multiplicative field, and a bent intensity scale
            channel *= np.exp(np.float32(0.5) * shade)
        if random.random() < 0.3:
            np.copyto(channel, np.sign(channel) * np.abs(channel) ** np.float32(random.uniform(0.6, 1.6)))


def _blur_and_noise(random: np.random.Generator, image: np.ndarray, space: Space) -> None:
    sigma = random.uniform(0.4, 1.5) if random.random() < 0.3 else 0.0
    noise = log_uniform(random, 0.02, 0.3)
    for channel in image:
        if sigma:
            ndimage.gaussian_filter(channel, sigma, output=channel, truncate=2.5)
        grain = smooth_noise(random, space, 2 * space.voxel) if random.random() < 0.2 else random.standard_normal(space.shape, np.float32)
        channel += np.float32(noise * random.uniform(0.5, 1.5)) * grain


def _cut_view(random: np.random.Generator, image: np.ndarray, scene: Scene) -> None:
    """Nothing is seen beyond a circle, or beyond a plane near the edge."""
    space = scene.space
    if random.random() < 0.5:
        outside = shapes.compact(random, space, space.points, random.uniform(0.5, 0.8), random.normal(0, 0.05, space.dims)) < 0
    else:
        outside = np.tensordot(direction(random, space.dims), space.points, axes=1) > random.uniform(0.2, 0.5)
    low, high = float(image.min()), float(image.max())
    value = low if random.random() < 0.7 else random.uniform(low, high)
    image[:, outside] = value
    scene.labels[outside] = 0


def _normalised(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, image.ndim))
    image -= image.mean(axes, keepdims=True)
    image /= np.maximum(image.std(axes, keepdims=True), np.float32(1e-3))
    wide = 2.5 if random.random() < 0.25 else 1.0  # a patch is part of a normalised image, and CT is scaled by its labels
    gain = np.exp(random.normal(0, 0.2 * wide) + random.normal(0, 0.1, len(image)))
    offset = random.normal(0, 0.25 * wide) + random.normal(0, 0.1, len(image))
    return np.asarray(image * _column(gain, image.ndim) + _column(offset, image.ndim), dtype=np.float32)


def _column(values: np.ndarray, ndim: int) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).reshape(-1, *[1] * (ndim - 1))
