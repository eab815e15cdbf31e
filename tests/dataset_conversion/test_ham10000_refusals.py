"""HAM10000 sources that must be refused: one line says why, nothing is written, an earlier data set is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_sources

from nnunet_adpfl.dataset_conversion import converters

CASES = [f"ISIC_000000{number}" for number in range(1, 6)]
HEADER, ROWS, SIZE = tiny_sources.HAM_HEADER, tiny_sources.HAM_ROWS, tiny_sources.HAM_SIZE


def cut_jpg(ham: Path) -> None:
    path = tiny_sources.ham_image(ham, "ISIC_0000003")
    tiny_sources.write_jpg(path, size=(120, 160))
    path.write_bytes(path.read_bytes()[:-2000])


def zero_padded_jpg(ham: Path) -> None:
    path = tiny_sources.ham_image(ham, "ISIC_0000003")
    whole = path.read_bytes()
    path.write_bytes(whole[:-60] + bytes(60))


def other_size(ham: Path) -> None:
    tiny_sources.write_png(tiny_sources.ham_mask(ham, "ISIC_0000003"), np.zeros((16, 12), np.uint8))


def mask_of(value: int | tuple[int, ...], dtype: type = np.uint8) -> Callable[[Path], None]:
    def damage(ham: Path) -> None:
        mask = np.zeros((*SIZE, len(value)) if isinstance(value, tuple) else SIZE, dtype)
        mask[4, 5] = value
        if mask.ndim == 3 and mask.shape[2] == 4:
            mask[0, 0] = 255  # opaque here, transparent elsewhere
        tiny_sources.write_png(tiny_sources.ham_mask(ham, "ISIC_0000003"), mask)

    return damage


def unlink(part: str) -> Callable[[Path], None]:
    return lambda ham: next(ham.rglob(part)).unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut_jpg, "image ISIC_0000003.jpg cannot be read, is it truncated"),
    "padded": (zero_padded_jpg, "image ISIC_0000003.jpg has no end mark, it is truncated"),
    "empty": (
        lambda ham: tiny_sources.ham_image(ham, "ISIC_0000003").write_bytes(b""),
        "ISIC_0000003.jpg is no JPEG file",
    ),
    "page": (
        lambda ham: tiny_sources.ham_mask(ham, "ISIC_0000003").write_text("<html>"),
        "_segmentation.png is no PNG file",
    ),
    "no image": (unlink("ISIC_0000003.jpg"), "image ISIC_0000003.jpg is missing"),
    "no mask": (unlink("ISIC_0000003_segmentation.png"), "label ISIC_0000003_segmentation.png is missing"),
    "size": (other_size, "image is 16x12 pixels, mask 12x16"),
    "grey": (mask_of(128), "holds the value 128, needs 0 and 255 alone"),
    "label": (mask_of(1), "holds the value 1, needs 0 and 255 alone"),
    "16 bit": (mask_of(65535, np.uint16), "has pixels of mode I;16, needs 8 bits"),
    "coloured": (mask_of((255, 0, 0)), "is coloured, needs black and white"),
    "transparent": (mask_of((255, 255, 255, 255)), "is partly transparent"),
    "CMYK": (
        lambda ham: tiny_sources.write_jpg(tiny_sources.ham_image(ham, "ISIC_0000003"), mode="CMYK"),
        "colours of mode CMYK, needs RGB",
    ),
}


@pytest.mark.parametrize("breakage", BROKEN)
def test_broken_cases_are_named_and_the_earlier_data_set_is_kept(raw: Path, ham: Path, breakage: str) -> None:
    assert converters.convert("ham10000", ham, 120).written
    damage, message = BROKEN[breakage]
    damage(ham)
    parts = ("1 of 5 cases are broken, nothing was written: ISIC_0000003", message)
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120, overwrite=True), *parts)
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 121), *parts)


def test_every_missing_part_is_in_the_one_line(raw: Path, ham: Path) -> None:
    shutil.rmtree(ham / "HAM10000_images_part_2")
    next(ham.rglob("ISIC_0000004_segmentation.png")).unlink()
    parts = [f"{case} (image {case}.jpg is missing)" for case in CASES[::2]]
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "4 of 5 cases", *parts, "ISIC_0000004 (label")


@pytest.mark.parametrize(
    ("header", "rows", "parts"),
    [
        (HEADER, [*ROWS, ROWS[0]], ["lists images more than once (1: ISIC_0000001)"]),
        (HEADER, ROWS[:3], ["has no row for images that are there (2: ISIC_0000004, ISIC_0000005)"]),
        (HEADER.replace("lesion_id", "id"), ROWS, ["no column 'lesion_id' (columns: id, image_id"]),
        (HEADER.replace("image_id", "id"), ROWS, ["no column 'image_id'"]),
        (HEADER, [*ROWS[:4], ROWS[4].replace("HAM_4", "")], ["line 6", "lesion_id or image_id is empty"]),
        (HEADER, [*ROWS[:4], ROWS[4].replace("vidir_modern", "")], ["names no site for images", "ISIC_0000005"]),
        (HEADER, [*ROWS[:4], ROWS[4].replace("vidir_modern", "a/b")], ["site 'a/b' cannot name a folder"]),
    ],
)
def test_bad_metadata(raw: Path, ham: Path, header: str, rows: list[str], parts: list[str]) -> None:
    assert converters.convert("ham10000", ham, 120).written
    tiny_sources.ham_metadata(ham, *rows, header=header)
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120, overwrite=True), "HAM10000_metadata", *parts)


def test_no_ham_folder(raw: Path, ham: Path, tmp_path: Path) -> None:
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", tmp_path / "absent", 120), "absent is no folder")
    (ham / "HAM10000_metadata").unlink()
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "holds no HAM10000_metadata")
    shutil.rmtree(ham / "HAM10000_segmentations_lesion_tschandl")
    tiny_sources.check_refused(
        raw, lambda: converters.convert("ham10000", ham, 120), "holds no masks (ISIC_0024306_segmentation.png ...)"
    )


def test_two_different_images_of_one_id(raw: Path, ham: Path) -> None:
    tiny_sources.write_jpg(ham / "more" / "ISIC_0000003.jpg", shade=7)
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "ISIC_0000003 is there twice and differs")
