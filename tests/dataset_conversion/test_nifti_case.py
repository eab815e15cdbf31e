"""One NIfTI case: what is broken about it is said, and what is fine is written as it was."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny_sources

from nnunet_adpfl.dataset_conversion import nifti_case
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError

SHAPE = (6, 7, 5)
SPACING = np.diag([1.0, 1.0, 2.0, 1.0])
FIRST_AXIS = slice(280, 296)  # where a header has the first row of its affine


def volume(tmp_path: Path, data: np.ndarray, affine: np.ndarray = SPACING, name: str = "x.nii.gz") -> nifti_case.Volume:
    return nifti_case.read(tiny_sources.write_nifti(tmp_path / name, data, affine), "image")


def test_read_gives_voxels_and_affine(tmp_path: Path) -> None:
    data = np.arange(210, dtype=np.int16).reshape(SHAPE)
    for name in ("x.nii.gz", "x.nii"):
        found = volume(tmp_path, data, name=name)
        np.testing.assert_array_equal(found.data, data)
        np.testing.assert_array_equal(found.affine, SPACING)


def nan_voxels() -> np.ndarray:
    data = np.ones(SHAPE, dtype=np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (nan_voxels(), "image has 3 NaN or infinite voxels"),
        (np.ones((6, 7), np.uint8), "shape 6x7, needs three axes"),
        (np.ones(SHAPE, np.complex64), "type complex64"),
    ],
)
def test_unusable_voxels(tmp_path: Path, data: np.ndarray, message: str) -> None:
    with pytest.raises(BrokenCaseError, match=message):
        volume(tmp_path, data)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_senseless_spacing(tmp_path: Path, value: float) -> None:
    path = tiny_sources.write_nifti(tmp_path / "x.nii", np.ones(SHAPE, np.uint8))
    content = bytearray(path.read_bytes())
    content[FIRST_AXIS] = np.full(4, value, np.float32).tobytes()
    path.write_bytes(content)
    with pytest.raises(BrokenCaseError, match="image has no usable voxel spacing"):
        nifti_case.read(path, "image")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for name in ("x.nii.gz", "x.nii"):
        path = tiny_sources.write_nifti(tmp_path / name, data)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(BrokenCaseError, match="label cannot be read, is it truncated") as refusal:
            nifti_case.read(path, "label")
        assert "\n" not in str(refusal.value)


def test_flipped_bit_and_foreign_file(tmp_path: Path) -> None:
    path = tiny_sources.write_nifti(tmp_path / "x.nii.gz", np.zeros(SHAPE, np.uint8))
    damaged = bytearray(path.read_bytes())
    damaged[-6] ^= 1  # in the checksum
    path.write_bytes(damaged)
    with pytest.raises(BrokenCaseError, match="cannot be read"):
        nifti_case.read(path, "image")
    path.write_bytes(gzip.compress(b"<html>please log in</html>" * 40))
    with pytest.raises(BrokenCaseError, match="cannot be read"):
        nifti_case.read(path, "image")
    plain = bytearray(tiny_sources.write_nifti(tmp_path / "x.nii", np.zeros(SHAPE, np.uint8)).read_bytes())
    plain[108:112] = np.float32(3e30).tobytes()  # where the voxels start
    (tmp_path / "x.nii").write_bytes(plain)
    with pytest.raises(BrokenCaseError, match="cannot be read"):
        nifti_case.read(tmp_path / "x.nii", "image")
    with pytest.raises(BrokenCaseError, match=r"image file absent.nii is missing"):
        nifti_case.read(tmp_path / "absent.nii", "image")


def moved(offset: float) -> np.ndarray:
    affine = SPACING.copy()
    affine[0, 3] = offset
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1.0, 1.0, 2.1, 1.0]), "image has spacing 1x1x2 mm, label 1x1x2.1 mm"),
        (np.diag([-1.0, 1.0, 2.0, 1.0]), "lie 10 mm apart"),
        (moved(0.2), "lie 0.2 mm apart"),
        (SPACING, None),
        (moved(0.05), None),
    ],
)
def test_same_grid(tmp_path: Path, affine: np.ndarray, message: str | None) -> None:
    image = volume(tmp_path, np.zeros(SHAPE, np.uint8))
    label = volume(tmp_path, np.zeros(SHAPE, np.uint8), affine, "y.nii.gz")
    if message is None:
        nifti_case.check_same_grid(image, label)
        return
    with pytest.raises(BrokenCaseError, match=message):
        nifti_case.check_same_grid(image, label)


def test_other_shape(tmp_path: Path) -> None:
    image = volume(tmp_path, np.zeros(SHAPE, np.uint8))
    label = volume(tmp_path, np.zeros((6, 7, 4), np.uint8), name="y.nii.gz")
    with pytest.raises(BrokenCaseError, match="image has shape 6x7x5, label 6x7x4"):
        nifti_case.check_same_grid(image, label)


def test_label_values(tmp_path: Path) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, 0] = 2
    nifti_case.check_labels(volume(tmp_path, data), (0, 1, 2))
    with pytest.raises(BrokenCaseError, match=r"label holds the value 2, the data set has \[0, 1\]"):
        nifti_case.check_labels(volume(tmp_path, data), (0, 1))
    data[0, 0, 0] = 0.5
    with pytest.raises(BrokenCaseError, match=r"label holds 0.5, which is no whole number"):
        nifti_case.check_labels(volume(tmp_path, data), (0, 1))


def test_files_with_three_axes_are_copied_and_four_axes_cut(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    data = np.random.default_rng(0).integers(0, 1000, (*SHAPE, 2)).astype(np.int16)
    single = volume(tmp_path, data[..., 0])
    nifti_case.write_channels(single, "a", 1, out)
    assert (out / "a_0000.nii.gz").read_bytes() == single.path.read_bytes()
    nifti_case.write_channels(volume(tmp_path, data[..., 0], name="plain.nii"), "p", 1, out)
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(out / "p_0000.nii.gz").dataobj), data[..., 0])
    nifti_case.write_channels(volume(tmp_path, data), "b", 2, out)
    for channel in range(2):
        part = nibabel.load(out / f"b_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(part.dataobj), data[..., channel])
        np.testing.assert_array_equal(part.affine, SPACING)
        assert part.get_data_dtype() == np.int16
    with pytest.raises(BrokenCaseError, match=r"shape 6x7x5x2, the data set has 1 channel"):
        nifti_case.write_channels(volume(tmp_path, data), "c", 1, out)
