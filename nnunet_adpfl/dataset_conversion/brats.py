"""Brain tumour MRI of the BraTS and FeTS challenges (adult glioma, 2020 to 2024) -> nnU-Net raw data set.

Four channels, in the order of nnU-Net's own converters: t1, t1 with contrast, t2, flair, whatever the year calls them.
Up to 2023 labels and regions are those of nnU-Net's Dataset137. BraTS 2024 (post-treatment; Dataset226 there) has up to five scans of a
patient: scans BraTS-GLI-00005-100 and -101 are one unit of privacy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion import brats_sites, nifti_case
from nnunet_adpfl.dataset_conversion.challenge_labels import labels_of
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
from nnunet_adpfl.dataset_conversion.source_files import add_once, generated_notice, is_held_out, walk
from nnunet_adpfl.dataset_conversion.source_set import Options, SourceCase, SourceSet
from nnunet_adpfl.errors import InputError

CHANNELS = (("t1", "t1n"), ("t1ce", "t1c", "t1gd"), ("t2", "t2w"), ("flair", "t2f"))  # old and new names
_FILE = re.compile(r"(.+)[_-](t1|t1n|t1ce|t1c|t1gd|t2|t2w|flair|t2f|seg)\.nii(\.gz)?", re.IGNORECASE)
_MISNAMED_LABEL = re.compile(r".+_Segm\.nii(\.gz)?", re.IGNORECASE)  # of BraTS20_Training_355 in some copies
_SCAN = re.compile(r"-\d{3}$")
Regions = Mapping[str, tuple[int, ...] | int]


@dataclass(frozen=True)
class _Challenge:
    """What differs between the years.

    Attributes:
        case: what cases are called.
        label_values: value in the files -> value in nnU-Net; ``classes`` and ``regions`` are in nnU-Net's.
        channel_names: of nnU-Net's converter.
    """

    name: str
    case: re.Pattern[str]
    licence: str
    label_values: Mapping[int, int]
    channel_names: tuple[str, ...] = ("T1", "T1ce", "T2", "Flair")
    classes: Mapping[str, int] = field(default_factory=lambda: {"edema": 1, "necrosis": 2, "enhancing tumor": 3})
    regions: Regions = field(
        default_factory=lambda: {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}
    )
    regions_class_order: tuple[int, ...] = (1, 2, 3)


_OLD = {0: 0, 1: 2, 2: 1, 4: 3}  # necrosis 1, edema 2, enhancing 4
CHALLENGES: Mapping[str, _Challenge] = {
    "brats2020": _Challenge("BraTS2020", re.compile(r"BraTS20_(Training|Validation)_\d{3}", re.I), "terms of BraTS 2020", _OLD),
    "brats2021": _Challenge("BraTS2021", re.compile(r"BraTS2021_\d{5}", re.I), "CC BY 4.0 (TCIA), CC BY-NC 4.0 (Synapse)", _OLD),
    "brats2023": _Challenge(
        "BraTS2023", re.compile(r"BraTS-GLI-\d{5}-\d{3}", re.I), "CC BY-NC 4.0", {0: 0, 1: 2, 2: 1, 3: 3}
    ),
    "brats2024": _Challenge(
        "BraTS2024-BraTS-GLI",
        re.compile(r"BraTS-GLI-\d{5}-\d{3}", re.I),
        "CC BY-NC 4.0, no redistribution",
        {value: value for value in range(5)},
        ("T1", "T1C", "T2W", "T2F"),
        {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        # The six that the challenge evaluates. Painted in this order, later ones over earlier ones.
        {"whole tumor": (1, 2, 3), "SNFH": 2, "tumor core": (1, 3), "NETC": 1, "ET": 3, "RC": 4},
        (2, 2, 1, 1, 3, 4),
    ),
    "fets2022": _Challenge(
        "FeTS2022", re.compile(r"FeTS(2022_\d{5}|2?0?21_(Training|Validation)_\d{3})", re.I), "terms of FeTS", _OLD
    ),
}
REFERENCES = {
    "brats2024": "de Verdier et al. (2024), arXiv:2405.18368",
    "fets2022": "Pati et al. (2022), doi:10.1038/s41467-022-33407-5",
}


def find(converter: str, source: Path, choice: SitesChoice, options: Options) -> SourceSet:
    """A folder with ``CASE/CASE_t1.nii.gz`` and so on, anywhere below; validation cases without labels go to imagesTs.

    Raises InputError for a folder or table that cannot be used.
    """
    challenge = CHALLENGES[converter]
    cases, tests = _cases(source, challenge)
    spelling: dict[str, str] = {}  # one patient whose folders are spelled in two ways is one unit
    unit_of = {case.name: spelling.setdefault(_SCAN.sub("", case.name).casefold(), _SCAN.sub("", case.name)) for case in cases}
    cohort = brats_sites.cohort(converter, source, unit_of, choice)
    kept = tuple(case for case in cases if case.name in cohort.cases)
    convert_case = nifti_case.NiftiConversion(len(CHANNELS), challenge.label_values, options.linked)
    dataset_json = _dataset_json(converter, challenge, source, options)
    return SourceSet(converter, challenge.name, dataset_json, kept, cohort, convert_case, tests, linked=options.linked)


def _dataset_json(converter: str, challenge: _Challenge, source: Path, options: Options) -> dict[str, Any]:
    reference = REFERENCES.get(converter, "Baid et al. (2021), arXiv:2107.02314")
    return {
        "channel_names": {str(index): name for index, name in enumerate(challenge.channel_names)},
        **labels_of(challenge, plain=options.plain_labels),
        "file_ending": nifti_case.ENDING,
        "name": challenge.name,
        **(generated_notice(source) or {"licence": challenge.licence, "reference": reference}),
    }


def _cases(source: Path, challenge: _Challenge) -> tuple[list[SourceCase], tuple[SourceCase, ...]]:
    files: dict[str, dict[str, Path]] = {}  # case in small letters -> kind of file -> file
    names: dict[str, str] = {}
    held_out = set()
    for path in walk(source):
        found = _kind(path, challenge)
        if found is None:
            continue
        name, kind = found
        names.setdefault(name.casefold(), name)
        of_case = files.setdefault(name.casefold(), {})
        add_once(of_case, kind, path)
        if _is_held_out(name, path, source):
            held_out.add(name.casefold())
    if not files:
        raise InputError(
            f"{source} holds no case of {challenge.name} (CASE/CASE_t1.nii.gz and so on): give the folder that it was unpacked into"
        )
    tests = {key for key in held_out if "seg" not in files[key]}
    labelled = sorted(held_out - tests)
    if labelled:
        raise InputError(
            f"{names[labelled[0]]} lies in a validation or test folder and has a label ({len(labelled)} such cases): these do not "
            "train; move them to a training folder if they shall, or remove the labels"
        )
    if tests:
        progress.note(f"{len(tests)} cases of the validation or test set go to imagesTs, to be predicted")
    cases = [_case(names[key], files[key], source) for key in sorted(files.keys() - tests)]
    return cases, tuple(_case(names[key], files[key], source, labelled=False) for key in sorted(tests))


def _is_held_out(name: str, path: Path, source: Path) -> bool:
    """By the case's name where it tells, else by its nearest folder that does."""
    if "training" in name.casefold() or "validation" in name.casefold():
        return "validation" in name.casefold()
    return is_held_out(path, source)


def _kind(path: Path, challenge: _Challenge) -> tuple[str, str] | None:
    """Case and kind (a channel's old name, or ``seg``) of a file, or None where it is none of a case."""
    match = _FILE.fullmatch(path.name)
    if match and challenge.case.fullmatch(match.group(1)):
        kind = match.group(2).lower()
        return match.group(1), next((channel[0] for channel in CHANNELS if kind in channel), kind)
    if _MISNAMED_LABEL.fullmatch(path.name) and challenge.case.fullmatch(path.parent.name):
        return path.parent.name, "seg"
    return None


def _case(name: str, files: Mapping[str, Path], source: Path, *, labelled: bool = True) -> SourceCase:
    """A file that is missing keeps the name that it should have, for the message."""
    images = tuple(files.get(channel[0], source / name / f"{name} {channel[0]}") for channel in CHANNELS)
    return SourceCase(name, images, files.get("seg", source / name / f"{name} seg") if labelled else None)
