"""A made-up dermoscopy cohort in the layout of HAM10000: folders, file names, metadata, repeated images of a lesion.

No image of a person goes into it. Sites differ as HAM10000's do, by as much as asked for; see ``skin_site``.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion.synthetic import generated_set
from nnunet_adpfl.dataset_conversion.synthetic.dermoscopy import draw_case
from nnunet_adpfl.dataset_conversion.synthetic.generated_set import GeneratedSet
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for
from nnunet_adpfl.dataset_conversion.synthetic.skin_lesion import Lesion, draw_lesion
from nnunet_adpfl.dataset_conversion.synthetic.skin_site import SkinSite, skin_sites

DEFAULT_SIZE = (96, 128)  # rows, columns; HAM10000 has 450 x 600
SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
LESIONS_BY_IMAGES = (5514, 1423, 490, 34, 5, 4)  # in HAM10000: lesions with 1, 2, ... 6 images
FIRST_IMAGE = 24306
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
PLACES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot", "neck", "scalp")
NOTICE = "Made-up images, drawn by a program; no patient, no photograph. Not HAM10000, only its layout.\n"


@dataclass(frozen=True)
class _Folders:
    parts: tuple[Path, Path]
    masks: Path


def generate(
    out: Path,
    *,
    units: int,
    sites: int = 4,
    heterogeneity: float = 0.5,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> GeneratedSet:
    """Write ``units`` lesions with one to six images each; the same arguments give the same files.

    Args:
        heterogeneity: 0 (sites alike and of equal size) to 1 (as different as HAM10000's, or more).
        size: rows and columns of the images; default 96 x 128.

    Raises InputError for arguments out of range, and when ``out`` exists and is not empty. On any error ``out`` is left
    as it was.
    """
    generated_set.check_arguments(units, "lesion", sites, heterogeneity, seed)
    size = size or DEFAULT_SIZE
    generated_set.check_size(size, 2, SMALLEST_SIDE, LARGEST_SIDE)
    looks = skin_sites(sites, heterogeneity, seed)
    names = [f"HAM_{number:07d}" for number in range(units)]
    site_of = generated_set.deal_units(names, {name: site.quantity[0] for name, site in looks.items()}, seed)
    images_of = _deal_images(site_of, looks, seed)
    with generated_set.new_set(out, NOTICE) as folder:
        rows = _write_images(folder, site_of, images_of, looks, (size[0], size[1]), seed)
        _write_metadata(folder / "HAM10000_metadata", rows)
    lesions, images = Counter(site_of.values()), Counter(row["dataset"] for row in rows)
    return GeneratedSet(
        out.resolve(), "lesion", {site: lesions[site] for site in looks}, {site: images[site] for site in looks}
    )


def _deal_images(site_of: Mapping[str, str], looks: Mapping[str, SkinSite], seed: int) -> dict[str, list[str]]:
    """Lesion -> its images. The frequencies are HAM10000's; sites that like to repeat get more of the repeats."""
    generator = generator_for(seed, "images")
    counts = generated_set.apportioned(len(site_of), np.array(LESIONS_BY_IMAGES, dtype=float))
    numbers = np.repeat(np.arange(len(counts), 0, -1), counts[::-1])
    wish = {lesion: generator.random() + looks[site].repeats[0] for lesion, site in site_of.items()}
    number_of = dict(zip(sorted(wish, key=wish.__getitem__, reverse=True), numbers.tolist(), strict=True))
    ids = iter(generator.permutation(int(numbers.sum())).tolist())
    return {
        lesion: sorted(f"ISIC_{FIRST_IMAGE + next(ids):07d}" for _ in range(number_of[lesion])) for lesion in site_of
    }


def _write_images(
    folder: Path,
    site_of: Mapping[str, str],
    images_of: Mapping[str, Sequence[str]],
    looks: Mapping[str, SkinSite],
    size: tuple[int, int],
    seed: int,
) -> list[dict[str, str]]:
    """Draw and write all images; returns their metadata."""
    folders = _make_folders(folder)
    half = FIRST_IMAGE + sum(map(len, images_of.values())) // 2
    rows = []
    for name in progress.track(sorted(site_of), "drawing lesions", total=len(site_of)):
        site = looks[site_of[name]]
        generator = generator_for(seed, "lesion", name)
        lesion = draw_lesion(site, generator)
        facts = {"lesion_id": name, "dx": lesion.diagnosis, "dataset": site_of[name], **_patient(lesion, generator)}
        for case in images_of[name]:
            picture, mask = draw_case(lesion, site, size, generator_for(seed, "case", case))
            part = folders.parts[int(case.removeprefix("ISIC_")) >= half]
            Image.fromarray(picture).save(part / f"{case}.jpg", quality=round(site.sharpness[2]))
            Image.fromarray(mask).save(folders.masks / f"{case}_segmentation.png")
            rows.append({**facts, "image_id": case})
    return rows


def _make_folders(folder: Path) -> _Folders:
    first, second, masks = (
        folder / f"HAM10000_{name}" for name in ("images_part_1", "images_part_2", "segmentations_lesion_tschandl")
    )
    for path in (first, second, masks):
        path.mkdir()
    return _Folders((first, second), masks)


def _patient(lesion: Lesion, generator: np.random.Generator) -> dict[str, str]:
    """The columns that no converter reads, filled as they might be."""
    is_cancer = lesion.diagnosis in ("akiec", "bcc", "mel")
    age = 5 * round(float(np.clip(generator.normal(65 if is_cancer else 48, 14), 5, 85)) / 5)
    return {
        "dx_type": "histo" if is_cancer else str(generator.choice(["histo", "follow_up", "consensus"])),
        "age": f"{age}.0",
        "sex": str(generator.choice(["male", "female"])),
        "localization": str(generator.choice(PLACES)),
    }


def _write_metadata(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Ordered by diagnosis, as in HAM10000: whoever takes the first rows for training learns of it here."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["dx"], row["lesion_id"], row["image_id"])))
