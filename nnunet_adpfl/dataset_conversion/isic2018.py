"""ISIC 2018 Task 1 (dermoscopy, 2,594 images and the official validation and test sets) -> nnU-Net raw data set.

The set names neither patients nor lesions nor sites: every image is a unit of its own (``case``), which is weaker than
a promise to patients. A table of sites (and patients) can be made from the ISIC archive and given with --sites.
"""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion import photo_case
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, by_table
from nnunet_adpfl.dataset_conversion.source_files import NOT_OURS, add_once, walk
from nnunet_adpfl.dataset_conversion.source_set import Options, SourceCase, SourceSet
from nnunet_adpfl.errors import InputError

NAME = "ISIC2018"
LICENCE = "CC BY-NC 4.0"
REFERENCE = "Codella et al. (2018), arXiv:1902.03368; Tschandl et al. (2018), doi:10.1038/sdata.2018.161"
_PARTS = {
    "validation": re.compile(r"(?<![a-z])(validation|valid(?![a-z])|val(?![a-z]))", re.IGNORECASE),
    "test": re.compile(r"(?<![a-z])test", re.IGNORECASE),
}
_OTHER_TASKS = re.compile(rf"{NOT_OURS.pattern}|.*Task3.*|.*Task2_.*", re.IGNORECASE)  # classes and attributes
_IMAGE = re.compile(r"(ISIC_\d{7})\.jpe?g", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d{7})_segmentation\.png", re.IGNORECASE)
Files = dict[str, dict[str, Path]]  # part -> case -> file


def find(converter: str, source: Path, choice: SitesChoice, options: Options) -> SourceSet:
    """Training and, where its masks are there, validation images to imagesTr with the official fold; test to imagesTs.

    Raises InputError for a folder or table that cannot be used.
    """
    photo_case.refuse_options(converter, options)
    images, masks = _find(source)
    training = _cases(images["training"], masks["training"], source)
    validation = _cases(images["validation"], masks["validation"], source) if masks["validation"] else []
    unlabelled = images["validation"] if not masks["validation"] else {}
    tests = [*_tests(images["test"], masks["test"], source), *_tests(unlabelled, {}, source)]
    unit_of = {case.name: case.name for case in (*training, *validation)}
    if choice.table is None:
        progress.note("ISIC 2018 names no patients: every image is a unit of its own")
    cohort = by_table(unit_of, "case", choice)
    kept = [tuple(case.name for case in part if case.name in cohort.cases) for part in (training, validation)]
    splits = ({"train": kept[0], "val": kept[1]},) if kept[1] else None
    shared = {cohort.cases[case].unit for case in kept[0]} & {cohort.cases[case].unit for case in kept[1]}
    if shared:
        raise InputError(
            f"{choice.table}: {cohort.unit_kind} {sorted(shared)[0]} is in both the official training and validation set "
            f"({len(shared)} such): leave the rows of its validation images out and give --drop-unassigned"
        )
    cases = tuple(case for case in (*training, *validation) if case.name in cohort.cases)
    dataset_json = {**photo_case.DESCRIPTION, "name": NAME, "licence": LICENCE, "reference": REFERENCE}
    return SourceSet(converter, NAME, dataset_json, cases, cohort, photo_case.convert_case, tuple(tests), splits)


def _find(source: Path) -> tuple[Files, Files]:
    images: Files = {part: {} for part in ("training", *_PARTS)}
    masks: Files = {part: {} for part in ("training", *_PARTS)}
    for path in walk(source, _OTHER_TASKS):
        part = _part(path, source)
        if match := _IMAGE.fullmatch(path.name):
            add_once(images[part], match.group(1).upper(), path)
        elif match := _MASK.fullmatch(path.name):
            add_once(masks[part], match.group(1).upper(), path)
    if not images["training"] or not masks["training"]:
        lacking = "images (ISIC2018_Task1-2_Training_Input)" if not images["training"] else "masks (ISIC2018_Task1_Training_GroundTruth)"
        raise InputError(f"{source} holds no training {lacking}: unpack ISIC 2018 Task 1 from challenge.isic-archive.com there")
    return images, masks


def _part(path: Path, source: Path) -> str:
    """Whether a file belongs to the training, validation or test set: its nearest folder that names one decides."""
    for folder in reversed(path.relative_to(source).parts[:-1]):
        for part, pattern in _PARTS.items():
            if pattern.search(folder):
                return part
        if "train" in folder.lower():
            break
    return "training"


def _cases(images: dict[str, Path], masks: dict[str, Path], source: Path) -> list[SourceCase]:
    return [
        SourceCase(case, (images.get(case, source / f"{case}.jpg"),), masks.get(case, source / f"{case}_segmentation.png"))
        for case in sorted({*images, *masks})
    ]


def _tests(images: dict[str, Path], masks: dict[str, Path], source: Path) -> list[SourceCase]:
    return _cases(images, masks, source) if masks else [SourceCase(case, (path,), None) for case, path in sorted(images.items())]
