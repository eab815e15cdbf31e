"""One NIfTI case: read whole, checked, written as nnU-Net names it (one file per channel)."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nnunet_adpfl.dataset_conversion.raw_dataset import BrokenCaseError

ENDING = ".nii.gz"
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,  # its header claims more voxels than a machine can hold
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)
GRID_TOLERANCE = 0.1  # of a voxel: header rounding stays far below, a shifted or flipped mask far above


@dataclass(frozen=True)
class Volume:
    """A NIfTI file in memory. ``data`` has the file's own axes, ``affine`` maps voxel indices to mm."""

    path: Path
    image: Any
    data: np.ndarray
    affine: np.ndarray


def read(path: Path, role: str) -> Volume:
    """Read all of a .nii or .nii.gz file, checksum included.

    Raises BrokenCaseError (naming ``role``: image or label) when it is missing, truncated, no NIfTI, of a senseless
    spacing, or holds NaN or infinite voxels.
    """
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
        image = nib.Nifti1Image.from_bytes(content)
        data = np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise BrokenCaseError(f"{role} file {path.name} is missing") from None
    except _UNREADABLE as error:
        raise BrokenCaseError(f"{role} cannot be read, is it truncated? {_one_line(error)}") from None
    affine = np.asarray(image.affine, dtype=float)
    if data.ndim < 3 or data.size == 0:
        raise BrokenCaseError(f"{role} has shape {_shape(data)}, needs three axes")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BrokenCaseError(f"{role} has no usable voxel spacing in its header")
    if data.dtype.kind not in "biuf":
        raise BrokenCaseError(f"{role} has voxels of type {data.dtype}, needs plain numbers")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise BrokenCaseError(f"{role} has {int((~np.isfinite(data)).sum())} NaN or infinite voxels")
    return Volume(path, image, data, affine)


def check_same_grid(image: Volume, label: Volume) -> None:
    """Raise BrokenCaseError unless both have the same shape and put every voxel at the same place."""
    if image.data.shape[:3] != label.data.shape:
        raise BrokenCaseError(f"image has shape {_shape(image.data)}, label {_shape(label.data)}")
    spacings = [np.linalg.norm(volume.affine[:3, :3], axis=0) for volume in (image, label)]
    if not np.allclose(spacings[0], spacings[1], rtol=1e-2):
        image_text, label_text = ("x".join(f"{value:g}" for value in np.round(spacing, 4)) for spacing in spacings)
        raise BrokenCaseError(f"image has spacing {image_text} mm, label {label_text} mm")
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in label.data.shape))], dtype=float)
    offset = np.linalg.norm((corners @ (image.affine - label.affine).T)[:, :3], axis=1).max()
    if offset > GRID_TOLERANCE * spacings[0].min():
        raise BrokenCaseError(f"image and label lie {offset:.3g} mm apart (origin or direction differs)")


def check_labels(label: Volume, labels: Mapping[str, Any]) -> None:
    """Raise BrokenCaseError unless all voxels are whole numbers that dataset.json's ``labels`` name."""
    values = np.unique(label.data)
    if (values != np.round(values)).any():
        raise BrokenCaseError(f"label holds {values[values != np.round(values)][0]:g}, which is no whole number")
    allowed: set[int] = set()
    for value in labels.values():
        allowed.update(value if isinstance(value, (list, tuple)) else [value])
    unknown = sorted(set(values.astype(int).tolist()) - allowed)
    if unknown:
        raise BrokenCaseError(f"label holds the value {unknown[0]}, dataset.json has {sorted(allowed)}")


def write_channels(image: Volume, case: str, channels: int, folder: Path) -> None:
    """Write ``case_0000.nii.gz``, ``case_0001.nii.gz`` ...: a 3D file as it is, a 4D file cut along its last axis."""
    found = 1 if image.data.ndim == 3 else image.data.shape[3]
    if image.data.ndim > 4 or found != channels:
        raise BrokenCaseError(f"image has shape {_shape(image.data)}, dataset.json names {channels} channel(s)")
    if image.data.ndim == 3:
        write_unchanged(image, folder / f"{case}_0000{ENDING}")
        return
    for channel in range(channels):
        part = nib.Nifti1Image(image.data[..., channel], image.affine, image.image.header, dtype=image.data.dtype)
        nib.save(part, folder / f"{case}_{channel:04d}{ENDING}")


def write_unchanged(volume: Volume, target: Path) -> None:
    """The same file under another name, gzipped where it was not."""
    if volume.path.name.endswith(".gz"):
        shutil.copyfile(volume.path, target)
    else:
        nib.save(volume.image, target)


def _shape(data: np.ndarray) -> str:
    return "x".join(map(str, data.shape))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
