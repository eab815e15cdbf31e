"""One NIfTI case: read whole, checked, written as nnU-Net names it (one file per channel)."""

from __future__ import annotations

import gzip
import math
import shutil
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, SourceCase

ENDING = ".nii.gz"
_DAMAGED = (
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    OverflowError,
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
    except FileNotFoundError:
        raise BrokenCaseError(f"{role} file {path.name} is missing") from None
    try:
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
        _check_length(content, path)
        image = nib.Nifti1Image.from_bytes(content)
        data = np.asanyarray(image.dataobj)
    except (OSError, *_DAMAGED) as error:  # of the content: the file itself has been read
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


def _check_length(content: bytes, path: Path) -> None:
    """ValueError for a header that claims more voxels than the file has, before memory is asked for them."""
    header = nib.Nifti1Header(content[:348], check=False)
    try:
        needed = math.prod(int(side) for side in header.get_data_shape()) * header.get_data_dtype().itemsize
    except KeyError as error:
        raise ValueError(f"its header names no type of voxels ({error})") from None
    if needed > len(content):
        raise ValueError(f"its header claims {needed} bytes of voxels, the file holds {len(content)}")


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


def values_of(label: Volume) -> list[int]:
    """The values that occur, in ascending order.

    Raises BrokenCaseError for a voxel that is no whole number, or far outside of what labels are.
    """
    found: set[float] = set()
    # Piece by piece, along the axis that is slowest in memory: sorting all voxels of a CT at once takes gigabytes.
    for plane in label.data.T if label.data.flags.f_contiguous else label.data:
        found.update(np.unique(plane).tolist())
    odd = sorted(value for value in found if value != round(value))
    if odd:
        raise BrokenCaseError(f"label holds {odd[0]:g}, which is no whole number")
    return sorted(int(value) for value in found)


def check_labels(label: Volume, allowed: Collection[int]) -> None:
    """Raise BrokenCaseError unless all voxels are whole numbers among ``allowed``."""
    unknown = [value for value in values_of(label) if value not in allowed]
    if unknown:
        raise BrokenCaseError(f"label holds the value {unknown[0]}, the data set has {sorted(allowed)}")


@dataclass(frozen=True)
class NiftiConversion:
    """Checks one case and writes it as nnU-Net names it.

    Attributes:
        channels: how many there are, in one 4D file or in one 3D file each.
        label_values: value in the source's labels -> value in nnU-Net's.
        linked: link files that are taken as they are, instead of copying them.
    """

    channels: int
    label_values: Mapping[int, int]
    linked: bool = False

    def __call__(self, case: SourceCase, images: Path, labels: Path) -> None:
        label = None if case.label is None else read(case.label, "label")
        if label is not None and label.data.ndim != 3:
            raise BrokenCaseError(f"label has shape {_shape(label.data)}, needs three axes")
        if label is not None:
            check_labels(label, self.label_values.keys())
        first = None
        for channel, path in enumerate(case.images):
            image = read(path, "image" if len(case.images) == 1 else f"image {path.name}")
            if label is not None:
                check_same_grid(image, label)
            elif first is not None:
                check_same_grid(image, first)
            if len(case.images) == 1:
                write_channels(image, case.name, self.channels, images, self.linked)
                break
            if image.data.ndim != 3:
                raise BrokenCaseError(f"image {path.name} has shape {_shape(image.data)}, needs three axes")
            write_unchanged(image, images / f"{case.name}_{channel:04d}{ENDING}", self.linked)
            first = image
        if label is not None:
            self._write_label(label, labels / f"{case.name}{ENDING}")

    def _write_label(self, label: Volume, target: Path) -> None:
        if all(value == new for value, new in self.label_values.items()):
            write_unchanged(label, target, self.linked)
        else:
            write_relabelled(label, self.label_values, target)


def write_relabelled(label: Volume, new_values: Mapping[int, int], target: Path) -> None:
    """The label with other values, on the same grid, as 8-bit numbers. Its values must be checked before."""
    table = np.zeros(256, dtype=np.uint8)
    table[list(new_values)] = list(new_values.values())
    image = nib.Nifti1Image(table[label.data.astype(np.uint8)], label.affine, label.image.header, dtype=np.uint8)
    image.header.set_slope_inter(1, 0)
    nib.save(image, target)


def write_channels(image: Volume, case: str, channels: int, folder: Path, linked: bool = False) -> None:
    """Write ``case_0000.nii.gz``, ``case_0001.nii.gz`` ...: a 3D file as it is, a 4D file cut along its last axis."""
    found = 1 if image.data.ndim == 3 else image.data.shape[3]
    if image.data.ndim > 4 or found != channels:
        raise BrokenCaseError(f"image has shape {_shape(image.data)}, the data set has {channels} channel(s)")
    if image.data.ndim == 3:
        write_unchanged(image, folder / f"{case}_0000{ENDING}", linked)
        return
    for channel in range(channels):
        part = nib.Nifti1Image(image.data[..., channel], image.affine, image.image.header, dtype=image.data.dtype)
        nib.save(part, folder / f"{case}_{channel:04d}{ENDING}")


def write_unchanged(volume: Volume, target: Path, linked: bool = False) -> None:
    """The same file under another name, gzipped where it was not (nnU-Net reads one ending in a data set)."""
    if not volume.path.name.lower().endswith(".gz"):
        nib.save(volume.image, target)
    elif linked:
        target.symlink_to(volume.path.resolve())
    else:
        shutil.copyfile(volume.path, target)


def _shape(data: np.ndarray) -> str:
    return "x".join(map(str, data.shape))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
