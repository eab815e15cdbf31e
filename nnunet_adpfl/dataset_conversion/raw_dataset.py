"""One nnU-Net raw data set (imagesTr, labelsTr, dataset.json, cohort.json), written as a whole or not at all.

Each converter describes its cases and how one case is checked and written; the rest is here. ``conversion.json`` in
the data set's folder remembers what it was made from. It is a file of its own because nnU-Net copies ``dataset.json``
into models, and nothing that depends on the patients' files may get there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files, folders, json_files, progress
from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.dataset_conversion import case_pool
from nnunet_adpfl.dataset_conversion.atomic_folder import replacing_folder
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, SourceCase, SourceSet
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.folds import FILE_NAME as SPLITS_FILE

CONVERSION_FILE = "conversion.json"
SHOWN_CASES = 5
FORMAT = 2
# Below the folder that is being filled:
_STAGE = ".stage"  # cases that are not complete
_DONE = ".done"  # names of those that are
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class WrittenDataset:
    """The data set on disk; ``written`` is False where it stood there already, made from the same files.

    Attributes:
        cases: number of cases to train with.
        left_out: broken case -> what is wrong with it.
    """

    folder: Path
    number: int
    cases: int
    cohort: Cohort | None
    written: bool
    left_out: Mapping[str, str]


def write(
    source: SourceSet, number: int, name: str, *, overwrite: bool = False, skip_broken: bool = False
) -> WrittenDataset:
    """Check all cases and write the data set below nnUNet_raw. A run that was killed is taken up where it stopped.

    Args:
        skip_broken: leave out cases that lack a file or cannot be used, and say which, instead of refusing the set.

    Raises InputError when a case is broken (all of them in one line; missing files before anything is written), when
    the number is taken by another data set, or when the folder exists, made from something else, and ``overwrite`` is
    False. Nothing is left behind then.
    """
    target = target_folder(number, name)
    if not source.cases:
        raise InputError(f"{target.name}: the source holds no case")
    _check_names(source)
    signature = _signature(source)
    if target.exists() and not overwrite:
        return _existing(target, number, source, signature, skip_broken)
    broken = _without_files([*source.cases, *source.test_cases])
    total = len(source.cases) + len(source.test_cases)
    if broken and not skip_broken:
        raise InputError(_broken_message(broken, total))
    with replacing_folder(target, resume_key=_resume_key(signature), may_replace=overwrite) as folder:
        broken |= _write_cases(source, folder, list(broken))
        if broken and not skip_broken:
            raise InputError(_broken_message(broken, total))
        cohort = _write_descriptions(source, folder, signature, broken)
    if broken:
        progress.note(f"{len(broken)} of {total} cases are left out: " + "; ".join(f"{case} ({why})" for case, why in broken.items()))
    return WrittenDataset(target, number, len(source.cases) - _count(source, broken), cohort, written=True, left_out=broken)


def target_folder(number: int, name: str) -> Path:
    """``nnUNet_raw/DatasetNNN_name``.

    Raises InputError for a number outside 1..999, a name nnU-Net cannot use, or a number that another name has.
    """
    check_number_and_name(number, name)
    target = folders.base_folder("nnUNet_raw") / f"Dataset{number:03d}_{name}"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        base = Path(os.environ.get(variable) or target.parent)
        taken = sorted(path.name for path in base.glob(f"Dataset{number:03d}_*") if path.name != target.name)
        if taken:
            raise InputError(f"number {number} belongs to {taken[0]} in {base}: give another DATASET_ID, or --name as there")
    return target


def check_number_and_name(number: int, name: str | None) -> None:
    """InputError for a number outside 1..999, or a name that nnU-Net cannot use; None is the set's own name."""
    if not 1 <= number <= 999:
        raise InputError(f"DATASET_ID {number} is out of range: give a number from 1 to 999")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(f"--name {name!r} cannot name a data set: use letters, digits, '_', '-' and '.'")


def _check_names(source: SourceSet) -> None:
    names = [case.name for case in (*source.cases, *source.test_cases)]
    repeated = sorted(name for name, count in Counter(name.casefold() for name in names).items() if count > 1)
    if repeated:
        raise InputError(f"two cases are called {repeated[0]} (large and small letters count as the same): rename one in the source")


def _existing(target: Path, number: int, source: SourceSet, signature: str, skip_broken: bool) -> WrittenDataset:
    """The data set that stands at ``target``, if it is what would be written."""
    record = _record(target)
    if record.get("signature") != signature or not _is_complete(target, record, source.cohort is not None):
        raise InputError(
            f"{target} exists and was made from other files or settings: give --overwrite to replace it, or another number "
            "(`adpfl cohort` changes the sites alone)"
        )
    left_out = dict(record["left_out"])
    if left_out and not skip_broken:
        raise InputError(f"{target} exists without {len(left_out)} broken cases: mend them and give --overwrite, or --skip-broken")
    cohort = cohorts.load(target) if (target / cohorts.FILE_NAME).is_file() else None
    return WrittenDataset(target, number, int(record["labels"]), cohort, written=False, left_out=left_out)


def _without_files(cases: Collection[SourceCase]) -> dict[str, str]:
    """Case -> which of its files are missing, for all cases at once, before any is read."""
    missing = {}
    for case in cases:
        lost = [f"image {path.name} is missing" for path in case.images if not path.is_file()]
        if case.label is not None and not case.label.is_file():
            lost.append(f"label {case.label.name} is missing")
        if lost:
            missing[case.name] = ", ".join(lost)
    return missing


def _write_cases(source: SourceSet, folder: Path, skipped: Collection[str]) -> dict[str, str]:
    """Write all cases that are not there yet; returns the broken ones. Each case appears label last, as a whole."""
    places = {case.name: ("imagesTr", "labelsTr") for case in source.cases}
    places |= {case.name: ("imagesTs", "labelsTs") for case in source.test_cases}
    for name in {name for pair in places.values() for name in pair} | {"imagesTr", "labelsTr"}:
        (folder / name).mkdir(exist_ok=True)
    shutil.rmtree(folder / _STAGE, ignore_errors=True)
    done = _done(folder)
    todo = [case for case in (*source.cases, *source.test_cases) if case.name not in skipped and case.name not in done]
    if done:
        progress.note(f"{len(done)} cases are there from a conversion that was stopped")

    def one(case: SourceCase) -> None:
        stage = folder / _STAGE / case.name
        images, labels = stage / "images", stage / "labels"
        images.mkdir(parents=True)
        labels.mkdir()
        before = [_stamp(path) for path in case.files]
        try:
            source.convert_case(case, images, labels)
        except BrokenCaseError:
            shutil.rmtree(stage)
            _remove(case.name, [folder / name for name in places[case.name]])  # of an attempt that was killed half-way
            raise
        if before != [_stamp(path) for path in case.files]:
            raise InputError(f"files of case {case.name} changed while they were read: let the copying end, then convert again")
        for part, target in zip((images, labels), places[case.name], strict=True):
            for path in sorted(part.iterdir()):
                path.replace(folder / target / path.name)
        with (folder / _DONE).open("a", encoding="utf-8") as file:
            file.write(case.name + "\n")
        shutil.rmtree(stage)

    broken = case_pool.run(one, todo, f"convert {source.converter}")
    shutil.rmtree(folder / _STAGE, ignore_errors=True)
    (folder / _DONE).unlink(missing_ok=True)
    for name in ("labelsTs", "imagesTs"):  # empty where no test case has a label
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    return broken


def _remove(case: str, folders_of_case: Collection[Path]) -> None:
    for folder in folders_of_case:
        for path in folder.glob(f"{glob.escape(case)}*"):
            if re.fullmatch(r"(_\d{4})?(\.[A-Za-z]+)+", path.name[len(case) :]):
                path.unlink()


def _done(folder: Path) -> set[str]:
    try:
        text = (folder / _DONE).read_text(encoding="utf-8")
    except OSError:
        return set()
    return set(text[: text.rfind("\n") + 1].splitlines())  # a torn last line could be another case's name


def _resume_key(signature: str) -> str:
    """Written files survive a killed process, but not always a power failure: what was left before a restart is not used."""
    boot = _BOOT.read_text().strip() if _BOOT.is_file() else str(os.getpid())
    return hashlib.sha256(f"{signature} {boot}".encode()).hexdigest()[:16]


def _write_descriptions(source: SourceSet, folder: Path, signature: str, broken: Mapping[str, str]) -> Cohort | None:
    """dataset.json, cohort.json, the official splits and the record, without the cases that are left out."""
    cases = [case.name for case in source.cases if case.name not in broken]
    if not cases:
        raise InputError(f"all {len(source.cases)} cases are broken, nothing was written: {'; '.join(list(broken.values())[:SHOWN_CASES])}")
    atomic_files.write_json(folder / "dataset.json", {**source.dataset_json, "numTraining": len(cases)})
    cohort = None
    if source.cohort is not None:
        cohort = Cohort(source.cohort.unit_kind, {case: source.cohort.cases[case] for case in cases})
        cohort.save(folder)
    if source.splits is not None:
        kept = [{side: [case for case in cases if case in set(fold[side])] for side in ("train", "val")} for fold in source.splits]
        atomic_files.write_json(folder / SPLITS_FILE, kept)
    images = len(list((folder / "imagesTr").iterdir()))
    record = {"format": FORMAT, "converter": source.converter, "signature": signature, "images": images, "labels": len(cases)}
    atomic_files.write_json(folder / CONVERSION_FILE, {**record, "left_out": dict(broken), "has_cohort": cohort is not None})
    return cohort


def _count(source: SourceSet, broken: Mapping[str, str]) -> int:
    return sum(case.name in broken for case in source.cases)


def _broken_message(broken: Mapping[str, str], total: int) -> str:
    if len(broken) > SHOWN_CASES:
        for name in sorted(broken):
            progress.note(f"broken: {name} ({broken[name]})")
    shown = [f"{name} ({broken[name]})" for name in sorted(broken)[:SHOWN_CASES]]
    more = f", and {len(broken) - SHOWN_CASES} more, listed above" if len(broken) > SHOWN_CASES else ""
    return (
        f"{len(broken)} of {total} cases are broken, nothing was written: {'; '.join(shown)}{more}; mend them in the source, or "
        "leave them out with --skip-broken"
    )


def _signature(source: SourceSet) -> str:
    """Digest of what the result depends on. Big files count by name, size and time, so that a repeat costs no reading."""
    cases = sorted((*source.cases, *source.test_cases), key=lambda case: case.name)
    places = [str(path.resolve()) for case in cases for path in case.files] if source.linked else None
    files = [places, [(case.name, [_stamp(path) for path in case.files]) for case in cases]]
    cohort = source.cohort.digest() if source.cohort is not None else None
    content = [FORMAT, source.converter, source.linked, dict(source.dataset_json), source.splits, cohort, files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return path.name, -1, -1
    return path.name, status.st_size, status.st_mtime_ns


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json_files.load(folder / CONVERSION_FILE)
        if isinstance(record["left_out"], dict) and isinstance(record["images"], int) and isinstance(record["labels"], int):
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def knows_units(folder: Path) -> bool:
    """Whether the data set in ``folder`` was converted with units of its own, which cohort.json holds."""
    return bool(_record(folder).get("has_cohort"))


def _is_complete(folder: Path, record: Mapping[str, Any], has_cohort: bool) -> bool:
    """Whether all that was written is there, links too, and nothing was emptied. (`adpfl cohort` may have changed the sites.)"""
    try:
        sizes = {name: [path.stat().st_size for path in (folder / name).iterdir()] for name in ("imagesTr", "labelsTr")}
    except OSError:
        return False
    if has_cohort and not (folder / cohorts.FILE_NAME).is_file():
        return False
    numbers = (len(sizes["imagesTr"]), len(sizes["labelsTr"]))
    return numbers == (record["images"], record["labels"]) and all(size for found in sizes.values() for size in found)
