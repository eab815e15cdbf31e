"""A skin lesion: what it looks like by its diagnosis, its outline, and how one image shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_adpfl.dataset_conversion.synthetic.randomness import smooth_field
from nnunet_adpfl.dataset_conversion.synthetic.skin_site import DIAGNOSES, SkinSite

HARMONICS = 9
ANGLES = np.linspace(-np.pi, np.pi, 181)
SMALLEST, LARGEST = 0.03, 0.5  # share of the image
HAND = 0.04  # of the radius: how far the traced outline lies from the one to be seen


@dataclass(frozen=True)
class Kind:
    """What a diagnosis does to a lesion. Pairs are lowest and highest value.

    Attributes:
        irregularity: of the outline; 0 is an ellipse.
        melanin, blood: optical densities, brown and red.
        patches: number of darker and paler areas inside.
        network: strength of the reticular texture.
    """

    irregularity: tuple[float, float]
    melanin: tuple[float, float]
    blood: tuple[float, float]
    patches: tuple[int, int]
    network: float


KINDS: Mapping[str, Kind] = {
    "akiec": Kind((0.15, 0.35), (0.05, 0.3), (0.35, 0.7), (2, 5), 0.1),
    "bcc": Kind((0.12, 0.3), (0.1, 0.4), (0.3, 0.6), (2, 5), 0.0),
    "bkl": Kind((0.15, 0.35), (0.3, 0.8), (0.0, 0.2), (2, 6), 0.25),
    "df": Kind((0.05, 0.2), (0.25, 0.55), (0.1, 0.3), (1, 2), 0.3),
    "mel": Kind((0.2, 0.45), (0.5, 1.5), (0.0, 0.4), (3, 7), 0.4),
    "nv": Kind((0.05, 0.22), (0.2, 1.0), (0.0, 0.2), (0, 3), 0.35),
    "vasc": Kind((0.05, 0.2), (0.05, 0.3), (0.8, 1.5), (1, 4), 0.0),
}


@dataclass(frozen=True)
class Lesion:
    """One lesion, the same in all its images.

    Attributes:
        area: share of the image that it usually takes.
        elongation: long over short axis.
        outline: radius at ``ANGLES`` (without the last), mean of squares 1.
        melanin, blood: densities; ``skin`` those of the skin round it.
        border: width of its soft border, in shares of the image height.
    """

    diagnosis: str
    area: float
    elongation: float
    outline: np.ndarray
    melanin: float
    blood: float
    skin: tuple[float, float]
    patches: int
    network: float
    border: float


def draw_lesion(site: SkinSite, generator: np.random.Generator) -> Lesion:
    diagnosis = str(generator.choice(DIAGNOSES, p=site.diagnoses))
    kind = KINDS[diagnosis]
    median, deviation, _ = site.lesion_size
    order = np.arange(1, HARMONICS + 1)
    amplitudes = generator.uniform(*kind.irregularity) * generator.standard_normal(HARMONICS) / order**1.1
    phases = generator.uniform(0, 2 * np.pi, HARMONICS)
    waves = amplitudes * np.cos(ANGLES[:-1, None] * order + phases)
    outline = np.clip(1 + waves.sum(axis=1), 0.35, 2.0)
    return Lesion(
        diagnosis=diagnosis,
        area=float(np.clip(median * np.exp(deviation * generator.standard_normal()), SMALLEST, LARGEST)),
        elongation=generator.uniform(1.0, 1.7),
        outline=outline / np.sqrt((outline**2).mean()),
        melanin=generator.uniform(*kind.melanin) * site.pigment[0],
        blood=generator.uniform(*kind.blood) * site.pigment[0],
        skin=(max(0.0, site.skin[0] + generator.normal(0, 0.05)), max(0.0, site.skin[1] + generator.normal(0, 0.06))),
        patches=int(generator.integers(kind.patches[0], kind.patches[1] + 1)),
        network=kind.network * generator.uniform(0.3, 1.0),
        border=generator.uniform(0.004, 0.03),
    )


def levels_in_view(
    lesion: Lesion, site: SkinSite, size: tuple[int, int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The lesion placed, turned and magnified for one image: 0 in its middle, 1 on its outline, more outside.

    Twice: by the outline that the mask has, and by the one that the picture shows. They differ as the hand that traced
    the mask was off: by a few per cent of the radius. Without that, a network would soon agree with the mask to the
    pixel, which no two dermatologists do.
    """
    height, width = size
    aspect = width / height
    area = float(np.clip(lesion.area * generator.uniform(0.75, 1.35), SMALLEST, LARGEST))
    radius = np.sqrt(area * aspect / np.pi)
    # The larger the lesion, the less room there is to move it; a part may still be cut off by the edge.
    room = np.maximum(0.06, np.array([0.5, 0.5 * aspect]) - 0.8 * radius) * site.lesion_size[2]
    middle = generator.uniform(-room, room)
    turn = generator.uniform(0, 2 * np.pi)
    rows = ((np.arange(height) + 0.5) / height - 0.5 - middle[0])[:, None]
    columns = (((np.arange(width) + 0.5) / width - 0.5) * aspect - middle[1])[None]
    stretch = np.sqrt(lesion.elongation)
    along = (np.cos(turn) * columns + np.sin(turn) * rows) / stretch
    across = (np.cos(turn) * rows - np.sin(turn) * columns) * stretch
    border = np.interp(np.arctan2(across, along), ANGLES, np.append(lesion.outline, lesion.outline[0]))
    traced = (np.hypot(along, across) / (radius * border)).astype(np.float32)
    off = 1 + HAND * generator.standard_normal() + HAND * smooth_field(size, 0.35 * height, generator)
    return traced, traced * np.maximum(off, 0.7)
