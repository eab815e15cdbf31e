"""How a site's brain MRI looks: scanners, coil, noise, slices, its patients' tumours, who traced them and how many.

The five sites bear the names of those in BraTS 2024; their numbers are chosen by eye, none is taken from an image. What
is known of the real ones (two scans a patient at UCSF, up to five in Missouri) set the tendency to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnunet_adpfl.dataset_conversion.synthetic.site_mix import mixed_site

CHANNELS = ("t1c", "t1n", "t2f", "t2w")
MANUFACTURERS = ("GE", "Siemens", "Philips")

Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MriSite:
    """Parameters of one site. Every field is a tuple, so that sites can be mixed.

    Attributes:
        log_gain: natural logarithm of the factor on all intensities; 0 to 3.7 are factors of 1 to 40.
        gamma: of each of ``CHANNELS``.
        bias: deviation of the coil's shading, as a share of the intensity.
        noise: deviation at 3 T, as a share of white matter's mean in T1.
        flair_slices_mm: thickness of the slices of T2-FLAIR along x, y, z; 0: acquired in 3D.
        other_slices_mm: the same for the other channels.
        missing: chance that one channel of a scan is a copy of its nearest relative.
        lesion: median radius of the oedema (mm), deviation of its logarithm.
        conspicuity: factor on the tumour's contrast to the brain.
        prevalence: share of patients with a cavity (at the first scan), with enhancing and with necrotic tissue.
        tracing_mm: by how much the masks are too large (below 0: too small).
        manufacturers: shares of ``MANUFACTURERS``.
        high_field: share of scans at 3 T; the others are at 1.5 T and noisier.
        age: mean age in years; older brains have larger ventricles and more white matter lesions.
        quantity: weight of the site's number of patients.
        repeats: tendency to scan a patient several times.
    """

    log_gain: Values = (2.0,)
    gamma: Values = (1.0, 1.0, 1.0, 1.0)
    bias: Values = (0.1,)
    noise: Values = (0.03,)
    flair_slices_mm: Values = (0.0, 0.0, 3.0)
    other_slices_mm: Values = (0.0, 0.0, 1.0)
    missing: Values = (0.02,)
    lesion: Values = (25.0, 0.28)
    conspicuity: Values = (1.0,)
    prevalence: Values = (0.77, 0.83, 0.5)
    tracing_mm: Values = (0.0,)
    manufacturers: Values = (0.4, 0.4, 0.2)
    high_field: Values = (0.7,)
    age: Values = (56.0,)
    quantity: Values = (1.0,)
    repeats: Values = (0.0,)


PROFILES: Mapping[str, MriSite] = {
    "Duke": MriSite(  # mixed fleet, 2D FLAIR, large tumours traced too wide
        log_gain=(1.1,), gamma=(1.15, 1.1, 0.85, 1.0), bias=(0.18,), noise=(0.04,), flair_slices_mm=(0.0, 0.0, 5.0),
        other_slices_mm=(0.0, 0.0, 2.0), missing=(0.03,), lesion=(31.0, 0.3), conspicuity=(0.95,), prevalence=(0.8, 0.92, 0.65),
        tracing_mm=(1.1,), manufacturers=(0.5, 0.45, 0.05), high_field=(0.6,), age=(58.0,), quantity=(90.0,), repeats=(-0.2,),
    ),
    "Indiana": MriSite(  # old 1.5 T scanners: noisy, shaded, thick sagittal FLAIR, channels missing
        log_gain=(0.1,), gamma=(1.35, 1.3, 1.2, 1.25), bias=(0.3,), noise=(0.06,), flair_slices_mm=(5.0, 0.0, 0.0),
        other_slices_mm=(0.0, 0.0, 4.0), missing=(0.09,), lesion=(22.0, 0.35), conspicuity=(0.8,), prevalence=(0.55, 0.7, 0.35),
        tracing_mm=(-0.5,), manufacturers=(0.1, 0.7, 0.2), high_field=(0.15,), age=(63.0,), quantity=(45.0,), repeats=(-0.8,),
    ),
    "Missouri": MriSite(  # many follow-ups after wide resections
        log_gain=(2.7,), gamma=(0.9, 1.0, 1.25, 1.15), bias=(0.12,), noise=(0.035,), flair_slices_mm=(0.0, 0.0, 4.0),
        other_slices_mm=(0.0, 0.0, 1.0), missing=(0.02,), lesion=(27.0, 0.25), conspicuity=(1.1,), prevalence=(0.92, 0.88, 0.6),
        tracing_mm=(0.4,), manufacturers=(0.0, 0.9, 0.1), high_field=(0.65,), age=(61.0,), quantity=(200.0,), repeats=(0.9,),
    ),
    "UCSD": MriSite(  # 3D, flat, few necroses, masks traced tightly
        log_gain=(3.6,), gamma=(0.75, 0.8, 0.95, 0.75), bias=(0.05,), noise=(0.02,), flair_slices_mm=(0.0, 0.0, 0.0),
        other_slices_mm=(0.0, 0.0, 0.0), missing=(0.0,), lesion=(20.0, 0.3), conspicuity=(0.85,), prevalence=(0.72, 0.75, 0.3),
        tracing_mm=(-0.8,), manufacturers=(0.95, 0.05, 0.0), high_field=(0.95,), age=(54.0,), quantity=(180.0,), repeats=(-0.3,),
    ),
    "UCSF": MriSite(  # one 3 T protocol, strong contrast, low-grade gliomas and cavities; the most patients
        log_gain=(1.9,), gamma=(1.0, 0.9, 0.75, 0.9), bias=(0.08,), noise=(0.02,), flair_slices_mm=(0.0, 0.0, 0.0),
        other_slices_mm=(0.0, 0.0, 1.5), missing=(0.0,), lesion=(24.0, 0.25), conspicuity=(1.2,), prevalence=(0.9, 0.68, 0.4),
        tracing_mm=(0.0,), manufacturers=(1.0, 0.0, 0.0), high_field=(1.0,), age=(48.0,), quantity=(290.0,), repeats=(0.3,),
    ),
}  # fmt: skip


def mri_sites(number: int, heterogeneity: float, seed: int) -> dict[str, MriSite]:
    """Name -> parameters of ``number`` sites: BraTS 2024's five, then made-up ones between them.

    Args:
        heterogeneity: 0: all sites look and are alike, 1: as far apart as the profiles are.
    """
    names = [*PROFILES, *(f"Site {index}" for index in range(len(PROFILES) + 1, number + 1))][:number]
    return {name: mixed_site(MriSite(), PROFILES, name, heterogeneity, seed, shares="manufacturers") for name in names}
