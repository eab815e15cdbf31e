"""What all made-up volumes need: smooth random fields and NIfTI files that are the same to the byte each time."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

COMPRESSION = 1  # the higher levels take many times as long to save a tenth


def smooth_field_3d(
    shape: tuple[int, int, int], scale_voxels: float | tuple[float, float, float], generator: np.random.Generator
) -> np.ndarray:
    """A float32 field of mean 0 and deviation 1 that varies over about ``scale_voxels``, one scale or one for each axis.

    A coarse grid of independent values, enlarged by cubic B-splines along one axis after the other: many times cheaper
    than blurring noise of full size.
    """
    scales = (scale_voxels,) * 3 if isinstance(scale_voxels, (int, float)) else scale_voxels
    shift = generator.uniform(0, 1, 3)  # else all fields would have their knots at the same places
    weights = [_weights(*axis) for axis in zip(shape, scales, shift, strict=True)]
    field = generator.standard_normal([weight.shape[1] for weight in weights], dtype=np.float32)
    for axis, weight in enumerate(weights):
        field = np.moveaxis(np.tensordot(weight, field, (1, axis)), 0, axis) if axis < 2 else field @ weight.T
    field -= field.mean(dtype=np.float64)
    field /= field.std(dtype=np.float64) + 1e-6
    return np.ascontiguousarray(field, dtype=np.float32)


def _weights(length: int, scale: float, shift: float) -> np.ndarray:
    """Of ``length`` voxels (rows) on the knots of a coarse grid (columns); float32."""
    places = np.arange(length) / max(scale, 1.0) + shift + 1
    knots = np.arange(int(places[-1]) + 3)
    distance = np.abs(places[:, None] - knots)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a ``.nii.gz`` whose bytes depend on ``data`` and ``affine`` (voxel indices to mm) alone.

    A gzip file usually carries the time and its own name; here it has neither.
    """
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as file:
        file.write(image.to_bytes())
