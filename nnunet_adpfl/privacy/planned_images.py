"""What nnU-Net's plan says about the images of a configuration: all that the planner of privacy knows of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_adpfl.errors import InputError


@dataclass(frozen=True)
class PlannedImages:
    """Images of median shape, as the plan has them.

    Attributes:
        patches: that tile such an image: slices count, in 2D.
        oriented: volumes, which lie alike in all patients; a photograph may be taken from any side.
        covered: a patch covers all of a plane (2D) or of the volume (3D).
        at_once: patches that nnU-Net planned to fit into memory together (its batch size).
    """

    patches: int
    oriented: bool
    covered: bool
    at_once: int


def planned_images(plans: Mapping[str, Any], settings: Mapping[str, Any]) -> PlannedImages:
    """Of one configuration, whatever made the plan: it adds nothing that the plan does not say.

    Args:
        settings: of the configuration, with what it inherits.

    Raises InputError where the plan does not say it.
    """
    try:
        patch, spacing_mm, at_once = settings["patch_size"], settings["spacing"], int(settings["batch_size"])
        shape, from_mm = plans["original_median_shape_after_transp"], plans["original_median_spacing_after_transp"]
        axes = len(patch)
        resampled = [n * old / new for n, old, new in zip(shape[-axes:], from_mm[-axes:], spacing_mm, strict=True)]
        tiles = [max(1, math.ceil(round(size / part, 6))) for size, part in zip(resampled, patch, strict=True)]
        slices = math.prod(int(n) for n in shape[:-axes])
        return PlannedImages(slices * math.prod(tiles), int(shape[0]) > 1, max(tiles) == 1, at_once)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"the nnU-Net plan does not say how large images and patches are ({error!r}): make it with nnU-Net 2") from None
