"""`adpfl convert --back`: predictions of nnU-Net -> labels and file names as the challenge has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nnunet_adpfl import json_files
from nnunet_adpfl.dataset_conversion import brats, case_pool, kits, nifti_case, photo_case
from nnunet_adpfl.dataset_conversion.atomic_folder import replacing_folder
from nnunet_adpfl.dataset_conversion.challenge_labels import labels_of
from nnunet_adpfl.dataset_conversion.converters import CONVERTERS
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, SourceCase
from nnunet_adpfl.errors import InputError

_PHOTOS = ("ham10000", "isic2018")
_SHOWN = 5


@dataclass(frozen=True)
class LabelsBack:
    """Values in nnU-Net's predictions -> values in the challenge's files; the names of the files."""

    values: Mapping[int, int]
    ending: str
    new_ending: str

    def __call__(self, case: SourceCase, folder: Path) -> None:
        target = folder / f"{case.name}{self.new_ending}"
        if self.ending == photo_case.ENDING:
            mask = photo_case.read_labels(case.images[0], self.values)
            Image.fromarray(mask).save(target)
            return
        label = nifti_case.read(case.images[0], "prediction")
        if label.data.ndim != 3:
            raise BrokenCaseError(f"prediction has {label.data.ndim} axes, needs three")
        nifti_case.check_labels(label, self.values.keys())
        nifti_case.write_relabelled(label, self.values, target)


def convert_back(data_set: str, predictions: Path, out: Path) -> int:
    """Write the predictions in ``predictions`` to the new folder ``out``; returns their number.

    Raises InputError for a folder without predictions, or one with labels that the data set does not have (all such
    files in one line); ``out`` appears as a whole or not at all.
    """
    conversion = _conversion(data_set)
    if not predictions.is_dir():
        raise InputError(f"{predictions} is no folder: give the one that nnUNetv2_predict wrote")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: give a new folder")
    files = sorted(path for path in predictions.iterdir() if path.name.endswith(conversion.ending))
    cases = [SourceCase(path.name.removesuffix(conversion.ending), (path,), None) for path in files]
    if not cases:
        raise InputError(f"{predictions} holds no prediction (CASE{conversion.ending}): give the folder that nnUNetv2_predict wrote")
    _check_labels_of_model(data_set, predictions)
    with replacing_folder(out) as folder:
        broken = case_pool.run(lambda case: conversion(case, folder), cases, f"labels of {data_set}")
        if broken:
            shown = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:_SHOWN])
            raise InputError(f"{len(broken)} of {len(cases)} predictions cannot be converted, nothing was written: {shown}")
    return len(cases)


def _check_labels_of_model(data_set: str, predictions: Path) -> None:
    """InputError where the dataset.json that nnU-Net puts beside its predictions is of another data set: values would be mixed up."""
    path = predictions / "dataset.json"
    if not path.is_file() or data_set == "msd":
        return
    try:
        found = json_files.load(path)["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} has no labels: predict again, or remove it") from None
    expected = _labels_written(data_set)
    if json.dumps(found, sort_keys=True) not in [json.dumps(labels, sort_keys=True) for labels in expected]:
        raise InputError(f"{predictions} was predicted with other labels than those of {data_set} ({path}): give the right SET")


def _labels_written(data_set: str) -> list[dict[str, Any]]:
    """``labels`` of dataset.json that the set's converter may write."""
    if data_set in _PHOTOS:
        return [dict(photo_case.LABELS)]
    challenge = brats.CHALLENGES[data_set] if data_set in brats.CHALLENGES else kits.CHALLENGES[data_set]
    return [labels_of(challenge, plain=plain)["labels"] for plain in (False, True)]


def _conversion(data_set: str) -> LabelsBack:
    if data_set in _PHOTOS:
        return LabelsBack({0: 0, 1: 255}, photo_case.ENDING, "_segmentation.png")
    if data_set in brats.CHALLENGES:
        values = {new: value for value, new in brats.CHALLENGES[data_set].label_values.items()}
    elif data_set in kits.CHALLENGES:
        values = {value: value for value in (0, *kits.CHALLENGES[data_set].classes.values())}
    elif data_set in CONVERTERS:
        values = {value: value for value in range(int(np.iinfo(np.uint8).max) + 1)}
    else:
        raise InputError(f"convert: data set {data_set!r} is unknown; use one of {', '.join(CONVERTERS)}")
    return LabelsBack(values, nifti_case.ENDING, nifti_case.ENDING)
