"""Looks at every case once before planning: is it intact, and what does it add to the fingerprint of its site."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import fingerprint, raw_cases
from nnunet_adpfl.federation.fingerprint import SiteFingerprint
from nnunet_adpfl.federation.preprocessing import RECORDS_FOLDER, in_processes
from nnunet_adpfl.federation.raw_cases import CaseFiles, RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.progress import track

FILE_NAME = "examined.json"
Job = tuple[str, CaseFiles, dict[str, Any], str, int | None]


def examined_fingerprint(
    preprocessed: Path, raw: RawCases, cohort: Cohort, *, pooled: bool, processes: int | None = None
) -> dict[str, Any]:
    """Check all cases; nnU-Net's fingerprint of them, merged over the sites ({} unless pooled).

    The result is remembered in nnUNet_preprocessed/DATASET until a file of the raw data changes.

    Raises InputError naming the first broken case.
    """
    inputs = [raw.dataset_json, {case: raw_cases.state(entry) for case, entry in raw.files.items()}]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    path = preprocessed / RECORDS_FOLDER / FILE_NAME
    known = _remembered(path, digest)
    if known is not None and (known or not pooled):
        return known
    stock.check_labels(raw.dataset_json)
    reader = stock.reader_name(raw.dataset_json, next(iter(raw.files.values()))["images"][0])
    found: dict[str, Any] = {}
    if pooled:
        samples = stock.FOREGROUND_SAMPLES // len(raw.files)
        by_site = {site: [case for case, entry in cohort.cases.items() if entry.site == site] for site in cohort.sites}
        sites = [site_fingerprint(site, cases, raw, reader, samples, processes) for site, cases in by_site.items()]
        found = fingerprint.as_nnunet_fingerprint(fingerprint.merge(sites))
    else:
        jobs: list[Job] = [(case, entry, raw.dataset_json, reader, None) for case, entry in raw.files.items()]
        for _ in track(in_processes(_examine, jobs, processes), "checking the cases", total=len(jobs)):
            pass
    atomic_files.write_json(path, {"inputs": digest, "fingerprint": found})
    return found


def site_fingerprint(
    site: str, cases: Sequence[str], raw: RawCases, reader: str, samples: int, processes: int | None = None
) -> SiteFingerprint:
    """Check and fingerprint one site's cases; this runs at the site, and only its result leaves it.

    Args:
        samples: foreground voxels taken from each case: nnU-Net's 10e7 over the declared number of all cases.
    """
    jobs: list[Job] = [(case, raw.files[case], raw.dataset_json, reader, samples) for case in sorted(cases)]
    return fingerprint.merge(track(in_processes(_examine, jobs, processes), f"fingerprint of {site}", total=len(jobs)))


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


def _examine(job: Job) -> SiteFingerprint:
    """Integrity of one case and, with ``samples``, its fingerprint."""
    case, files, dataset_json, reader, samples = job
    try:
        opened = stock.OpenCase(files, dataset_json, reader)
        problem = opened.problem()
        if problem is None:
            return SiteFingerprint((), {}) if samples is None else fingerprint.of_case(*opened.analysis(samples))
    except stock.CASE_ERRORS as error:
        raise stock.case_error(case, files, error) from None
    raise InputError(f"case {case} is broken ({problem}); mend {files['images'][0]} or its label")


def _remembered(path: Path, digest: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["fingerprint"]) if content["inputs"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
