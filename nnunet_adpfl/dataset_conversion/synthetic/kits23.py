"""A made-up cohort of kidney CT in the layout of KiTS23: folders, file names, orientation, three readers, kits23.json.

No image of a person goes into it; with ``masks`` the outlines are those of segmentation files that the user has. KiTS
publishes no sites; here a table beside the data names them. They differ as the six largest do, by as much as asked for;
see ``ct_site``, also for what part of a body a volume shows.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion.synthetic import generated_set
from nnunet_adpfl.dataset_conversion.synthetic.abdomen_ct import draw_scan
from nnunet_adpfl.dataset_conversion.synthetic.ct_site import CtSite, ct_sites, grid_of
from nnunet_adpfl.dataset_conversion.synthetic.generated_set import GeneratedSet
from nnunet_adpfl.dataset_conversion.synthetic.kidney import LABELS, Anatomy, box_of, draw_anatomy, majority, trace
from nnunet_adpfl.dataset_conversion.synthetic.kidney_masks import anatomy_of, find_masks
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for
from nnunet_adpfl.dataset_conversion.synthetic.volumes import write_nifti
from nnunet_adpfl.errors import InputError

DEFAULT_SIZE = (40, 64, 64)  # slices, rows, columns; the median of KiTS23 is 104 x 512 x 512
SMALLEST_SIDE, LARGEST_SIDE = 24, 1024
FIRST_PART = 300  # cases; then the numbers go on from 400
ZOOM_VARIES = 0.08  # the field of view is set for each patient
VOXELS_AT_A_TIME = 60_000_000  # in all threads together: a case needs about 45 bytes for each
MOST_VOXELS = 2**27  # of a volume asked for; sites with thin slices make it up to 1.6 times as large
SITES_FILE = "kits23_sites.csv"
NOTICE = "Made-up images, drawn by a program; no patient, no scan. Not KiTS23, only its layout.\n"
NOTICE_OF_MASKS = (
    "Made-up images, drawn by a program; no scan. The outlines were made from segmentation files of KiTS: whoever passes\n"
    "them on is bound by the licence of those files.\n"
)
SUBTYPES = ("clear_cell_rcc", "papillary_rcc", "chromophobe", "oncocytoma", "angiomyolipoma")
SUBTYPE_SHARES = (0.66, 0.12, 0.09, 0.07, 0.06)


@dataclass(frozen=True)
class _Recipe:
    """What all cases share."""

    looks: Mapping[str, CtSite]
    size: tuple[int, int, int]
    seed: int
    masks: Sequence[Path]


def generate(
    out: Path,
    *,
    units: int,
    sites: int = 4,
    heterogeneity: float = 0.5,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    masks: Path | None = None,
) -> GeneratedSet:
    """Write ``units`` patients with one scan each; the same arguments give the same files.

    Args:
        heterogeneity: 0 (sites alike and of equal size) to 1 (as different as those of KiTS, or more).
        size: slices, rows and columns; default 40 x 64 x 64. Sites with thinner slices have more of them.
        masks: a folder with segmentation files of KiTS. Volumes are then as large as the kidneys with their
            surroundings, and ``size`` sets the spacing alone.

    Raises InputError for arguments out of range, for masks that cannot be used, and when ``out`` exists and is not
    empty. On any error ``out`` is left as it was.
    """
    generated_set.check_arguments(units, "patient", sites, heterogeneity, seed)
    size = size or DEFAULT_SIZE
    generated_set.check_size(size, 3, SMALLEST_SIDE, LARGEST_SIDE)
    if int(np.prod(size)) > MOST_VOXELS:
        raise InputError(
            f"--size {'x'.join(map(str, size))} has more than {MOST_VOXELS:,} voxels: make one side shorter"
        )
    files = [] if masks is None else find_masks(masks)
    recipe = _Recipe(ct_sites(sites, heterogeneity, seed), (size[0], size[1], size[2]), seed, files)
    names = [f"case_{number if number < FIRST_PART else number + 100:05d}" for number in range(units)]
    weights = {name: site.quantity[0] for name, site in recipe.looks.items()}
    site_of = generated_set.deal_units(names, weights, seed)
    with generated_set.new_set(out, NOTICE_OF_MASKS if files else NOTICE) as folder:
        dataset = folder / "kits23" / "dataset"
        dataset.mkdir(parents=True)
        facts = list(progress.track(_write_cases(dataset, site_of, recipe), "drawing scans", total=units))
        (dataset / "kits23.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        with (folder / SITES_FILE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("case", "site_id"), *sorted(site_of.items())])
    patients = Counter(site_of.values())
    counts = {site: patients[site] for site in recipe.looks}
    return GeneratedSet(out.resolve(), "patient", counts, counts)


def _write_cases(dataset: Path, site_of: Mapping[str, str], recipe: _Recipe) -> Iterator[dict[str, Any]]:
    """Draw and write all cases, as many at a time as there are cores and memory; yields their clinical facts in order."""
    largest = max(int(np.prod(grid_of(site, recipe.size).shape)) for site in recipe.looks.values())
    at_a_time = 1 if recipe.masks else max(1, min(VOXELS_AT_A_TIME // largest, os.cpu_count() or 1))
    with ThreadPoolExecutor(at_a_time) as pool:
        # On an error, map cancels the cases that have not begun.
        yield from pool.map(lambda name: _write_case(dataset / name, site_of[name], recipe), sorted(site_of))


def _write_case(folder: Path, site_name: str, recipe: _Recipe) -> dict[str, Any]:
    site, name = recipe.looks[site_name], folder.name
    generator = generator_for(recipe.seed, "patient", name)
    anatomy = _anatomy(name, site, recipe, generator)
    readings = trace(anatomy, site.tracing[0], generator)
    (folder / "instances").mkdir(parents=True)
    labels = anatomy.labels(majority(readings))
    write_nifti(folder / "segmentation.nii.gz", labels, anatomy.grid.affine)
    seen: Counter[str] = Counter()
    for number, kind in enumerate(anatomy.kinds, start=1):
        seen[kind] += 1
        for reader, reading in enumerate(readings, start=1):
            file = folder / "instances" / f"{kind}_instance-{seen[kind]}_annotation-{reader}.nii.gz"
            write_nifti(file, (reading == number).view(np.uint8), anatomy.grid.affine)
    write_nifti(folder / "imaging.nii.gz", draw_scan(anatomy, site, generator), anatomy.grid.affine)
    return {"case_id": name, **_clinical_facts(labels, anatomy, generator)}


def _anatomy(name: str, site: CtSite, recipe: _Recipe, generator: np.random.Generator) -> Anatomy:
    zoom = float(np.exp(np.clip(generator.normal(0, ZOOM_VARIES), -0.16, 0.16)))
    grid = grid_of(site, recipe.size, zoom)
    if not recipe.masks:
        return draw_anatomy(site, grid, generator)
    order = generator_for(recipe.seed, "masks").permutation(len(recipe.masks))
    path = recipe.masks[order[int(name.removeprefix("case_")) % len(order)]]
    return anatomy_of(path, site, grid.spacing_mm, generator)


def _clinical_facts(labels: np.ndarray, anatomy: Anatomy, generator: np.random.Generator) -> dict[str, Any]:
    """Some fields of kits23.json, filled as they might be; the radiographic size (cm) is the tumour's own."""
    tumour = labels == LABELS["tumor"]
    box = box_of(tumour, (0, 0, 0)) if tumour.any() else (slice(0), slice(0), slice(0))
    lengths_mm = [(part.stop - part.start) * step for part, step in zip(box, anatomy.grid.spacing_mm, strict=True)]
    size_cm = round(max(lengths_mm[1:]) / 10, 1)
    subtype = str(generator.choice(SUBTYPES, p=SUBTYPE_SHARES))
    return {
        "age_at_nephrectomy": int(np.clip(generator.normal(60, 12), 18, 90)),
        "gender": str(generator.choice(["male", "female"], p=[0.6, 0.4])),
        "bmi": round(22 + 0.35 * anatomy.body.fat_mm + abs(generator.normal(0, 2)), 2),
        "smoking_history": str(
            generator.choice(["never_smoked", "previous_smoker", "current_smoker"], p=[0.5, 0.35, 0.15])
        ),
        "radiographic_size": size_cm,
        "surgery_type": str(generator.choice(["robotic", "laparoscopic", "open"], p=[0.6, 0.15, 0.25])),
        "surgical_procedure": "radical_nephrectomy" if size_cm > 6 else "partial_nephrectomy",
        "malignant": subtype.endswith("rcc") or subtype == "chromophobe",
        "tumor_histologic_subtype": subtype,
    }
