"""Preprocessing: the stock preprocessor's result, resumable, nothing half written."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import psutil
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_adpfl.cohort import load
from nnunet_adpfl.errors import AdpflError, InputError
from nnunet_adpfl.federation import examination, preprocessing, raw_cases
from nnunet_adpfl.federation.planning import make_plans
from nnunet_adpfl.federation.preprocessing import Preprocessing
from nnunet_adpfl.nnunet_compat import planning as stock


@pytest.fixture
def job(tiny: Path, nnunet_folders: Path) -> Preprocessing:
    preprocessed, raw = nnunet_folders / "preprocessed" / tiny.name, raw_cases.load(tiny)
    merged = examination.examined_fingerprint(preprocessed, raw, load(tiny), pooled=True)
    return Preprocessing(preprocessed, raw, make_plans(tiny.name, raw, merged), "3d_fullres")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that the stock preprocessor was called for."""
    called: list[str] = []
    original = stock.preprocess_case

    def counted(files: Any, target: str, *rest: Any) -> None:
        called.append(Path(target).name)
        original(files, target, *rest)

    monkeypatch.setattr(stock, "preprocess_case", counted)
    return called


def test_equals_the_stock_preprocessor_and_suits_nnunets_loader(job: Preprocessing, tmp_path: Path) -> None:
    job.run(processes=2)
    case = next(iter(job.raw.files))
    stock.preprocess_case(job.raw.files[case], str(tmp_path / case), job.plans, job.configuration, job.raw.dataset_json)
    for ending in (".b2nd", "_seg.b2nd"):
        ours, theirs = (blosc2.open(str(folder / f"{case}{ending}"))[:] for folder in (job.folder, tmp_path))
        np.testing.assert_array_equal(ours, theirs)
    with (job.folder / f"{case}.pkl").open("rb") as ours, (tmp_path / f"{case}.pkl").open("rb") as theirs:
        assert pickle.load(ours).keys() == pickle.load(theirs).keys()
    assert sorted(infer_dataset_class(str(job.folder)).get_identifiers(str(job.folder))) == list(job.raw.files)


def test_nothing_is_done_twice(job: Preprocessing, made: list[str]) -> None:
    job.run(processes=1)
    assert made == list(job.raw.files)
    made.clear()
    job.run(processes=1)
    assert made == []
    assert not job.would_change()


def test_an_interrupted_run_goes_on_where_it_stopped(
    job: Preprocessing, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = stock.preprocess_case

    def failing(files: Any, target: str, *rest: Any) -> None:
        counted(files, target, *rest)
        if len(made) == 4:
            raise OSError("disk full")

    monkeypatch.setattr(stock, "preprocess_case", failing)
    fourth = list(job.raw.files)[3]
    with pytest.raises(InputError, match=f"case {fourth} cannot be used .disk full.*imagesTr"):
        job.run(processes=1)
    assert not list(job.folder.glob(f"*{fourth}*")), "a failed case leaves nothing"
    made.clear()
    monkeypatch.setattr(stock, "preprocess_case", counted)
    job.run(processes=1)
    assert made == list(job.raw.files)[3:]


def test_a_torn_record_costs_one_case(job: Preprocessing, made: list[str]) -> None:
    job.run(processes=1)
    record = job.preprocessed / preprocessing.RECORDS_FOLDER / f"{job.data_identifier}.jsonl"
    record.write_bytes(record.read_bytes()[:-9])
    made.clear()
    job.run(processes=1)
    assert made == [list(job.raw.files)[-1]]
    made.clear()
    job.run(processes=1)
    assert made == []


def test_changed_lost_and_removed_files(job: Preprocessing, made: list[str]) -> None:
    job.run(processes=1)
    first, second, third = list(job.raw.files)[:3]
    os.utime(job.raw.files[first]["label"], ns=(1, 1))
    (job.folder / f"{second}_seg.b2nd").unlink()
    smaller = replace(job, raw=replace(job.raw, files={k: v for k, v in job.raw.files.items() if k != third}))
    assert smaller.would_change()
    made.clear()
    smaller.run(processes=1)
    assert sorted(made) == [first, second]
    assert not list(job.folder.glob(f"{third}*"))


def test_other_settings_make_everything_anew_but_another_width_does_not(job: Preprocessing, made: list[str]) -> None:
    job.run(processes=1)
    made.clear()
    wider = replace(job, plans=copy.deepcopy(job.plans))
    wider.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"][0] = 99
    assert not wider.would_change()
    wider.run(processes=1)
    assert made == []
    wider.plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    assert wider.would_change()
    wider.run(processes=1)
    assert made == list(job.raw.files)


def test_labels_are_copied_and_strangers_removed(job: Preprocessing) -> None:
    folder = job.preprocessed / "gt_segmentations"
    folder.mkdir(parents=True)
    (folder / "stranger.nii.gz").write_bytes(b"")
    preprocessing.copy_labels(job.preprocessed, job.raw)
    assert sorted(path.name for path in folder.iterdir()) == [f"{case}.nii.gz" for case in job.raw.files]
    case = next(iter(job.raw.files))
    assert (folder / f"{case}.nii.gz").read_bytes() == Path(job.raw.files[case]["label"]).read_bytes()


def die(_item: int) -> int:
    os._exit(9)


def test_a_killed_worker_is_one_clear_line() -> None:
    with pytest.raises(AdpflError, match=r"worker processes was killed.*nnUNet_def_n_proc"):
        list(preprocessing.in_processes(die, [1, 2], 2))


def work_for_long() -> None:
    list(preprocessing.in_processes(time.sleep, [600.0, 600.0], 2))


def test_workers_end_with_a_main_process_that_is_killed() -> None:
    main = multiprocessing.get_context("spawn").Process(target=work_for_long)
    main.start()
    deadline = time.monotonic() + 60
    try:
        while len(workers := psutil.Process(main.pid).children()) < 2:
            assert time.monotonic() < deadline, "the workers do not begin"
            time.sleep(0.1)
    finally:
        main.kill()
        main.join()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive


def test_results_come_in_order() -> None:
    assert list(preprocessing.in_processes(abs, [-3, 2, -1], 2)) == [3, 2, 1]
