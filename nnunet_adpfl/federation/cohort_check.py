"""`adpfl cohort --check`: is the cohort what the privacy claim takes it for, and how do the sites differ.

A patient under two names is protected half as well as promised, and nobody notices in training: so images are compared
by their voxels. Everything here looks at single patients exactly. It is for the eyes of the site and leaves it in no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_adpfl import folds
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.preprocessing import in_processes
from nnunet_adpfl.federation.raw_cases import CaseFiles, RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.progress import track

SHOWN = 5


@dataclass(frozen=True)
class CaseFacts:
    """What one case looks like.

    Attributes:
        problem: why it cannot be used, or None; then the rest is there.
        digest: of the voxels of all channels and the spacing; equal for the same image under another name or packing.
        shape: slices x rows x columns.
        intensities: mean and standard deviation of each channel, over voxels that differ from the channel's lowest value (air, or the
            outside of a stripped skull).
        values: labels that occur.
        foreground: share of voxels with a label.
    """

    problem: str | None
    digest: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    intensities: tuple[tuple[float, float], ...] = ()
    values: tuple[int, ...] = ()
    foreground: float = 0.0


@dataclass(frozen=True)
class CohortFacts:
    """Result of the check.

    Attributes:
        problems: one line each; empty where the cohort is fit for training.
        sites: site -> its figures, JSON-ready.
    """

    unit_kind: str
    problems: tuple[str, ...]
    sites: Mapping[str, Mapping[str, Any]]


def check(raw: RawCases, cohort: Cohort, split_folders: Sequence[Path], processes: int | None = None) -> CohortFacts:
    """Read every case once, on all cores, and compare.

    Args:
        split_folders: where splits_final.json may lie; the first that has one is checked.

    Raises InputError where no reader of nnU-Net takes the images.
    """
    unknown = sorted(set(raw.files) ^ set(cohort.cases))
    reader = stock.reader_name(raw.dataset_json, next(iter(raw.files.values()))["images"][0])
    known = [case for case in raw.files if case in cohort.cases]
    jobs = [(raw.files[case], raw.dataset_json, reader) for case in known]
    facts = dict(zip(known, track(in_processes(_facts, jobs, processes), "checking the cohort", total=len(jobs)), strict=True))
    split, split_problems = _split(split_folders, cohort)
    problems = [
        *([f"cohort.json and the files do not name the same cases ({len(unknown)}: {_some(unknown)})"] if unknown else []),
        *(f"case {case} cannot be used: {fact.problem}" for case, fact in facts.items() if fact.problem is not None),
        *split_problems,
        *_duplicates(facts, cohort, split),
    ]
    sites = {site: _site(site, facts, cohort, raw.dataset_json) for site in cohort.sites}
    return CohortFacts(cohort.unit_kind, tuple(problems), sites)


def _facts(job: tuple[CaseFiles, dict[str, Any], str]) -> CaseFacts:
    try:
        opened = stock.OpenCase(*job)
        problem = opened.problem()
    except stock.CASE_ERRORS as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if problem is not None:
        return CaseFacts(problem)
    images, label = np.ascontiguousarray(opened.images), opened.label
    digest = hashlib.sha256(repr((images.shape, np.round(opened.spacing_mm, 4).tolist())).encode())
    digest.update(images.astype(np.float32, copy=False).data)
    inside = [channel[channel != channel.min()] for channel in images]
    return CaseFacts(
        None,
        digest.hexdigest(),
        tuple(images.shape[1:]),
        opened.spacing_mm,
        tuple((float(voxels.mean()), float(voxels.std())) if voxels.size else (float(images.min()), 0.0) for voxels in inside),
        tuple(int(value) for value in np.unique(label) if value > 0),
        float((label > 0).mean()),
    )


def _split(split_folders: Sequence[Path], cohort: Cohort) -> tuple[list[folds.Split], list[str]]:
    for folder in split_folders:
        if (folder / folds.FILE_NAME).is_file():
            try:
                return folds.load_splits(folder, cohort), []
            except InputError as error:
                return [], [str(error)]
    return [], []


def _duplicates(facts: Mapping[str, CaseFacts], cohort: Cohort, splits: Sequence[folds.Split]) -> list[str]:
    """Equal images: of two units, at two sites, or on both sides of a fold."""
    by_digest: dict[str, list[str]] = {}
    for case, fact in facts.items():
        if fact.digest:
            by_digest.setdefault(fact.digest, []).append(case)
    problems = []
    for cases in by_digest.values():
        if len(cases) < 2:
            continue
        units = sorted({cohort.cases[case].unit for case in cases})
        sites = sorted({cohort.cases[case].site for case in cases})
        crossing = [n for n, fold in enumerate(splits) if set(cases) & set(fold["train"]) and set(cases) & set(fold["val"])]
        where = f", at sites {' and '.join(sites)}" if len(sites) > 1 else ""
        where += f", training and validating in fold {crossing[0]}" if crossing else ""
        of_units = f" of {len(units)} {cohort.unit_kind}s" if len(units) > 1 else f" of one {cohort.unit_kind}"
        problems.append(f"the same image under {len(cases)} names{of_units}{where}: {_some(cases)}")
    return problems


def _site(site: str, facts: Mapping[str, CaseFacts], cohort: Cohort, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    of_site = [fact for case, fact in facts.items() if cohort.cases[case].site == site and fact.problem is None]
    figures: dict[str, Any] = {
        "units": len(cohort.units(site)),
        "cases": sum(entry.site == site for entry in cohort.cases.values()),
        "most_cases_of_a_unit": max(map(len, cohort.cases_by_unit(site).values())),
    }
    if not of_site:
        return figures
    shapes, spacings = np.array([fact.shape for fact in of_site]), np.array([fact.spacing_mm for fact in of_site])
    figures["shape"] = _range(shapes)
    figures["spacing_mm"] = _range(spacings)
    figures["foreground_share"] = round(float(np.mean([fact.foreground for fact in of_site])), 5)
    values = sorted({value for fact in of_site for value in fact.values})
    figures["cases_with_label"] = {str(value): sum(value in fact.values for fact in of_site) for value in values}
    names = list(dataset_json["channel_names"].values())
    figures["intensities"] = {
        name: {"mean": _rounded(np.mean([m for m, _ in channel])), "standard_deviation": _rounded(np.mean([s for _, s in channel]))}
        for name, channel in zip(names, zip(*(fact.intensities for fact in of_site), strict=True), strict=True)
    }
    return figures


def _range(values: np.ndarray) -> dict[str, list[float]]:
    found = {"median": np.median(values, axis=0), "lowest": values.min(axis=0), "highest": values.max(axis=0)}
    return {name: [_rounded(value) for value in row] for name, row in found.items()}


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
