"""Settings of each method, chosen on other patients: a public or made-up data set, or patients outside the compared cohort.

Every method's grid is tried with the same seeds; the setting with the best mean Dice is kept, ties for the first. What was
tried, and how it scored, stays in tuning.json, so that nobody has to believe that the baseline was tuned like the rest.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from nnunet_adpfl import atomic_files, folders, json_files
from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.experiments.comparison.methods import Method
from nnunet_adpfl.nnunet_compat.prediction import LabelReader

FILE_NAME = "tuning.json"


def candidates(method: Method) -> list[dict[str, Any]]:
    """All settings of a method's grid, ``section.field`` -> value."""
    values = itertools.product(*(method.grid[path] for path in method.grid))
    return [dict(zip(method.grid, chosen, strict=True)) for chosen in values]


def check_other_patients(dataset: str, tuning_dataset: str, plans_name: str) -> None:
    """InputError where a case of the compared cohort would be tuned on: by its true label map, whatever it is called.

    Names are no evidence: two made-up cohorts number their patients alike, and one patient may have two names. Another
    scan of the same patient, or another crop, is not noticed.
    """
    compared, other = (_truths(folders.preprocessed_folder(name), plans_name) for name in (dataset, tuning_dataset))
    if both := sorted(set(compared) & set(other)):
        raise InputError(
            f"--tune-on {tuning_dataset}: its case {other[both[0]]} is {compared[both[0]]} of {dataset}; tune on other patients, or "
            "settings would be chosen by looking at those who are reported on"
        )


def _truths(preprocessed: Path, plans_name: str) -> dict[str, str]:
    """Hash of a case's label map -> case; maps without foreground, which are alike, are left out."""
    cohort = cohorts.load(preprocessed)
    ending = str(json_files.load(preprocessed / "dataset.json")["file_ending"])
    reader = LabelReader(json_files.load(preprocessed / f"{plans_name}.json"))
    found = {}
    for case in sorted(cohort.cases):
        labels, _ = reader.labels(preprocessed / "gt_segmentations" / f"{case}{ending}")
        if labels.any():
            found[hashlib.sha256(f"{labels.shape}".encode() + labels.astype("int16").tobytes()).hexdigest()] = case
    return found


def best(scores: Sequence[tuple[Mapping[str, Any], Sequence[float]]]) -> dict[str, Any]:
    """The settings with the best mean."""
    return dict(max(scores, key=lambda entry: fmean(entry[1]))[0])


def save(path: Path, tried_on: str, scores: Mapping[str, Sequence[tuple[Mapping[str, Any], Sequence[float]]]]) -> dict[str, Any]:
    """Write what was tried and what was chosen; returns method -> chosen settings."""
    chosen = {name: best(entries) for name, entries in scores.items()}
    tried = {
        name: [{"settings": dict(settings), "dice": list(dice)} for settings, dice in entries] for name, entries in scores.items()
    }
    atomic_files.write_json(path, {"tuned_on": tried_on, "for_release": False, "chosen": chosen, "tried": tried})
    return chosen


def load(path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Data set, and method -> settings, of an earlier tuning. InputError when the file is missing or is something else."""
    try:
        content = json_files.load(path)
        tuned_on, chosen = str(content["tuned_on"]), content["chosen"]
        if not all(isinstance(settings, dict) for settings in chosen.values()):
            raise TypeError("chosen")
    except OSError as error:
        raise InputError(f"--tuning {path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--tuning {path} is not the {FILE_NAME} of a comparison") from None
    return tuned_on, chosen
