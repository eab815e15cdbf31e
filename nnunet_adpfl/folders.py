"""nnU-Net's folders: where a data set's raw, preprocessed and result files lie.

Only the environment variables and the naming scheme ``DatasetXXX_Name`` are used, so nothing heavy is imported.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunet_adpfl.errors import InputError

_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def base_folder(variable: str) -> Path:
    """The folder that nnU-Net's environment variable names.

    Raises InputError when it is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(f"the environment variable {variable} is not set: set it to a folder, as nnU-Net needs it")
    return Path(value)


def dataset_name(dataset: str | int) -> str:
    """Full name (``Dataset004_Hippocampus``) of a data set given by number or name, as nnU-Net accepts it."""
    for variable in _VARIABLES[:2]:
        base_folder(variable)
    text = str(dataset).strip()
    names = sorted(_known_names())
    if text in names:
        return text
    if re.fullmatch(r"\d{1,3}", text):
        found = [name for name in names if name.startswith(f"Dataset{int(text):03d}_")]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise InputError(f"data set number {text} is ambiguous: {', '.join(found)}; give the full name")
    known = ", ".join(names) if names else "none"
    raise InputError(f"data set {text!r} is unknown: no such folder in nnUNet_raw or nnUNet_preprocessed (known: {known})")


def raw_folder(dataset: str | int) -> Path:
    return base_folder("nnUNet_raw") / dataset_name(dataset)


def preprocessed_folder(dataset: str | int) -> Path:
    return base_folder("nnUNet_preprocessed") / dataset_name(dataset)


def results_folder(dataset: str | int) -> Path:
    return base_folder("nnUNet_results") / dataset_name(dataset)


def run_folder(dataset: str | int, trainer: str, plans: str, configuration: str, fold: str | int) -> Path:
    """Where nnU-Net itself would put this training: ``results/DATASET/TRAINER__PLANS__CONFIG/fold_K``."""
    return results_folder(dataset) / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"


def _known_names() -> set[str]:
    names: set[str] = set()
    for variable in _VARIABLES[:2]:
        base = base_folder(variable)
        if base.is_dir():
            names.update(entry.name for entry in base.iterdir() if re.match(r"Dataset\d{3}_", entry.name) and entry.is_dir())
    return names
