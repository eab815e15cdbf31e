"""How a site's abdominal CT looks: contrast phase, dose, kernel, slices, position, tumours, who traced it, how many.

The six profiles bear the numbers of the largest real KiTS sites and have their median slice thickness and relative
sizes; all other numbers are chosen by eye, none is taken from an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_adpfl.dataset_conversion.synthetic.site_mix import mixed_site

USUAL_SLICE_MM = 3.0
FEWEST_SLICES, MOST_SLICES = 0.6, 1.6  # of those asked for
LENGTH_MM, WIDTH_MM = (150.0, 312.0), (300.0, 400.0)  # field of view: of small volumes and of those as fine as KiTS's
MADE_UP_FROM = 101  # KiTS's site numbers end at 88

Values = tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """Where the voxels lie. Axes: slices from head to foot, rows from front to back, columns from right to left."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to mm, axis codes IPL, as KiTS writes them."""
        matrix = np.zeros((4, 4))
        matrix[[2, 1, 0], [0, 1, 2]] = [-spacing for spacing in self.spacing_mm]
        matrix[3, 3] = 1
        return matrix

    def whole(self) -> tuple[slice, slice, slice]:
        """The box of all voxels."""
        first, second, third = (slice(0, length) for length in self.shape)
        return first, second, third


@dataclass(frozen=True, kw_only=True)
class CtSite:
    """Parameters of one site. Every field is a tuple, so that sites can be mixed.

    Attributes:
        phase: HU of the renal cortex, by how much the medulla is darker, HU of aorta, liver and spleen.
        noise: deviation (HU), grain (pixels).
        kernel: blur (standard deviation, pixels), sharpening (0: none).
        slices: thickness of a real slice at this site (mm); ``grid_of`` says what becomes of it.
        view: factor on the field of view, and so on the size of a pixel.
        offset: of all HU.
        tilt: of the patient on the table and of the slices (degrees).
        build: half the body's width and the fat under the skin (mm).
        tumour: median volume (ml), deviation of its logarithm.
        cysts: share of patients with one or more.
        tracing: by how many pixels the masks are too large (below 0: too small), -1 to 1.
        quantity: weight of the site's number of patients.
    """

    phase: Values = (140.0, 40.0, 170.0, 100.0, 115.0)
    noise: Values = (14.0, 1.2)
    kernel: Values = (0.65, 0.0)
    slices: Values = (USUAL_SLICE_MM,)
    view: Values = (1.0,)
    offset: Values = (0.0,)
    tilt: Values = (0.0, 0.0)
    build: Values = (165.0, 20.0)
    tumour: Values = (32.0, 0.9)
    cysts: Values = (0.4,)
    tracing: Values = (0.0,)
    quantity: Values = (1.0,)


PROFILES: Mapping[str, CtSite] = {
    "67": CtSite(  # thin slices, early arterial phase, sharp and noisy; by far the most patients
        phase=(185.0, 65.0, 290.0, 75.0, 125.0), noise=(30.0, 1.0), kernel=(0.45, 0.7), slices=(0.5,), view=(0.92,),
        offset=(4.0,), tilt=(2.0, 0.0), tumour=(30.0, 0.9), cysts=(0.35,), tracing=(0.0,), quantity=(38.0,),
    ),
    "57": CtSite(  # thick slices, nephrogenic phase: cortex and medulla nearly alike
        phase=(128.0, 8.0, 140.0, 112.0, 118.0), noise=(9.0, 1.7), kernel=(1.0, 0.0), slices=(5.0,), view=(1.1,),
        offset=(-6.0,), tilt=(-2.0, 0.0), build=(178.0, 30.0), tumour=(45.0, 0.9), cysts=(0.5,), quantity=(26.0,),
    ),
    "13": CtSite(  # thin slices, a poor bolus, masks traced too wide
        phase=(85.0, 12.0, 95.0, 70.0, 78.0), noise=(20.0, 1.2), kernel=(0.7, 0.2), slices=(1.0,), view=(0.9,),
        offset=(12.0,), tilt=(0.0, 3.0), build=(158.0, 15.0), tumour=(21.0, 0.8), cysts=(0.3,), tracing=(0.6,), quantity=(23.0,),
    ),
    "14": CtSite(  # corticomedullary phase, low dose, small patients
        phase=(160.0, 55.0, 210.0, 88.0, 122.0), noise=(28.0, 1.5), kernel=(0.85, 0.0), slices=(1.0,), view=(0.88,),
        offset=(-14.0,), tilt=(5.0, 0.0), build=(148.0, 12.0), tumour=(26.0, 0.9), cysts=(0.45,), quantity=(20.0,),
    ),
    "55": CtSite(  # portal venous, hard edges, masks traced tightly
        phase=(150.0, 25.0, 165.0, 115.0, 130.0), noise=(12.0, 1.0), kernel=(0.5, 0.4), slices=(3.0,), view=(1.0,),
        offset=(14.0,), tilt=(-5.0, -3.0), tumour=(35.0, 0.9), cysts=(0.38,), tracing=(-0.4,), quantity=(16.0,),
    ),
    "7": CtSite(  # old scanner: thick, blurred, large field of view, large tumours
        phase=(112.0, 30.0, 130.0, 95.0, 105.0), noise=(16.0, 1.8), kernel=(1.05, 0.0), slices=(5.0,), view=(1.15,),
        offset=(-10.0,), tilt=(0.0, -4.0), build=(172.0, 25.0), tumour=(52.0, 1.0), cysts=(0.48,), quantity=(20.0,),
    ),
}  # fmt: skip


def ct_sites(number: int, heterogeneity: float, seed: int) -> dict[str, CtSite]:
    """Name -> parameters of ``number`` sites: the six largest of KiTS, then made-up ones between them.

    Args:
        heterogeneity: 0: all sites look and are alike, 1: as far apart as the profiles are.
    """
    names = [*PROFILES, *(str(MADE_UP_FROM + index) for index in range(number))][:number]
    return {name: mixed_site(CtSite(), PROFILES, name, heterogeneity, seed) for name in names}


def grid_of(site: CtSite, size: tuple[int, int, int], zoom: float = 1.0) -> Grid:
    """The site's grid for the ``size`` asked for: the field of view stays, thinner slices are more slices.

    A volume of 104 x 512 x 512 or more shows 312 x 400 x 400 mm, as in KiTS. In a small one nearly all voxels would go
    to surroundings; it shows 150 x 300 x 300 mm: both kidneys, the body to its flanks, pixels of 4.7 mm at 64 x 64, a
    kidney 11 to 13 pixels wide. The site, and for each patient ``zoom``, multiply the width; the site's slice thickness
    sets how many slices share the length, 0.6 to 1.6 times those asked for.
    """
    depth, rows, columns = size
    length = float(np.clip(USUAL_SLICE_MM * depth, *LENGTH_MM))
    number = round(depth * float(np.clip(USUAL_SLICE_MM / site.slices[0], FEWEST_SLICES, MOST_SLICES)))
    side = max(rows, columns)
    pixel = float(np.clip(0.78 * side, *WIDTH_MM)) / side * site.view[0] * zoom
    return Grid((number, rows, columns), (length / number, pixel, pixel))
