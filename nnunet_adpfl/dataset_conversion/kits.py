"""Kidney tumour CT of the KiTS challenges (19, 21, 23) -> nnU-Net raw data set.

One scan per patient, so that the case is the patient. The challenges publish no sites; a table of those of the first
300 cases exists (FLamby's), and later cases need --drop-unassigned or --unassigned-site. Labels and regions of KiTS23
are those of nnU-Net's own converter (Dataset220); the files are oriented slice first, so that nnU-Net's reader for that
is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion import nifti_case
from nnunet_adpfl.dataset_conversion.challenge_labels import labels_of
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, by_table
from nnunet_adpfl.dataset_conversion.source_files import add_once, generated_notice, walk
from nnunet_adpfl.dataset_conversion.source_set import Options, SourceCase, SourceSet
from nnunet_adpfl.errors import InputError

_CASE = re.compile(r"case_\d{5}", re.IGNORECASE)
_IMAGE = re.compile(r"imaging\.nii(\.gz)?", re.IGNORECASE)
# Of KiTS19 and 23; and of KiTS21, which offers several ways to merge its annotators.
_LABELS = (
    re.compile(r"segmentation\.nii(\.gz)?", re.IGNORECASE),
    re.compile(r"aggregated_MAJ_seg\.nii(\.gz)?", re.IGNORECASE),
)


@dataclass(frozen=True)
class _Challenge:
    """What differs between the challenges."""

    name: str
    classes: Mapping[str, int]
    regions: Mapping[str, tuple[int, ...] | int]
    regions_class_order: tuple[int, ...]
    unlabelled_from: int | None  # number of the first case that the challenge kept for its test


CHALLENGES: Mapping[str, _Challenge] = {
    "kits19": _Challenge("KiTS2019", {"kidney": 1, "tumor": 2}, {"kidney": (1, 2), "tumor": 2}, (1, 2), 210),
    "kits23": _Challenge(
        "KiTS2023",
        {"kidney": 1, "tumor": 2, "cyst": 3},
        {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": 2},
        (1, 3, 2),
        None,
    ),
}
LICENCE = "CC BY-NC-SA 4.0"
REFERENCE = "Heller et al. (2021), doi:10.1016/j.media.2020.101821; Heller et al. (2023), arXiv:2307.01984; kits-challenge.org"


def find(converter: str, source: Path, choice: SitesChoice, options: Options) -> SourceSet:
    """A folder with ``case_00000/imaging.nii.gz`` and ``segmentation.nii.gz`` (or KiTS21's aggregated labels).

    Raises InputError for a folder or table that cannot be used.
    """
    challenge = CHALLENGES[converter]
    cases, tests = _cases(source, challenge)
    unit_of = {case.name: case.name for case in cases}
    cohort = by_table(unit_of, "patient", choice)
    kept = tuple(case for case in cases if case.name in cohort.cases)
    values = {value: value for value in (0, *challenge.classes.values())}
    convert_case = nifti_case.NiftiConversion(1, values, options.linked)
    dataset_json = _dataset_json(challenge, source, options)
    return SourceSet(converter, challenge.name, dataset_json, kept, cohort, convert_case, tests, linked=options.linked)


def _dataset_json(challenge: _Challenge, source: Path, options: Options) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        **labels_of(challenge, plain=options.plain_labels),
        "file_ending": nifti_case.ENDING,
        "name": challenge.name,
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        **(generated_notice(source) or {"licence": LICENCE, "reference": REFERENCE}),
    }


def _cases(source: Path, challenge: _Challenge) -> tuple[list[SourceCase], tuple[SourceCase, ...]]:
    images: dict[str, Path] = {}
    labels: dict[int, dict[str, Path]] = {}  # rank -> case -> file
    for path in walk(source):
        case = next((part.lower() for part in reversed(path.parts[:-1]) if _CASE.fullmatch(part)), None)
        if case is None or path.parent.name.lower() != case:
            continue
        if _IMAGE.fullmatch(path.name):
            add_once(images, case, path)
        for rank, pattern in enumerate(_LABELS):
            if pattern.fullmatch(path.name):
                add_once(labels.setdefault(rank, {}), case, path)
    if not images and not labels:
        raise InputError(f"{source} holds no case_00000/imaging.nii.gz: give the folder of the challenge's repository, with its images")
    twice = sorted(set.intersection(*map(set, labels.values()))) if len(labels) > 1 else []
    if twice:
        raise InputError(
            f"{twice[0]} has labels of two challenges ({labels[0][twice[0]]} and {labels[1][twice[0]]}): give the folder of one of them"
        )
    label_of = {case: path for found in labels.values() for case, path in found.items()}
    first_test = challenge.unlabelled_from
    tests = {case for case in images if first_test is not None and int(case[-5:]) >= first_test and case not in label_of}
    cases = [
        SourceCase(case, (images.get(case, source / case / "imaging.nii.gz"),), label_of.get(case, source / case / "segmentation.nii.gz"))
        for case in sorted({*images, *label_of} - tests)
    ]
    if tests:
        progress.note(f"{len(tests)} cases of the challenge's test set go to imagesTs, to be predicted")
    return cases, tuple(SourceCase(case, (images[case],), None) for case in sorted(tests))
