"""One colour photograph with its lesion mask: read whole, checked, written as the PNG files that nnU-Net reads."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, Options, SourceCase
from nnunet_adpfl.errors import InputError

ENDING = ".png"
COMPRESSION = 3  # of 9; on photographs a third of the time of the usual 6, files a tenth larger
LABELS = {"background": 0, "lesion": 1}
DESCRIPTION = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": LABELS,
    "file_ending": ENDING,
}  # the part of dataset.json that all sets of photographs share
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_LARGE = Image.DecompressionBombError, Image.DecompressionBombWarning


def refuse_options(converter: str, options: Options) -> None:
    """InputError for options that photographs of one class do not have."""
    if options.linked:
        raise InputError(f"--link: {converter} has JPEG images, which nnU-Net does not read; they have to be written anew")
    if options.plain_labels:
        raise InputError(f"--plain-labels: {converter} has one class and no regions; leave it out")


def read_photo(path: Path) -> np.ndarray:
    """All pixels of a JPEG file, rows x columns x RGB, uint8.

    Raises BrokenCaseError when it is missing, truncated, no JPEG, or of other colours than RGB or grey.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BrokenCaseError(f"image {path.name} is missing") from None
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            image.load()
            if image.mode not in ("RGB", "L"):
                raise BrokenCaseError(f"image {path.name} has colours of mode {image.mode}, needs RGB")
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise BrokenCaseError(f"image {path.name} is no JPEG file") from None
    except (OSError, SyntaxError, ValueError, *_LARGE) as error:
        raise BrokenCaseError(f"image {path.name} cannot be read, is it truncated? {_one_line(error)}") from None
    # A download that broke off in a file of full length, padded with zeros, decodes to grey without an error.
    if content.find(_JPEG_END, content.rfind(_JPEG_SCAN)) == -1:
        raise BrokenCaseError(f"image {path.name} has no end mark, it is truncated")
    return pixels


def read_mask(path: Path) -> np.ndarray:
    """A black and white PNG file -> rows x columns, uint8: 0 background, 1 lesion.

    Copies of the masks exist as grey, as one-bit and as RGB files; each is fine while all pixels are black or white.

    Raises BrokenCaseError when it is missing, truncated, of 16 bits, coloured, partly transparent, or has grey values.
    """
    grey = _read_grey(path, "mask")
    others = np.setdiff1d(grey, (0, 255))
    if others.size:
        raise BrokenCaseError(f"mask {path.name} holds the value {others[0]}, needs 0 and 255 alone")
    return (grey == 255).astype(np.uint8)


def read_labels(path: Path, new_values: Mapping[int, int]) -> np.ndarray:
    """A label image of nnU-Net with other values, rows x columns, uint8.

    Raises BrokenCaseError as ``read_mask`` does, and for a value that ``new_values`` does not know.
    """
    labels = _read_grey(path, "prediction")
    others = np.setdiff1d(labels, list(new_values))
    if others.size:
        raise BrokenCaseError(f"prediction {path.name} holds the value {others[0]}, the data set has {sorted(new_values)}")
    table = np.zeros(256, dtype=np.uint8)
    table[list(new_values)] = list(new_values.values())
    return table[labels]


def _read_grey(path: Path, role: str) -> np.ndarray:
    """Grey values of a PNG file of any 8-bit mode, while it has neither colours nor transparency."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BrokenCaseError(f"{role} {path.name} is missing") from None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            mode = image.mode
            if mode not in ("1", "L", "P", "LA", "RGB", "RGBA"):
                raise BrokenCaseError(f"{role} {path.name} has pixels of mode {mode}, needs 8 bits")
            colours = np.asarray(image.convert("RGBA"))
    except UnidentifiedImageError:
        raise BrokenCaseError(f"{role} {path.name} is no PNG file") from None
    except (OSError, SyntaxError, ValueError, *_LARGE) as error:
        raise BrokenCaseError(f"{role} {path.name} cannot be read, is it truncated? {_one_line(error)}") from None
    if (colours[..., 3] != 255).any():
        raise BrokenCaseError(f"{role} {path.name} is partly transparent, needs black and white")
    if (colours[..., :3] != colours[..., :1]).any():
        raise BrokenCaseError(f"{role} {path.name} is coloured, needs black and white")
    return colours[..., 0]


def check_same_size(photo: np.ndarray, mask: np.ndarray) -> None:
    """Raise BrokenCaseError unless the mask has one pixel for each of the photograph."""
    if photo.shape[:2] != mask.shape:
        sizes = ("x".join(map(str, shape[1::-1])) for shape in (photo.shape, mask.shape))
        raise BrokenCaseError("image is {} pixels, mask {}".format(*sizes))


def convert_case(case: SourceCase, images: Path, labels: Path) -> None:
    """Check a photograph and its mask and write both; BrokenCaseError where one cannot be used."""
    photo = read_photo(case.images[0])
    if case.label is not None:
        mask = read_mask(case.label)
        check_same_size(photo, mask)
        Image.fromarray(mask).save(labels / f"{case.name}{ENDING}", compress_level=COMPRESSION)
    Image.fromarray(photo).save(images / f"{case.name}_0000{ENDING}", compress_level=COMPRESSION)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
