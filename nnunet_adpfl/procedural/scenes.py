"""What there is to see in a patch: bodies with labels, and around, under and over them what has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from nnunet_adpfl.procedural import shapes
from nnunet_adpfl.procedural.families import Family
from nnunet_adpfl.procedural.fields import Field, Space, displaced, log_uniform, smooth_noise

EMPTY_SHARE = 0.07  # patches without any label, as many patches of real images are
_RADII = (0.06, 0.38)  # of bodies, in mean sides of the patch
_LEAST_RADIUS = 2.5  # voxels: smaller ones are specks, which have no label
_INNER_MISSING = 0.15


class Role(Enum):
    """What a layer is, which decides how it may look."""

    SURROUNDINGS = "surroundings"  # large bodies and clouds without label
    CLUTTER = "clutter"  # tubes, lines, specks and pale bodies without label
    BODY = "body"  # outermost part of a labelled body
    PART = "part"  # a part inside one or beside another
    OVERLAY = "overlay"  # thin lines over everything; the labels below stay


@dataclass(frozen=True)
class Layer:
    """Painted over the layers before it.

    Attributes:
        level: about the distance to its edge, positive inside.
        label: 0 for none.
        family: bodies of one family may look alike; -1 for none.
    """

    level: Field
    role: Role
    label: int = 0
    family: int = -1


@dataclass
class Scene:
    """Layers from the back to the front, and the label map that they make, int16."""

    space: Space
    layers: list[Layer] = field(default_factory=list)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.zeros(self.space.shape, np.int16)

    def add(self, level: Field, role: Role, label: int = 0, family: int = -1) -> None:
        self.layers.append(Layer(level, role, label, family))
        if role in (Role.BODY, Role.PART):
            self.labels[level > 0] = label


def draw(random: np.random.Generator, space: Space, families: Sequence[Family]) -> Scene:
    """A scene; its bodies are of the families, and bend with one displacement of the whole patch."""
    scene = Scene(space)
    points = displaced(random, space, random.uniform(0.0, 0.3))
    _add_surroundings(random, scene, points)
    for _ in range(random.integers(0, 4)):
        _add_clutter(random, scene, points)
    if random.random() >= EMPTY_SHARE:
        least = _LEAST_RADIUS * space.voxel
        radius = log_uniform(random, max(_RADII[0], 1.3 * least), _RADII[1])
        for index, family in enumerate(families):
            if index and random.random() < 0.3:
                continue
            for number in range(1 if random.random() < 0.7 else int(random.integers(2, 5))):
                size = radius * (1 if number == 0 else random.uniform(0.3, 1.0))
                _add_body(random, scene, points, family, index, max(size, least))
            radius *= random.uniform(0.5, 1.0)  # later labels tend to be smaller
    if random.random() < 0.25:
        _add_overlay(random, scene, points)
    return scene


def _add_surroundings(random: np.random.Generator, scene: Scene, points: np.ndarray) -> None:
    space = scene.space
    if random.random() < 0.4:
        centre = random.normal(0, 0.15, space.dims)
        scene.add(shapes.compact(random, space, points, random.uniform(0.45, 0.9), centre), Role.SURROUNDINGS)
    for _ in range(random.integers(0, 4)):
        scene.add(shapes.cloud(random, space), Role.SURROUNDINGS)


def _add_clutter(random: np.random.Generator, scene: Scene, points: np.ndarray) -> None:
    space, kind = scene.space, random.random()
    if kind < 0.35:
        level = shapes.tube(random, space, points, log_uniform(random, 0.01, 0.08))
    elif kind < 0.6:
        level = shapes.sheet(random, space, log_uniform(random, 0.5, 3.0) * space.voxel)
    elif kind < 0.8:  # specks, too small to be a body
        level = (smooth_noise(random, space, log_uniform(random, 2.0, 5.0) * space.voxel) - random.uniform(1.8, 2.8)) * space.voxel
    else:
        level = shapes.compact(random, space, points, log_uniform(random, 0.03, 0.25), _centre(random, space))
    scene.add(level, Role.CLUTTER)


def _add_overlay(random: np.random.Generator, scene: Scene, points: np.ndarray) -> None:
    space = scene.space
    for _ in range(random.integers(1, 5)):
        width = random.uniform(0.4, 1.2) * space.voxel
        line = shapes.tube(random, space, points, width) if random.random() < 0.5 else shapes.sheet(random, space, width)
        scene.add(line, Role.OVERLAY)


def _add_body(
    random: np.random.Generator, scene: Scene, points: np.ndarray, family: Family, index: int, radius: float
) -> None:
    """One body with the parts inside it."""
    level = shapes.compact(random, scene.space, points, radius, _centre(random, scene.space))
    for depth, labels in enumerate(family):
        if depth:
            if random.random() < _INNER_MISSING:
                return
            level = _inside(random, scene.space, points, level)
        if not (level > 0).any():
            return
        scene.add(level, Role.PART if depth else Role.BODY, labels[0], index)
        for label, part in zip(labels[1:], _cuts(random, scene.space, level, len(labels)), strict=True):
            scene.add(part, Role.PART, label, index)


def _inside(random: np.random.Generator, space: Space, points: np.ndarray, level: Field) -> Field:
    """A part within a body: a shrunken copy, a body at a random place, or islands."""
    depth, kind = float(level.max()), random.random()
    if kind < 0.35:
        noise = smooth_noise(random, space, random.uniform(0.3, 1.5) * depth + 2 * space.voxel)
        return np.asarray(level - depth * (random.uniform(0.1, 0.6) + 0.1 * noise), dtype=np.float32)
    if kind < 0.8:
        places = np.flatnonzero(level > 0.3 * depth)
        place = np.unravel_index(places[random.integers(len(places))], space.shape)
        radius = max(depth * random.uniform(0.3, 0.9), space.voxel)
        inner = shapes.compact(random, space, points, radius, points[(slice(None), *place)])
        return np.minimum(inner, level - depth * random.uniform(0.0, 0.15))
    wavelength = depth * random.uniform(0.4, 1.2) + space.voxel
    islands = (smooth_noise(random, space, wavelength) - random.uniform(0.0, 1.0)) * wavelength / 2
    return np.asarray(np.minimum(islands, level - depth * random.uniform(0.0, 0.3)), dtype=np.float32)


def _cuts(random: np.random.Generator, space: Space, level: Field, parts: int) -> list[Field]:
    """Levels of all parts but the first, when a body is cut across its longest axis, in the order of that axis."""
    if parts == 1:
        return []
    inside = level > 0
    axis = int(np.argmax([np.ptp(space.points[a][inside]) for a in range(space.dims)]))
    along = space.points[axis] + 0.1 * float(level.max()) * smooth_noise(random, space, 0.3)
    shares = np.sort(np.clip(np.arange(1, parts) / parts + random.normal(0, 0.25 / parts, parts - 1), 0.1, 0.9))
    return [np.minimum(level, along - place).astype(np.float32) for place in np.quantile(along[inside], shares)]


def _centre(random: np.random.Generator, space: Space) -> np.ndarray:
    """Near the middle more often than not: patches are cut around what is labelled."""
    share = random.uniform(-0.5, 0.5, space.dims) if random.random() < 0.25 else np.clip(random.normal(0, 0.17, space.dims), -0.5, 0.5)
    return np.asarray(share * space.extent)
