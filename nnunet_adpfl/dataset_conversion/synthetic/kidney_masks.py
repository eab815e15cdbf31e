"""Anatomy from real KiTS segmentation files that the user has: the outlines are real, the images are drawn over them.

Taken from KiTS19, 21 and 23 as they are downloaded. Nothing of an image is read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from nnunet_adpfl.dataset_conversion import nifti_case
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError
from nnunet_adpfl.dataset_conversion.synthetic.ct_site import CtSite, Grid
from nnunet_adpfl.dataset_conversion.synthetic.kidney import (
    KIDNEY_PLACE_MM,
    LABELS,
    WALL_MM,
    Anatomy,
    Body,
    box_of,
    draw_body,
    wall_level,
)
from nnunet_adpfl.errors import InputError

PATTERNS = ("case_*/segmentation.nii.gz", "case_*/aggregated_MAJ_seg.nii.gz")  # KiTS19 and 23; KiTS21
MARGIN_MM = 30.0
SIZE_VARIES = 0.07  # of the length: a mask that serves twice is not the same patient
SMALLEST_PART = 4  # voxels; smaller specks are left out, unless a label has nothing else
PARTS = 60  # instances of a label, at most


def find_masks(folder: Path) -> list[Path]:
    """All segmentation files below ``folder``, in the order of their paths.

    Raises InputError when there are none.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {folder} is no folder: give one that holds case_00000/segmentation.nii.gz")
    found = sorted(path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file())
    if not found:
        raise InputError(f"--masks {folder} holds no case_00000/segmentation.nii.gz (nor aggregated_MAJ_seg.nii.gz)")
    return found


def anatomy_of(
    path: Path, site: CtSite, spacing_mm: tuple[float, float, float], generator: np.random.Generator
) -> Anatomy:
    """The patient of a segmentation file: cropped to 30 mm round the kidneys, on the site's grid, a little scaled.

    Raises InputError, naming the file, when it cannot be read or is no segmentation of kidneys.
    """
    labels, own_mm, middle_column = _cropped(path)
    scale = 1 + SIZE_VARIES * generator.uniform(-1, 1)
    picks = []
    for length, own, new in zip(labels.shape, own_mm, spacing_mm, strict=True):
        number = max(2, round(length * own * scale / new))
        picks.append(np.minimum(((np.arange(number) + 0.5) * length / number).astype(int), length - 1))
    # Nearest neighbour; a label that falls between the new voxels keeps its middle one.
    resampled = labels[np.ix_(*picks)]
    for label in LABELS.values():
        if (labels == label).any() and not (resampled == label).any():
            at = np.median(np.argwhere(labels == label), axis=0)
            resampled[tuple(int(np.abs(pick - place).argmin()) for pick, place in zip(picks, at, strict=True))] = label
    grid = Grid((len(picks[0]), len(picks[1]), len(picks[2])), spacing_mm)
    instances, kinds = _instances(resampled)
    middle_mm = (middle_column / labels.shape[2] - 0.5) * len(picks[2]) * spacing_mm[2]
    return Anatomy(grid, _body_round(instances, kinds, grid, middle_mm, site, generator), instances, kinds)


def _cropped(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels (uint8, axes IPL), spacing (mm), and the column where the middle of the whole scan lay."""
    try:
        volume = nifti_case.read(path, "label")
        if volume.data.ndim != 3:
            raise BrokenCaseError(f"label has {volume.data.ndim} axes, needs three")
        nifti_case.check_labels(volume, {0, *LABELS.values()})
    except BrokenCaseError as error:
        raise InputError(f"--masks: {path}: {error}; download it again or take it out of the folder") from None
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(("I", "P", "L"))
    )
    labels = nib.orientations.apply_orientation(volume.data, turn)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    if not (labels == LABELS["kidney"]).any():
        raise InputError(f"--masks: {path} has no voxel of label 1 (kidney): take it out of the folder")
    down, back, left = (int(np.ceil(MARGIN_MM / step)) for step in spacing)
    box = box_of(labels > 0, (down, back, left))
    return labels[box].astype(np.uint8), spacing, labels.shape[2] / 2 - box[2].start


def _instances(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Connected parts of each label, the largest first; numbered as in ``Anatomy``."""
    instances, kinds = np.zeros(labels.shape, dtype=np.uint8), list[str]()
    for kind in ("kidney", "cyst", "tumor"):
        parts, _ = ndimage.label(labels == LABELS[kind])
        sizes = np.bincount(parts.ravel())[1:]
        for rank, part in enumerate(np.argsort(-sizes, kind="stable")[:PARTS]):
            if rank == 0 or sizes[part] >= SMALLEST_PART:
                kinds.append(kind)
                instances[parts == part + 1] = len(kinds)
    return instances, tuple(kinds)


def _body_round(
    instances: np.ndarray,
    kinds: tuple[str, ...],
    grid: Grid,
    middle_mm: float,
    site: CtSite,
    generator: np.random.Generator,
) -> Body:
    """A body of the site that has the kidneys in their place and is large enough to hold them.

    Args:
        middle_mm: where the midline is taken to be when there are not two kidneys, from the middle of the grid (columns).
    """
    drawn = draw_body(site, generator)
    kidneys = [np.argwhere(instances == number) for number, kind in enumerate(kinds, start=1) if kind == "kidney"][:2]
    centres_mm = [(places.mean(axis=0) - (np.array(grid.shape) - 1) / 2) * grid.spacing_mm for places in kidneys]
    if len(centres_mm) == 2 and abs(centres_mm[0][2] - centres_mm[1][2]) > KIDNEY_PLACE_MM[2]:
        middle_mm = float(centres_mm[0][2] + centres_mm[1][2]) / 2
    back_mm = float(np.mean([centre[1] for centre in centres_mm])) - KIDNEY_PLACE_MM[1]
    body = replace(drawn, middle_mm=(back_mm, middle_mm), roll=0.0, lean=0.0)
    _, back, left = body.coordinates(grid, grid.whole())
    there = (instances > 0).any(axis=0)
    outermost = float(wall_level(body, back, left, WALL_MM)[0][there].max())
    grow = float(np.clip(np.sqrt(outermost) * 1.03, 1.0, 1.6))
    return replace(body, half_mm=(body.half_mm[0] * grow, body.half_mm[1] * grow))
