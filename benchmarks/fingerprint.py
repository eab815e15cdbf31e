"""How far a noisy fingerprint moves nnU-Net's plan away from the pooled one, and what it costs the training.

Patients of several kinds are drawn for three sites; the pooled plan and the noisy one are made from the same patients
by nnU-Net's own planner. Noise 0.001 shows what the bins alone do; rows without noise compare pooled plans of different
patients of the same kind: what chance moves anyway. The kinds are made up after published figures; with ``--dataset
DIR``, a raw nnU-Net data set, real patients are measured and drawn with replacement.

    python benchmarks/fingerprint.py --json fingerprint.json [--dataset nnUNet_raw/Dataset004_Hippocampus]
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_adpfl import atomic_files, folders
from nnunet_adpfl.federation import denoising, fingerprint, public_bins, raw_cases
from nnunet_adpfl.federation.plans import make_plans
from nnunet_adpfl.federation.raw_cases import RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.privacy import accounting, mechanism
from nnunet_adpfl.privacy.mechanism import Permit

SITES, VOXELS = 3, 4000
Generator = np.random.Generator


@dataclass(frozen=True)
class Patient:
    """What nnU-Net's analysis tells of one patient's only case."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    intensities: tuple[np.ndarray, ...]
    relative: float


def kidney_ct(generator: Generator) -> Patient:
    """Abdominal CT: slices of 0.5 to 5 mm, pixels of 0.58 to 0.98 mm, 300 to 650 mm long; kidneys and tumours in HU."""
    slice_mm = generator.choice([0.5, 0.8, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0], p=[0.05, 0.05, 0.25, 0.05, 0.1, 0.05, 0.25, 0.2])
    pixel_mm = 0.78125 if generator.random() < 0.2 else float(np.clip(generator.normal(0.79, 0.08), 0.58, 0.98))
    long_mm = float(np.clip(generator.lognormal(math.log(420), 0.2), 300, 650))
    kidney = generator.normal(generator.normal(130, 35), 55, VOXELS)
    tumour = generator.normal(generator.normal(50, 25), 45, VOXELS)
    voxels = np.where(generator.random(VOXELS) < generator.uniform(0.05, 0.5), tumour, kidney)
    return Patient((round(long_mm / slice_mm), 512, 512), (float(slice_mm), pixel_mm, pixel_mm), (np.rint(voxels),), 1.0)


def brain_mri(generator: Generator) -> Patient:
    """Skull-stripped brains at 1 mm, four channels, cropped to some 40 % of the volume."""
    shape = tuple(round(generator.normal(mean, 8)) for mean in (140, 172, 138))
    return Patient(shape, (1.0, 1.0, 1.0), (np.ones(1),) * 4, float(np.clip(generator.normal(0.39, 0.05), 0.2, 0.7)))


def prostate_mri(generator: Generator) -> Patient:
    """Thick slices: 3 to 4 mm against 0.3 to 0.75 mm; the case in which nnU-Net reads a 10th percentile."""
    slice_mm = float(generator.choice([2.2, 3.0, 3.3, 3.6, 4.0], p=[0.08, 0.35, 0.12, 0.35, 0.1]))
    pixel_mm = float(generator.choice([0.3125, 0.4, 0.5, 0.5625, 0.625, 0.75], p=[0.1, 0.15, 0.3, 0.1, 0.25, 0.1]))
    side = round(generator.normal(185, 15) / pixel_mm)
    return Patient((int(generator.integers(15, 28)), side, side), (slice_mm, pixel_mm, pixel_mm), (np.ones(1),), 1.0)


def photograph(generator: Generator) -> Patient:
    """Dermoscopy of several cameras; the reader's spacing is the same for all."""
    shape = [(1, 450, 600), (1, 768, 1024), (1, 1024, 1024)][generator.choice(3, p=[0.6, 0.25, 0.15])]
    return Patient(shape, (999.0, 1.0, 1.0), (np.ones(1),) * 3, 1.0)


KINDS: dict[str, tuple[Callable[[Generator], Patient], list[str], str]] = {
    "kidney CT": (kidney_ct, ["CT"], ".nii.gz"),
    "brain MRI": (brain_mri, ["T1", "T1c", "T2", "FLAIR"], ".nii.gz"),
    "prostate MRI": (prostate_mri, ["T2"], ".nii.gz"),
    "skin photographs": (photograph, ["R", "G", "B"], ".png"),
}


def real_kind(folder: Path) -> tuple[Callable[[Generator], Patient], list[str], str]:
    """Patients of a raw data set, measured by nnU-Net; drawn with replacement."""
    raw = raw_cases.load(folder)
    reader = stock.declared_reader_name(raw.dataset_json)
    patients = []
    for files in raw.files.values():
        shape, spacing, intensities, relative = stock.OpenCase(files, raw.dataset_json, reader).analysis(VOXELS)
        patients.append(Patient(tuple(shape), tuple(map(float, spacing)), tuple(map(np.asarray, intensities)), relative))
    channels = list(raw.dataset_json["channel_names"].values())
    return lambda generator: patients[generator.integers(len(patients))], channels, raw.dataset_json["file_ending"]


def plan_of(name: str, found: dict[str, Any], dataset_json: dict[str, Any], cases: int) -> dict[str, Any]:
    """The figures of nnU-Net's plan that a run depends on; of 3d_fullres where there is one."""
    plans = make_plans(name, RawCases(dataset_json, {}), found, declared_cases=cases)
    settings = plans["configurations"].get("3d_fullres", plans["configurations"]["2d"])
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    is_ct = settings["normalization_schemes"][0] == stock.CT
    return {
        "spacing_mm": settings["spacing"], "patch_size": list(settings["patch_size"]), "batch_size": settings["batch_size"],
        "stages": settings["architecture"]["arch_kwargs"]["n_stages"], "mask": settings["use_mask_for_norm"],
        "clip_hu": [properties["percentile_00_5"], properties["percentile_99_5"]] if is_ct else [0.0, 0.0],
    }  # fmt: skip


def compared(found: dict[str, Any], pooled: dict[str, Any]) -> dict[str, Any]:
    """Errors of one plan against the pooled one."""
    spacing = max(abs(a / b - 1) for a, b in zip(found["spacing_mm"], pooled["spacing_mm"], strict=True))
    same = {key: found[key] == pooled[key] for key in ("patch_size", "batch_size", "stages", "mask")}
    volume = abs(math.log2(math.prod(found["patch_size"]) / math.prod(pooled["patch_size"])))
    clip = [abs(a - b) for a, b in zip(found["clip_hu"], pooled["clip_hu"], strict=True)]
    return {"spacing_error": spacing, **same, "log2_patch_volume": volume, "low_error_hu": clip[0], "high_error_hu": clip[1]}


def measured(kind: str, patients_per_site: int, noises: Sequence[float], repeats: int, data: Any) -> list[dict[str, Any]]:
    """Rows of one kind and size: one for every noise, over ``repeats`` fresh cohorts with fresh noise each."""
    draw, channels, ending = data
    units = SITES * patients_per_site
    rows: dict[float | None, list[dict[str, Any]]] = {noise: [] for noise in (None, *noises)}
    names = {str(index): name for index, name in enumerate(channels)}
    dataset_json = {"channel_names": names, "labels": {"background": 0, "target": 1}, "numTraining": units, "file_ending": ending}
    name = "Dataset900_Drawn"
    atomic_files.write_json(folders.base_folder("nnUNet_raw") / name / "dataset.json", dataset_json)
    asked = public_bins.questions(dataset_json, stock.declared_reader_name(dataset_json))
    others: dict[str, Any] | None = None
    for repeat in range(repeats + 1):
        generator = np.random.default_rng([repeat, patients_per_site, len(kind)])
        patients = [draw(generator) for _ in range(units)]
        exact = [fingerprint.of_case(p.shape, p.spacing_mm, p.intensities, p.relative) for p in patients]
        pooled = plan_of(name, fingerprint.as_nnunet_fingerprint(fingerprint.merge(exact)), dataset_json, units)
        if others is not None:
            rows[None].append({**compared(others, pooled), "drowned": 0.0, "plan": others})
        others = pooled
        vectors = np.stack([asked.answer(p.shape, p.spacing_mm, p.intensities, p.relative) for p in patients])
        for noise in noises if repeat < repeats else ():
            parts = np.split(vectors, SITES)
            total = sum(mechanism.released_sum(part, Permit({0: noise}), generator) for part in parts)
            answers = denoising.answers(asked, np.asarray(total), units, noise * math.sqrt(SITES))
            found = plan_of(name, answers.fingerprint(), dataset_json, units)
            rows[noise].append({**compared(found, pooled), "drowned": len(answers.drowned) / len(asked.asked), "plan": found})
    return [{"kind": kind, "patients_per_site": patients_per_site, "noise_multiplier": z, **_summary(rows[z])} for z in rows]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    shares = {f"{key}_equal": statistics.mean(row[key] for row in rows) for key in ("patch_size", "batch_size", "stages", "mask")}
    medians = {
        f"median_{key}": round(statistics.median(row[key] for row in rows), 4)
        for key in ("spacing_error", "log2_patch_volume", "low_error_hu", "high_error_hu")
    }
    worst = {f"worst_{key}": round(max(row[key] for row in rows), 4) for key in ("spacing_error", "log2_patch_volume", "high_error_hu")}
    drowned = statistics.mean(row["drowned"] for row in rows)
    return {**shares, **medians, **worst, "drowned": round(drowned, 3), "repeats": len(rows), "example": rows[0]["plan"]}


def costs(sizes: Sequence[int], noises: Sequence[float]) -> list[dict[str, Any]]:
    """Noise multiplier of a training of 200 + 20 steps at q 0.25 and epsilon 8, with and without a noisy fingerprint."""
    rows = []
    for size in sizes:
        delta = 10.0 ** math.floor(math.log10(1 / (10 * SITES * size)))
        for noise in (None, *noises):
            release = [] if noise is None else [accounting.gaussian(noise)]
            planned = functools.partial(_events, release, 220)
            z = accounting.calibrate(planned, 8.0, delta)
            taken = accounting.epsilon(_events(release, 200, z), delta)
            alone = accounting.epsilon(release, delta)
            rows.append(
                {"patients_per_site": size, "delta": delta, "fingerprint_noise": noise, "training_noise": z,
                 "epsilon_taken": round(taken, 3), "epsilon_of_fingerprint_alone": round(alone, 3)}
            )  # fmt: skip
    return rows


def _events(release: list[dict[str, Any]], steps: int, noise: float) -> list[dict[str, Any]]:
    return [*release, accounting.poisson_gaussian(0.25, noise, steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, help="a raw nnU-Net data set to draw real patients from")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--noises", type=float, nargs="+", default=[0.001, 1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", help="names; default: all")
    arguments = parser.parse_args()
    kinds = dict(KINDS)
    if arguments.dataset:
        kinds[arguments.dataset.name] = real_kind(arguments.dataset)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_raw"] = folder  # noqa: SIM112  (nnU-Net's variable)
        for kind in arguments.kinds or kinds:
            for size in arguments.sizes:
                rows += measured(kind, size, arguments.noises, arguments.repeats, kinds[kind])
                for row in rows[-len(arguments.noises) - 1 :]:
                    print(json.dumps({key: value for key, value in row.items() if key != "example"}), flush=True)
    paid = [noise for noise in arguments.noises if noise >= 0.5]
    atomic_files.write_json(arguments.json, {"plans": rows, "costs": costs(arguments.sizes, paid)})


if __name__ == "__main__":
    main()
