"""One nnU-Net raw data set (imagesTr, labelsTr, dataset.json, cohort.json), written as a whole or not at all.

Each converter describes its cases and how one case is checked and written; the rest is here. ``conversion.json`` in
the data set's folder remembers what it was made from. It is a file of its own because nnU-Net copies ``dataset.json``
into models, and nothing that depends on the patients' files may get there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files, folders, json_files, progress
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.dataset_conversion.atomic_folder import replacing_folder
from nnunet_adpfl.errors import InputError

CONVERSION_FILE = "conversion.json"
SHOWN_CASES = 5
FORMAT = 1


class BrokenCaseError(Exception):
    """One case of the source cannot be used; the text says why. All broken cases of a set are reported together."""


@dataclass(frozen=True)
class SourceCase:
    """Files of one case. Either may be missing on disk: that makes the case broken."""

    name: str
    image: Path
    label: Path


ConvertCase = Callable[[SourceCase, Path, Path], None]


@dataclass(frozen=True)
class RawDataset:
    """What is to be written.

    Attributes:
        number, name: the folder becomes ``DatasetNNN_name``; number 1 to 999.
        converter: name of the converter; part of the signature.
        dataset_json: nnU-Net's dataset.json without ``numTraining``.
        cases: all cases, names without repetition.
        cohort: units and sites of exactly these cases, or None (written later by ``adpfl cohort``).
        convert_case: ``(case, imagesTr, labelsTr)`` checks a case and writes it; BrokenCaseError where it is unusable.
            Called from several threads.
    """

    number: int
    name: str
    converter: str
    dataset_json: Mapping[str, Any]
    cases: tuple[SourceCase, ...]
    cohort: Cohort | None
    convert_case: ConvertCase


@dataclass(frozen=True)
class WrittenDataset:
    """The data set on disk; ``written`` is False where it stood there already, made from the same files."""

    folder: Path
    number: int
    cases: int
    cohort: Cohort | None
    written: bool


def write(dataset: RawDataset, *, overwrite: bool = False) -> WrittenDataset:
    """Check all cases and write the data set below nnUNet_raw.

    Raises InputError when a case is broken (all of them in one line), when the number is taken by another data set, or
    when the folder exists, made from something else, and ``overwrite`` is False. Nothing is left behind then.
    """
    target = target_folder(dataset.number, dataset.name)
    if not dataset.cases:
        raise InputError(f"{target.name}: the source holds no case")
    signature = _signature(dataset)
    if target.exists() and not overwrite:
        if _is_complete(target, signature):
            return WrittenDataset(target, dataset.number, len(dataset.cases), dataset.cohort, written=False)
        raise InputError(
            f"{target} exists and was made from other files or settings: give --overwrite to replace it, or another number "
            "(`adpfl cohort` changes the sites alone)"
        )
    with replacing_folder(target) as folder:
        _write_cases(dataset, folder)
        atomic_files.write_json(folder / "dataset.json", {**dataset.dataset_json, "numTraining": len(dataset.cases)})
        if dataset.cohort is not None:
            dataset.cohort.save(folder)
        images = len(list((folder / "imagesTr").iterdir()))
        record = {"format": FORMAT, "converter": dataset.converter, "signature": signature, "images": images, "labels": len(dataset.cases)}
        atomic_files.write_json(folder / CONVERSION_FILE, record)
    return WrittenDataset(target, dataset.number, len(dataset.cases), dataset.cohort, written=True)


def target_folder(number: int, name: str) -> Path:
    """``nnUNet_raw/DatasetNNN_name``.

    Raises InputError for a number outside 1..999, a name nnU-Net cannot use, or a number that another name has.
    """
    if not 1 <= number <= 999:
        raise InputError(f"DATASET_ID {number} is out of range: give a number from 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(f"--name {name!r} cannot name a data set: use letters, digits, '_', '-' and '.'")
    target = folders.base_folder("nnUNet_raw") / f"Dataset{number:03d}_{name}"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        base = Path(os.environ.get(variable) or target.parent)
        taken = sorted(path.name for path in base.glob(f"Dataset{number:03d}_*") if path.name != target.name)
        if taken:
            raise InputError(f"number {number} belongs to {taken[0]} in {base}: give another DATASET_ID, or --name as there")
    return target


def _write_cases(dataset: RawDataset, folder: Path) -> None:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir()
    labels.mkdir()
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(_workers()) as pool:
        # threads: nearly all time goes into zlib and file access, which release the lock; nothing is orphaned by a kill
        running: dict[Future[None], str] = {
            pool.submit(dataset.convert_case, case, images, labels): case.name for case in dataset.cases
        }
        try:
            for done in progress.track(as_completed(running), f"convert {dataset.converter}", total=len(running)):
                try:
                    done.result()
                except BrokenCaseError as error:
                    broken[running[done]] = str(error)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if broken:
        raise InputError(_broken_message(broken, len(dataset.cases)))


def _broken_message(broken: Mapping[str, str], total: int) -> str:
    shown = [f"{name} ({broken[name]})" for name in sorted(broken)[:SHOWN_CASES]]
    more = f", and {len(broken) - SHOWN_CASES} more" if len(broken) > SHOWN_CASES else ""
    return f"{len(broken)} of {total} cases are broken, nothing was written: {'; '.join(shown)}{more}; mend or remove them in the source"


def _workers() -> int:
    configured = os.environ.get("nnUNet_def_n_proc", "")  # noqa: SIM112  (nnU-Net's own name)
    return int(configured) if configured.isdigit() and int(configured) > 0 else min(8, os.cpu_count() or 1)


def _signature(dataset: RawDataset) -> str:
    """Digest of what the result depends on. Big files count by name, size and time, so that a repeat costs no reading."""
    files = [(case.name, *_stamp(case.image), *_stamp(case.label)) for case in sorted(dataset.cases, key=lambda case: case.name)]
    cohort = dataset.cohort.digest() if dataset.cohort is not None else None
    content = [FORMAT, dataset.converter, dict(dataset.dataset_json), cohort, files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return path.name, -1, -1
    return path.name, status.st_size, status.st_mtime_ns


def _is_complete(folder: Path, signature: str) -> bool:
    try:
        record = json_files.load(folder / CONVERSION_FILE)
        images, labels = (len(list((folder / name).iterdir())) for name in ("imagesTr", "labelsTr"))
        return record["signature"] == signature and (images, labels) == (record["images"], record["labels"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
