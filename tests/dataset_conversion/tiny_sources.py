"""Tiny data sets as they are downloaded, to convert and to break, and what a refused conversion must leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from nnunet_adpfl.errors import InputError

MSD_SHAPE = (6, 7, 5)
MSD_CASES = ("brain_01", "brain_02", "brain_03", "brain_04")
HAM_SIZE = (12, 16)  # rows, columns
HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
# Two sites; HAM_1 has two images; the columns between image_id and dataset are read by nobody.
HAM_ROWS = (
    "HAM_1,ISIC_0000001,nv,histo,45.0,male,back,rosendahl",
    "HAM_1,ISIC_0000002,nv,histo,45.0,male,back,rosendahl",
    "HAM_2,ISIC_0000003,mel,histo,80.0,female,face,rosendahl",
    "HAM_3,ISIC_0000004,nv,follow_up,,unknown,scalp,vidir_modern",
    "HAM_4,ISIC_0000005,bkl,consensus,60.0,male,trunk,vidir_modern",
)


def write_msd(folder: Path, cases: Sequence[str] = MSD_CASES, channels: int = 1) -> Path:
    """A Decathlon folder with labels 0, 1, 2; returns the folder."""
    generator = np.random.default_rng(3)
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases]
    for case in cases:
        shape = MSD_SHAPE if channels == 1 else (*MSD_SHAPE, channels)
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", generator.normal(100, 20, shape).astype(np.float32))
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", generator.integers(0, 3, MSD_SHAPE).astype(np.uint8))
    description = {
        "name": "Brain",
        "licence": "CC0",
        "modality": {str(channel): f"MRI{channel}" for channel in range(channels)},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


def write_ham(folder: Path, rows: Sequence[str] = HAM_ROWS, header: str = HAM_HEADER) -> Path:
    """A HAM10000 folder with an image and a mask for every row; returns the folder."""
    columns = header.split(",")
    for row in rows:
        case = dict(zip(columns, row.split(","), strict=True))["image_id"]
        odd = int(case[-1]) % 2
        write_jpg(folder / f"HAM10000_images_part_{1 + odd}" / f"{case}.jpg", shade=40 * int(case[-1]))
        mask = np.zeros(HAM_SIZE, dtype=np.uint8)
        mask[3:8, 4 : 9 + odd] = 255
        write_png(ham_mask(folder, case), mask)
    ham_metadata(folder, *rows, header=header)
    return folder


def ham_metadata(ham: Path, *rows: str, header: str = HAM_HEADER) -> Path:
    """Replace the metadata table."""
    path = ham / "HAM10000_metadata"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def ham_image(folder: Path, case: str) -> Path:
    return next(folder.rglob(f"{case}.jpg"))


def ham_mask(folder: Path, case: str) -> Path:
    return folder / "HAM10000_segmentations_lesion_tschandl" / f"{case}_segmentation.png"


def write_jpg(path: Path, shade: int = 100, size: tuple[int, int] = HAM_SIZE, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(shade, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=90)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too: path -> bytes, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_refused(raw: Path, call: Callable[[], object], *parts: str) -> None:
    """``call`` must raise one line that holds ``parts``, and leave nnUNet_raw to the last byte as it was."""
    before = content(raw)
    with pytest.raises(InputError) as refusal:
        call()
    text = str(refusal.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    assert content(raw) == before
