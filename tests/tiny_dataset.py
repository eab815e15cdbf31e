"""A tiny data set for tests: bright balls in noise, a few cases per patient, several sites."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from nnunet_adpfl import atomic_files
from nnunet_adpfl.cohort import Cohort, CohortEntry

NAME = "Dataset801_Tiny"


def write_raw(
    raw: Path, *, name: str = NAME, patients: int = 12, sites: int = 2, side: int = 24, flat: bool = False, regions: bool = False
) -> Cohort:
    """Write a raw nnU-Net data set with cohort.json; every third patient has two cases."""
    folder = raw / name
    generator = np.random.default_rng(7)
    entries: dict[str, CohortEntry] = {}
    for patient in range(patients):
        for visit in range(2 if patient % 3 == 0 else 1):
            case = f"case_{patient:02d}_{visit}"
            entries[case] = CohortEntry(f"patient_{patient:02d}", f"site-{'abcdef'[patient % sites]}")
            _write_case(folder, case, generator, side, flat)
    labels: dict[str, object] = {"background": 0, "ball": 1, "core": 2}
    dataset: dict[str, object] = {
        "channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(entries), "file_ending": ".nii.gz"
    }  # fmt: skip
    if regions:
        dataset["labels"] = {"background": 0, "ball": [1, 2], "core": 2}
        dataset["regions_class_order"] = [1, 2]
    atomic_files.write_json(folder / "dataset.json", dataset)
    cohort = Cohort("patient", entries)
    cohort.save(folder)
    return cohort


def _write_case(folder: Path, case: str, generator: np.random.Generator, side: int, flat: bool) -> None:
    shape = (side, side, 1) if flat else (side, side, side)
    grid = np.stack(np.meshgrid(*[np.arange(s) for s in shape], indexing="ij"))
    centre = np.array([generator.uniform(side * 0.35, side * 0.65) for _ in range(3)])
    if flat:
        centre[2] = 0
    distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0))
    radius = generator.uniform(side * 0.18, side * 0.3)
    label = (distance < radius).astype(np.uint8) + (distance < radius / 2).astype(np.uint8)
    image = generator.normal(0, 0.3, shape) + label
    for sub, suffix, data in (("imagesTr", "_0000", image.astype(np.float32)), ("labelsTr", "", label)):
        path = folder / sub / f"{case}{suffix}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(data, np.eye(4)).to_filename(path)
