"""Medical Segmentation Decathlon folders (Task04_Hippocampus and the like) -> nnU-Net raw data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnunet_adpfl import json_files, progress
from nnunet_adpfl.dataset_conversion import nifti_case, sites_table
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned
from nnunet_adpfl.dataset_conversion.source_set import Options, SourceCase, SourceSet
from nnunet_adpfl.errors import InputError


def find(converter: str, source: Path, choice: SitesChoice, options: Options) -> SourceSet:
    """A Decathlon folder; 4D images become one file per channel, everything else is copied unchanged.

    The Decathlon names no patients, and not every task has one image of each: the Hippocampus has both sides of a
    person as two cases. So each case is a unit of its own (``case``) unless the table has a patient column. Without a
    table there is no cohort.

    Raises InputError for a folder or table that cannot be used.
    """
    if options.plain_labels:
        raise InputError("--plain-labels: the Decathlon has no regions; leave it out")
    source = _folder_of_task(source)
    description = _read_description(source)
    name = re.sub(r"^Task\d+_", "", source.resolve().name)
    labels, channels = _labels(description, source), _channels(description, source)
    cases = _cases(description, source)
    _note_unused(source, cases)
    cohort = None
    if choice.table is None:
        choice.refuse_without_table()
    else:
        unit_of = {case.name: case.name for case in cases}
        rows = sites_table.read_sites_table(choice.table)
        sites_table.check_known(rows, unit_of, choice.table)
        if rows[0].patient is None:
            progress.note("the table names no patients: every case is a unit of its own, though some tasks have two of one person")
        cohort = assigned(unit_of, "case", rows, choice, choice.table)
        cases = tuple(case for case in cases if case.name in cohort.cases)
    known = {key: description[key] for key in ("description", "reference", "licence", "release") if description.get(key)}
    dataset_json = {"channel_names": channels, "labels": labels, "file_ending": nifti_case.ENDING, "name": name, **known}
    convert_case = nifti_case.NiftiConversion(len(channels), {value: value for value in labels.values()}, options.linked)
    return SourceSet(converter, name, dataset_json, cases, cohort, convert_case, linked=options.linked)


def _folder_of_task(source: Path) -> Path:
    """``source``, or the one folder in it that holds a task: some unpack Task04_X.tar into a folder of that name."""
    below = [path.parent for path in sorted(source.glob("*/dataset.json"))] if source.is_dir() else []
    return below[0] if len(below) == 1 and not (source / "dataset.json").is_file() else source


def _read_description(source: Path) -> dict[str, Any]:
    path = source / "dataset.json"
    try:
        description = json_files.load(path)
    except OSError:
        raise InputError(f"{source} is no Decathlon folder: {path} cannot be read") from None
    except ValueError as error:
        raise InputError(f"{path} is no valid JSON ({error}): download it again") from None
    for key, kind in (("modality", dict), ("labels", dict), ("training", list)):
        if not isinstance(description, dict) or not isinstance(description.get(key), kind):
            raise InputError(f"{path} has no {key!r} as the Decathlon has it: is {source} a Decathlon folder?")
    return description


def _labels(description: dict[str, Any], source: Path) -> dict[str, int]:
    try:
        labels = {str(name): int(value) for value, name in sorted(description["labels"].items(), key=lambda item: int(item[0]))}
    except ValueError:
        raise InputError(f"{source / 'dataset.json'}: the keys of 'labels' must be whole numbers") from None
    if len(labels) != len(description["labels"]) or list(labels.values()) != list(range(len(labels))) or len(labels) < 2:
        raise InputError(f"{source / 'dataset.json'}: 'labels' must be 0, 1, 2, ... without a gap, each with its own name")
    return {"background": 0, **{name: value for name, value in labels.items() if value}}


def _channels(description: dict[str, Any], source: Path) -> dict[str, str]:
    channels = {str(key): str(value) for key, value in description["modality"].items()}
    if not channels or sorted(channels) != sorted(map(str, range(len(channels)))):
        raise InputError(f"{source / 'dataset.json'}: the keys of 'modality' must be 0, 1, 2, ... without a gap")
    return dict(sorted(channels.items(), key=lambda item: int(item[0])))


def _cases(description: dict[str, Any], source: Path) -> tuple[SourceCase, ...]:
    cases: dict[str, SourceCase] = {}
    for entry in description["training"]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise InputError(f"{source / 'dataset.json'}: every entry of 'training' needs an image and a label, one has {entry!r:.80}")
        image, label = source / entry["image"], source / entry["label"]
        for path in (image, label):
            if not path.resolve().is_relative_to(source.resolve()):
                raise InputError(f"{source / 'dataset.json'}: {path.name} lies outside {source}")
        if not re.search(r"\.nii(\.gz)?$", image.name) or not re.search(r"\.nii(\.gz)?$", label.name):
            raise InputError(f"{source / 'dataset.json'}: {image.name} and {label.name} must be .nii.gz files")
        if image.name.startswith("._"):
            continue
        name = re.sub(r"\.nii(\.gz)?$", "", image.name)
        if name in cases:
            raise InputError(f"{source / 'dataset.json'}: 'training' lists case {name} twice")
        cases[name] = SourceCase(name, (image,), label)
    if not cases:
        raise InputError(f"{source / 'dataset.json'}: 'training' lists no case")
    return tuple(cases.values())


def _note_unused(source: Path, cases: tuple[SourceCase, ...]) -> None:
    folder = source / "imagesTr"
    on_disk = {path.name for path in folder.glob("*.nii*") if not path.name.startswith("._")} if folder.is_dir() else set()
    unlisted = on_disk - {case.images[0].name for case in cases}
    if unlisted:
        progress.note(f"{len(unlisted)} images in imagesTr are not in dataset.json and are left out ({', '.join(sorted(unlisted)[:3])})")
    if (source / "imagesTs").is_dir() and any((source / "imagesTs").iterdir()):
        progress.note("imagesTs of the source is not used: it has no labels")
