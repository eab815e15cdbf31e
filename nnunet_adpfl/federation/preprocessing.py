"""Runs nnU-Net's preprocessor over a data set: resumable, each case written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nnunet_adpfl import atomic_files, json_files, worker_process
from nnunet_adpfl.errors import AdpflError
from nnunet_adpfl.federation import raw_cases
from nnunet_adpfl.federation.raw_cases import CaseFiles, RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.progress import track

RECORDS_FOLDER = ".adpfl"  # in nnUNet_preprocessed/DATASET: nnU-Net wants nothing else beside the preprocessed cases
_IRRELEVANT = ("architecture", "batch_size", "batch_dice", "median_image_size_in_voxels", "inherits_from")
_CASE_ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")  # .pkl last
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Preprocessing:
    """One configuration of one plan, to be preprocessed into ``folder``; plans with the same folder share the data."""

    preprocessed: Path
    raw: RawCases
    plans: dict[str, Any]
    configuration: str

    @property
    def data_identifier(self) -> str:
        return data_identifier(self.plans, self.configuration)

    @property
    def folder(self) -> Path:
        return self.preprocessed / self.data_identifier

    def would_change(self) -> bool:
        """True where cases that are preprocessed already would be made again, differently."""
        settings, done = self._records()
        if not done or not self.folder.is_dir():
            return False
        return settings != self._settings() or any(
            case in self.raw.files and done[case] != raw_cases.state(self.raw.files[case]) for case in done
        )

    def run(self, processes: int | None = None) -> None:
        """Preprocess the cases that are not done, or whose files changed; remove those that the data set lost.

        Raises InputError naming the case that cannot be preprocessed; what was finished before it is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings, done = self._records()
        if settings != self._settings():
            done = {}
            atomic_files.write_text(self._record_file, json.dumps({"settings": self._settings()}) + "\n")
        files = self.raw.files
        todo = [case for case in files if done.get(case) != raw_cases.state(files[case]) or not self._is_complete(case)]
        jobs = [(case, files[case], str(self.folder), self.plans, self.configuration, self.raw.dataset_json) for case in todo]
        states = {case: raw_cases.state(files[case]) for case in todo}
        for case in track(in_processes(_one_case, jobs, processes), f"preprocessing {self.configuration}", total=len(jobs)):
            atomic_files.append_line(self._record_file, json.dumps({"case": case, "state": states[case]}))
        self._remove_strangers()

    @property
    def _record_file(self) -> Path:
        return self.preprocessed / RECORDS_FOLDER / f"{self.data_identifier}.jsonl"

    def _settings(self) -> str:
        """Digest of what the preprocessed cases depend on, apart from their own files."""
        settings = {key: value for key, value in resolved(self.plans, self.configuration).items() if key not in _IRRELEVANT}
        names = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
        labels = [self.raw.dataset_json["labels"], self.raw.dataset_json.get("regions_class_order")]
        content = [settings, {name: self.plans[name] for name in names}, labels]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _records(self) -> tuple[str | None, dict[str, Any]]:
        """Settings and finished cases as recorded; a torn last line is a case that is not finished."""
        done: dict[str, Any] = {}
        settings = None
        try:
            for line in self._record_file.read_text(encoding="utf-8").splitlines():
                entry = json_files.parse(line)
                if "settings" in entry:
                    settings = str(entry["settings"])
                else:
                    done[str(entry["case"])] = entry["state"]
        except FileNotFoundError:
            return None, {}
        except (ValueError, KeyError, TypeError):
            # Lines after a torn one would be glued to it: write the finished ones anew.
            lines = [{"settings": settings}, *({"case": case, "state": state} for case, state in done.items())]
            atomic_files.write_text(self._record_file, "".join(json.dumps(line) + "\n" for line in lines))
        return settings, done

    def _is_complete(self, case: str) -> bool:
        return all((self.folder / f"{case}{ending}").is_file() for ending in _CASE_ENDINGS)

    def _remove_strangers(self) -> None:
        """Cases that the raw data set no longer has must not be drawn by a later fold ``all``."""
        expected = {f"{case}{ending}" for case in self.raw.files for ending in _CASE_ENDINGS}
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)  # of a case that was interrupted
            elif path.name not in expected and path.suffix in (".pkl", ".b2nd", ".npy", ".npz"):
                path.unlink()


def data_identifier(plans: dict[str, Any], configuration: str) -> str:
    """Name of the folder with a configuration's preprocessed cases."""
    return str(resolved(plans, configuration)["data_identifier"])


def copy_labels(preprocessed: Path, raw: RawCases) -> None:
    """Labels in their own resolution, where nnU-Net's validation looks for them; labels of lost cases are removed."""
    target, ending = preprocessed / "gt_segmentations", str(raw.dataset_json["file_ending"])
    target.mkdir(parents=True, exist_ok=True)
    for case, entry in raw.files.items():
        source, copy = Path(entry["label"]), target / f"{case}{ending}"
        if not copy.exists() or copy.stat().st_mtime_ns < source.stat().st_mtime_ns:
            atomic_files.write_bytes(copy, source.read_bytes())
    for path in target.iterdir():
        if path.name.endswith(ending) and path.name.removesuffix(ending) not in raw.files:
            path.unlink()


def in_processes(function: Callable[[Item], Result], jobs: Sequence[Item], processes: int | None) -> Iterator[Result]:
    """Results in order; forked processes, because spawned ones would import torch again for every one of them.

    Args:
        processes: None for nnU-Net's variable nnUNet_def_n_proc, or up to 8 where it is not set.
    """
    count = min(processes or _default_processes(), max(len(jobs), 1))
    if count <= 1:
        yield from map(function, jobs)
        return
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, mp_context=fork, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        yield from pool.map(function, jobs)
    except BrokenProcessPool:
        raise AdpflError(
            f"one of {count} worker processes was killed, probably for lack of memory: set nnUNet_def_n_proc to a smaller "
            "number and run the command again; finished cases are kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    stock.use_one_thread()
    worker_process.end_with(parent)


def _default_processes() -> int:
    text = os.environ.get("nnUNet_def_n_proc", "")  # noqa: SIM112  (nnU-Net's variable)
    return int(text) if text.isdigit() and int(text) else min(8, os.cpu_count() or 1)


def resolved(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Settings of a configuration, with those that it inherits."""
    settings = dict(plans["configurations"][configuration])
    if "inherits_from" in settings:
        settings = {**resolved(plans, settings["inherits_from"]), **settings}
    return settings


def _one_case(job: tuple[str, CaseFiles, str, dict[str, Any], str, dict[str, Any]]) -> str:
    case, files, folder, plans, configuration, dataset_json = job
    temporary = Path(folder) / f".{case}.tmp"  # a folder: nnU-Net looks at files only
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        stock.preprocess_case(files, str(temporary / case), plans, configuration, dataset_json)
        for ending in _CASE_ENDINGS:
            (temporary / f"{case}{ending}").replace(Path(folder) / f"{case}{ending}")
    except stock.CASE_ERRORS as error:
        raise stock.case_error(case, files, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return case
