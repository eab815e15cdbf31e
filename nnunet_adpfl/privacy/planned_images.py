"""What nnU-Net's plan says about the images of a configuration: all that the planner of privacy knows of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlannedImages:
    """Images of median shape, as the plan has them.

    Attributes:
        patches: that tile such an image: slices count, in 2D.
        oriented: volumes, which lie alike in all patients; a photograph may be taken from any side.
        whole: a patch covers all of the image, in 2D all of a slice.
    """

    patches: int
    oriented: bool
    whole: bool


def planned_images(plans: Mapping[str, Any], configuration: str) -> PlannedImages:
    """Of one configuration, whatever made the plan: it adds nothing that the plan does not say."""
    settings = plans["configurations"][configuration]
    patch, spacing_mm = settings["patch_size"], settings["spacing"]
    shape, from_mm = plans["original_median_shape_after_transp"], plans["original_median_spacing_after_transp"]
    axes = len(patch)
    resampled = [n * old / new for n, old, new in zip(shape[-axes:], from_mm[-axes:], spacing_mm, strict=True)]
    tiles = [max(1, math.ceil(round(size / part, 6))) for size, part in zip(resampled, patch, strict=True)]
    slices = math.prod(int(n) for n in shape[:-axes])
    return PlannedImages(slices * math.prod(tiles), int(shape[0]) > 1, max(tiles) == 1)
