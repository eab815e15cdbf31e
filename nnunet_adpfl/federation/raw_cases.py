"""The cases of a raw nnU-Net data set: their files, found by name, and what dataset.json says about them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import json_files
from nnunet_adpfl.cohort import names_a_file
from nnunet_adpfl.errors import InputError

CaseFiles = dict[str, Any]  # {"images": [one path per channel], "label": path}, as nnU-Net has it
_REQUIRED = {"labels": dict, "channel_names": dict, "numTraining": int, "file_ending": str}


@dataclass(frozen=True)
class RawCases:
    """A raw data set whose files are all there (their content is not looked at).

    Attributes:
        dataset_json: content of dataset.json.
        files: case -> its image files and label file, sorted by case.
    """

    dataset_json: dict[str, Any]
    files: Mapping[str, CaseFiles]


def load(raw: Path) -> RawCases:
    """Find all training cases of ``nnUNet_raw/DATASET`` (imagesTr and labelsTr, or the list in dataset.json).

    Raises InputError for a missing or wrong dataset.json, and for cases with a listed image or the label missing.
    """
    dataset_json = _dataset_json(raw / "dataset.json")
    files = _listed(raw, dataset_json["dataset"]) if "dataset" in dataset_json else _found(raw, dataset_json["file_ending"])
    for case, entry in files.items():
        missing = [path for path in (*entry["images"], entry["label"]) if not Path(path).is_file()]
        if missing:
            raise InputError(f"case {case} lacks {missing[0]}; convert the data set again")
    if len(files) != dataset_json["numTraining"]:
        raise InputError(
            f"{raw / 'dataset.json'}: numTraining is {dataset_json['numTraining']}, but there are {len(files)} cases; "
            "convert the data set again or correct the number"
        )
    if not files:
        raise InputError(f"{raw} holds no training case; convert the data set again")
    return RawCases(dataset_json, files)


def state(entry: CaseFiles) -> list[list[int]]:
    """Size and time of a case's files: when they differ, what was made of the case is out of date."""
    found = [Path(path).stat() for path in (*entry["images"], entry["label"])]
    return [[stat.st_size, stat.st_mtime_ns] for stat in found]


def _dataset_json(path: Path) -> dict[str, Any]:
    try:
        content = json_files.load(path)
    except OSError:
        raise InputError(f"{path} is missing: convert the data set first (`adpfl convert`)") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): convert the data set again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: convert the data set again")
    if "channel_names" not in content and "modality" in content:
        content["channel_names"] = content["modality"]
    for key, kind in _REQUIRED.items():
        if not isinstance(content.get(key), kind) or (kind is dict and not content[key]):
            raise InputError(f"{path} has no {key!r} as nnU-Net needs it: add it, or convert the data set again")
    if not re.fullmatch(r"(\.[A-Za-z0-9]+)+", content["file_ending"]):
        raise InputError(f"{path}: file_ending {content['file_ending']!r} is no ending like .nii.gz or .png: correct it")
    return content


def _found(raw: Path, ending: str) -> dict[str, CaseFiles]:
    # nnU-Net's own search compares every case with every file: minutes for 10,000 cases, here one pass.
    folder, pattern = raw / "imagesTr", re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: convert the data set first (`adpfl convert`)")
    images: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        match = pattern.fullmatch(name)
        if match:
            images.setdefault(match.group(1), []).append(str(folder / name))
        elif name.endswith(ending):
            raise InputError(f"{folder / name} has no channel number (_0000) in its name: rename or remove it")
    return {case: {"images": images[case], "label": str(raw / "labelsTr" / f"{case}{ending}")} for case in sorted(images)}


def _listed(raw: Path, listed: Any) -> dict[str, CaseFiles]:
    def absolute(path: str) -> str:
        return os.path.abspath(raw / os.path.expandvars(path))

    try:
        files = {
            case: {"images": [absolute(image) for image in listed[case]["images"]], "label": absolute(listed[case]["label"])}
            for case in sorted(listed)
        }
        if all(names_a_file(case) and entry["images"] for case, entry in files.items()):
            return files
        raise ValueError("a case has no image, or a name that cannot name a file")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{raw / 'dataset.json'}: its list 'dataset' is not what nnU-Net needs ({error!r})") from None
