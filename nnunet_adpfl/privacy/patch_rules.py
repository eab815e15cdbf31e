"""The rules by which a privacy plan chooses the patches of a patient: how many, where, and how they are changed."""

from __future__ import annotations

from nnunet_adpfl.privacy.choices import DRAWS_PER_UNIT, Choice, Request, given

PATCHES = (16, 8, 4, 2)  # K to choose from
WANTED_DRAWS = DRAWS_PER_UNIT  # q T that compute shall allow with the K that is chosen
FEW_DRAWS = 100  # q T up to which nnU-Net's augmentation is left out
SLICES_WITH_FOREGROUND = 0.67  # some without, against false positives beside the organ
NNUNET_FOREGROUND = 0.33  # share of nnU-Net's patches that are centred on foreground


def patches(request: Request) -> Choice:
    """K: as many as an image holds, memory and compute allow."""
    if chosen := given(request.patches_per_unit):
        return chosen
    images = request.images
    held = min(images.patches, images.at_once) if images else PATCHES[0] if request.compute else PATCHES[-1]
    useful = [number for number in PATCHES if number <= held] or [PATCHES[-1]]
    draws = _wanted_draws(request)
    if request.compute is None:
        why = f"; an image holds {images.patches}, memory {images.at_once}" if images else ""
        return Choice(useful[0], f"steadier gradients than one patch, at no privacy cost{why}")
    paid = [number for number in useful if number * draws * request.total_units <= request.compute]
    if paid:
        return Choice(paid[0], f"steadier gradients at no privacy cost; {draws:g} draws of each patient still fit the compute")
    return Choice(PATCHES[-1], "steadier gradients than one patch at no privacy cost; more would take compute from the steps")


def _wanted_draws(request: Request) -> float:
    """q T of the whole training, as far as it is given."""
    if request.sampling_rate and request.steps:
        return request.sampling_rate * request.steps
    return WANTED_DRAWS


def foreground(request: Request) -> Choice:
    """Share of a patient's patches that are centred on foreground."""
    if chosen := given(request.oversample_foreground):
        return chosen
    images = request.images
    if images and images.covered and images.patches == 1:
        return Choice(1.0, "a patch shows the whole image")
    if images and images.covered:
        return Choice(SLICES_WITH_FOREGROUND, "a patch shows a whole slice: more with foreground, and patients agree more")
    return Choice(NNUNET_FOREGROUND, "as nnU-Net: larger images need patches without foreground too")


def mirroring(request: Request) -> Choice:
    """Whether patches are flipped."""
    if chosen := given(request.mirroring):
        return chosen
    if request.images and request.images.oriented:
        return Choice(False, "volumes lie alike in all patients, and few private steps cannot learn every orientation")
    return Choice(True, "as nnU-Net: photographs have no orientation")


def augmentation(request: Request, draws: float) -> Choice:
    """nnU-Net's, or none where a unit is drawn only a few times (``draws``: q T)."""
    if chosen := given(request.augmentation):
        return chosen
    if draws <= FEW_DRAWS:
        return Choice("none", f"a patient is drawn {draws:.0f} times, too few to be learnt by heart; patients agree more without")
    return Choice("nnunet", f"a patient is drawn {draws:.0f} times")
