"""How a site's dermoscopy looks: camera, light, skin, hair, its mix of diagnoses and how many lesions it has.

The four profiles follow what is known of HAM10000's sources; numbers are chosen by eye, none is taken from an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnunet_adpfl.dataset_conversion.synthetic.site_mix import mixed_site

DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SkinSite:
    """Parameters of one site. Lengths are shares of the image height. Every field is a tuple, so that sites can be mixed.

    Attributes:
        gains: of red, green and blue: the camera's colour cast.
        tone: gamma, contrast and saturation of the camera; 1 is neutral.
        skin: melanin and redness of the skin.
        vignette: how much darker the corners are, and how much of the picture a round frame blackens there.
        clutter: mean number of hairs and of gel bubbles, chance of a ruler.
        sharpness: blur radius, deviation of the noise, JPEG quality.
        lesion_size: median share of the picture, deviation of its logarithm, how far from the middle it may lie.
        pigment: factor on the lesion's contrast to the skin.
        diagnoses: shares of ``DIAGNOSES``.
        quantity: weight of the site's number of lesions.
        repeats: tendency to take several images of a lesion.
    """

    gains: Values = (1.0, 1.0, 1.0)
    tone: Values = (1.0, 1.05, 0.9)
    skin: Values = (0.16, 0.2)
    vignette: Values = (0.2, 0.0)
    clutter: Values = (7.0, 1.5, 0.15)
    sharpness: Values = (0.004, 0.012, 88.0)
    lesion_size: Values = (0.16, 0.55, 0.95)
    pigment: Values = (1.0,)
    diagnoses: Values = (0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02)
    quantity: Values = (1.0,)
    repeats: Values = (0.0,)


PROFILES: Mapping[str, SkinSite] = {
    "rosendahl": SkinSite(  # sun-damaged skin, red, much hair, many cancers, large lesions
        gains=(1.04, 0.96, 0.96), tone=(1.05, 1.0, 1.0), skin=(0.16, 0.36), vignette=(0.15, 0.0),
        clutter=(16.0, 1.0, 0.05), sharpness=(0.003, 0.01, 92.0), lesion_size=(0.22, 0.6, 1.0), pigment=(0.9,),
        diagnoses=(0.13, 0.13, 0.22, 0.01, 0.15, 0.35, 0.01), quantity=(1552.0,), repeats=(0.2,),
    ),
    "vidir_modern": SkinSite(  # bright, polarised, sharp, strong contrast
        gains=(1.04, 1.03, 1.04), tone=(0.82, 1.15, 0.85), skin=(0.06, 0.14), vignette=(0.05, 0.0),
        clutter=(8.0, 0.5, 0.4), sharpness=(0.002, 0.008, 95.0), lesion_size=(0.15, 0.55, 0.95), pigment=(1.25,),
        diagnoses=(0.01, 0.06, 0.14, 0.02, 0.2, 0.55, 0.02), quantity=(1695.0,), repeats=(0.5,),
    ),
    "vidir_molemax": SkinSite(  # old video device: bluish grey, flat, soft, noisy; nearly only nevi, in the middle
        gains=(0.9, 0.98, 1.13), tone=(1.1, 0.8, 0.6), skin=(0.14, 0.12), vignette=(0.4, 0.0),
        clutter=(4.0, 4.0, 0.0), sharpness=(0.01, 0.02, 76.0), lesion_size=(0.1, 0.45, 0.65), pigment=(0.75,),
        diagnoses=(0.0, 0.0, 0.03, 0.01, 0.01, 0.94, 0.01), quantity=(3954.0,), repeats=(-1.0,),
    ),
    "vienna_dias": SkinSite(  # scanned slides: yellow and dark, round black frame
        gains=(1.05, 0.98, 0.8), tone=(1.2, 1.1, 0.9), skin=(0.24, 0.12), vignette=(0.65, 0.5),
        clutter=(5.0, 2.0, 0.1), sharpness=(0.006, 0.025, 84.0), lesion_size=(0.2, 0.5, 0.7), pigment=(1.05,),
        diagnoses=(0.0, 0.01, 0.02, 0.01, 0.15, 0.8, 0.01), quantity=(278.0,), repeats=(0.25,),
    ),
}  # fmt: skip


def skin_sites(number: int, heterogeneity: float, seed: int) -> dict[str, SkinSite]:
    """Name -> parameters of ``number`` sites: HAM10000's four, then made-up clinics between them.

    Args:
        heterogeneity: 0: all sites look and are alike, 1: as far apart as the profiles are.
    """
    names = [*PROFILES, *(f"clinic_{index}" for index in range(len(PROFILES) + 1, number + 1))][:number]
    return {name: mixed_site(SkinSite(), PROFILES, name, heterogeneity, seed, shares="diagnoses") for name in names}
