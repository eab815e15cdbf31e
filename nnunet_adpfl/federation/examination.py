"""Looks at every case once before planning: is it intact, and what does it add to the fingerprint of its site."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import fingerprint, raw_cases
from nnunet_adpfl.federation.fingerprint import SiteFingerprint
from nnunet_adpfl.federation.preprocessing import RECORDS_FOLDER, in_processes
from nnunet_adpfl.federation.raw_cases import CaseFiles, RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.progress import track

FILE_NAME = "examined.json"
Measured = TypeVar("Measured")
Job = tuple[str, CaseFiles, dict[str, Any], str, Callable[[stock.OpenCase], Measured]]


def examined_fingerprint(
    preprocessed: Path, raw: RawCases, cohort: Cohort, *, pooled: bool, processes: int | None = None
) -> dict[str, Any]:
    """Check all cases; nnU-Net's fingerprint of them, merged over the sites ({} unless pooled).

    The result is remembered in nnUNet_preprocessed/DATASET until a file of the raw data changes.

    Raises InputError naming the first broken case.
    """
    digest = state_of(raw)
    path = preprocessed / RECORDS_FOLDER / FILE_NAME
    known = _remembered(path, digest)
    if known is not None and (known or not pooled):
        return known
    stock.check_labels(raw.dataset_json)
    reader = stock.reader_name(raw.dataset_json, next(iter(raw.files.values()))["images"][0])
    if not pooled:
        for _ in examine(list(raw.files), raw, reader, _nothing, "checking the cases", processes):
            pass
        note_checked(preprocessed, digest)
        return {}
    samples = stock.FOREGROUND_SAMPLES // len(raw.files)
    by_site = {site: [case for case, entry in cohort.cases.items() if entry.site == site] for site in cohort.sites}
    sites = [site_fingerprint(site, cases, raw, reader, samples, processes) for site, cases in by_site.items()]
    found = fingerprint.as_nnunet_fingerprint(fingerprint.merge(sites))
    atomic_files.write_json(path, {"inputs": digest, "fingerprint": found})
    return found


def state_of(raw: RawCases) -> str:
    """Digest that changes with dataset.json, the list of cases, and the size or time of any of their files. Stays here."""
    inputs = [raw.dataset_json, {case: raw_cases.state(entry) for case, entry in raw.files.items()}]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def note_checked(preprocessed: Path, digest: str) -> None:
    """Remember that all cases are intact; exact statistics from before are forgotten."""
    atomic_files.write_json(preprocessed / RECORDS_FOLDER / FILE_NAME, {"inputs": digest, "fingerprint": {}})


def site_fingerprint(
    site: str, cases: Sequence[str], raw: RawCases, reader: str, samples: int, processes: int | None = None
) -> SiteFingerprint:
    """Check and fingerprint one site's cases; this runs at the site, and only its result leaves it.

    Args:
        samples: foreground voxels taken from each case: nnU-Net's 10e7 over the declared number of all cases.
    """
    measure = functools.partial(_fingerprint_of_case, samples=samples)
    return fingerprint.merge(examine(sorted(cases), raw, reader, measure, f"fingerprint of {site}", processes))


def examine(
    cases: Sequence[str],
    raw: RawCases,
    reader: str,
    measure: Callable[[stock.OpenCase], Measured],
    title: str,
    processes: int | None = None,
) -> Iterator[Measured]:
    """Check each case and measure it, in order; ``measure`` must be picklable.

    Raises InputError naming the first broken case.
    """
    jobs: list[Job[Measured]] = [(case, raw.files[case], raw.dataset_json, reader, measure) for case in cases]
    return track(in_processes(_examine, jobs, processes), title, total=len(jobs))


def foreground_shares(raw: RawCases, processes: int | None = None) -> dict[str, float]:
    """Case -> share of its voxels that have a label above 0; only the labels are read."""
    reader = stock.reader_name(raw.dataset_json, next(iter(raw.files.values()))["images"][0])
    jobs = [(case, entry, reader) for case, entry in raw.files.items()]
    shares = track(in_processes(_foreground_share, jobs, processes), "reading the labels", total=len(jobs))
    return dict(zip(raw.files, shares, strict=True))


def _foreground_share(job: tuple[str, CaseFiles, str]) -> float:
    case, files, reader = job
    try:
        return stock.foreground_share(files, reader)
    except stock.CASE_ERRORS as error:
        raise stock.case_error(case, files, error) from None


def _nothing(_opened: stock.OpenCase) -> None:
    """All that is wanted is the check."""


def _fingerprint_of_case(opened: stock.OpenCase, *, samples: int) -> SiteFingerprint:
    return fingerprint.of_case(*opened.analysis(samples))


def _examine(job: Job[Measured]) -> Measured:
    case, files, dataset_json, reader, measure = job
    try:
        opened = stock.OpenCase(files, dataset_json, reader)
        problem = opened.problem()
        if problem is None:
            return measure(opened)
    except stock.CASE_ERRORS as error:
        raise stock.case_error(case, files, error) from None
    raise InputError(f"case {case} is broken ({problem}); mend {files['images'][0]} or its label")


def _remembered(path: Path, digest: str) -> dict[str, Any] | None:
    try:
        content = json_files.load(path)
        return dict(content["fingerprint"]) if content["inputs"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
