"""A made-up brain tumour cohort in the layout of BraTS 2024 (treated gliomas): folders, file names, workbook, follow-ups.

No image of a person goes into it. Sites differ in scanners, patients and readers, by as much as asked for; see
``mri_site``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion.synthetic import generated_set
from nnunet_adpfl.dataset_conversion.synthetic.brain import Brain, BrainGrid, draw_brain
from nnunet_adpfl.dataset_conversion.synthetic.brain_mri import Scanner, draw_channels
from nnunet_adpfl.dataset_conversion.synthetic.brats_table import TABLE_FILE, Row, write_workbook
from nnunet_adpfl.dataset_conversion.synthetic.generated_set import GeneratedSet
from nnunet_adpfl.dataset_conversion.synthetic.glioma import Glioma, depths_at, draw_glioma, traced
from nnunet_adpfl.dataset_conversion.synthetic.mri_site import MANUFACTURERS, MriSite, mri_sites
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for
from nnunet_adpfl.dataset_conversion.synthetic.volumes import write_nifti

DEFAULT_SIZE = (64, 80, 64)  # BraTS 2024 has 182 x 218 x 182 voxels of 1 mm
SMALLEST_SIDE, LARGEST_SIDE = 32, 256
PATIENTS_BY_SCANS = (171, 407, 65, 36, 52)  # in BraTS 2024: patients with 1, 2, ... 5 scans
FIRST_PATIENT, FIRST_SCAN = 5, 100
WITHOUT_IMAGES = 0.1  # rows of the table for other parts of the set, as a share of the patients
IMAGES_FOLDER = "training_data1_v2"
READERS = 4  # a site has this many who draw and as many who approve
VOXELS_AT_A_TIME = 16_000_000  # in all threads together: a scan needs about 120 bytes for each
DIAGNOSES = ("Glioblastoma", "Astrocytoma", "Oligodendroglioma")
NOTICE = "Made-up volumes, drawn by a program; no patient, no scan. Not BraTS, only its layout.\n"


@dataclass(frozen=True)
class _Patient:
    """What stays the same at all of a patient's timepoints; the age is in years, the atrophy from 0 to 1."""

    name: str
    site: str
    look: MriSite
    age: float
    sex: str
    diagnosis: str
    atrophy: float


def generate(
    out: Path,
    *,
    units: int,
    sites: int = 4,
    heterogeneity: float = 0.5,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> GeneratedSet:
    """Write ``units`` patients with one to five scans each; the same arguments give the same files.

    Args:
        heterogeneity: 0 (sites alike and of equal size) to 1 (as different as real ones).
        size: voxels to the left, front and head; default 64 x 80 x 64. The field of view is always that of BraTS 2024,
            182 x 218 x 182 mm.

    Raises InputError for arguments out of range, and when ``out`` exists and is not empty. On any error ``out`` is left
    as it was.
    """
    generated_set.check_arguments(units, "patient", sites, heterogeneity, seed)
    size = size or DEFAULT_SIZE
    generated_set.check_size(size, 3, SMALLEST_SIDE, LARGEST_SIDE)
    grid = BrainGrid((size[0], size[1], size[2]))
    looks = mri_sites(sites, heterogeneity, seed)
    names = [f"BraTS-GLI-{FIRST_PATIENT + number:05d}" for number in range(units)]
    site_of = generated_set.deal_units(names, {name: site.quantity[0] for name, site in looks.items()}, seed)
    scans_of = _deal_scans(site_of, looks, seed)
    with generated_set.new_set(out, NOTICE) as folder:
        (folder / IMAGES_FOLDER).mkdir()

        def write(name: str) -> list[Row]:
            patient = _draw_patient(name, site_of[name], looks[site_of[name]], seed)
            return _write_patient(folder / IMAGES_FOLDER, patient, scans_of[name], grid, seed)

        rows = [row for of_patient in _side_by_side(write, names, grid) for row in of_patient]
        write_workbook(folder / TABLE_FILE, rows + _rows_without_images(units, looks, seed))
    patients, images = Counter(site_of.values()), Counter(row.site for row in rows)
    return GeneratedSet(
        out.resolve(), "patient", {site: patients[site] for site in looks}, {site: images[site] for site in looks}
    )


def _deal_scans(site_of: Mapping[str, str], looks: Mapping[str, MriSite], seed: int) -> dict[str, int]:
    """Patient -> number of scans. The frequencies are BraTS 2024's; sites that like to repeat get more of the repeats."""
    generator = generator_for(seed, "scans")
    counts = generated_set.apportioned(len(site_of), np.array(PATIENTS_BY_SCANS, dtype=float))
    numbers = np.repeat(np.arange(len(counts), 0, -1), counts[::-1])
    wish = {name: generator.random() + looks[site].repeats[0] for name, site in site_of.items()}
    return dict(zip(sorted(wish, key=wish.__getitem__, reverse=True), numbers.tolist(), strict=True))


def _side_by_side(write: Callable[[str], list[Row]], names: list[str], grid: BrainGrid) -> Iterator[list[Row]]:
    """Results in the order of ``names``. NumPy and gzip let go of the interpreter's lock in most of the work."""
    at_a_time = max(1, min(VOXELS_AT_A_TIME // math.prod(grid.shape), os.cpu_count() or 1))
    with ThreadPoolExecutor(at_a_time) as pool:
        yield from progress.track(pool.map(write, names), "drawing patients", total=len(names))


def _write_patient(folder: Path, patient: _Patient, scans: int, grid: BrainGrid, seed: int) -> list[Row]:
    """Draw and write a patient's scans; returns their rows. Brain and tumour are the same in all of them."""
    generator = generator_for(seed, "patient", patient.name)
    brain = draw_brain(grid, patient.atrophy, generator)
    glioma = draw_glioma(brain, grid, patient.look, generator)
    return [_write_scan(folder, patient, brain, glioma, timepoint, grid, seed) for timepoint in range(scans)]


def _write_scan(
    folder: Path, patient: _Patient, brain: Brain, glioma: Glioma, timepoint: int, grid: BrainGrid, seed: int
) -> Row:
    scan = f"{patient.name}-{FIRST_SCAN + timepoint}"
    generator = generator_for(seed, "scan", scan)
    row = _row(scan, patient, "Train", generator)
    depths = depths_at(glioma, brain, grid, patient.look, timepoint, generator)
    labels = traced(depths, brain, grid, patient.look, generator)
    scanner = Scanner(row.manufacturer, row.field_tesla)
    channels = draw_channels(brain, depths, patient.age, scanner, patient.look, grid, generator)
    (folder / scan).mkdir()
    for channel, data in {**channels, "seg": labels}.items():
        write_nifti(folder / scan / f"{scan}-{channel}.nii.gz", data, grid.affine)
    return row


def _draw_patient(name: str, site: str, look: MriSite, seed: int) -> _Patient:
    generator = generator_for(seed, "facts", name)
    age = float(np.clip(round(generator.normal(look.age[0], 12)), 19, 88))
    return _Patient(
        name=name,
        site=site,
        look=look,
        age=age,
        sex=str(generator.choice(["F", "M"], p=[0.4, 0.6])),
        diagnosis=str(generator.choice(DIAGNOSES, p=[0.8, 0.12, 0.08] if age > 45 else [0.4, 0.35, 0.25])),
        atrophy=float(np.clip((age - 35) / 50 + 0.15 * generator.standard_normal(), 0, 1)),
    )


def _row(scan: str, patient: _Patient, part: str, generator: np.random.Generator) -> Row:
    initial = patient.site[0]
    return Row(
        scan=scan,
        site=patient.site,
        site_number=int(generator.integers(1_000_000, 2_000_000)),
        annotator=None
        if generator.random() < 0.2
        else f"A{initial}{generator.integers(READERS)}",  # gaps as in the real one
        approver=f"P{initial}{generator.integers(READERS)}",
        part=part,
        field_tesla=3.0 if generator.random() < patient.look.high_field[0] else 1.5,
        manufacturer=str(generator.choice(MANUFACTURERS, p=patient.look.manufacturers)),
        age=patient.age,
        sex=patient.sex,
        diagnosis=patient.diagnosis,
    )


def _rows_without_images(units: int, looks: Mapping[str, MriSite], seed: int) -> list[Row]:
    """Patients of the validation and the additional training part: the table has them, the training folder has not."""
    rows = []
    for number in range(max(2, round(WITHOUT_IMAGES * units))):
        name = f"BraTS-GLI-{FIRST_PATIENT + units + number:05d}"
        generator = generator_for(seed, "without images", name)
        site = list(looks)[generator.integers(len(looks))]
        patient = _draw_patient(name, site, looks[site], seed)
        part = ("Validation", "Train-additional")[number % 2]
        rows.append(_row(f"{name}-{FIRST_SCAN}", patient, part, generator))
    return rows
