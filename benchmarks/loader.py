"""Does the loader keep the step fed? Patches a second of nnU-Net's loader, of the patient loader, and of the training step.

The data sets are made (and the real one converted) and planned by the `adpfl` command. Ways take turns; medians of wall
time (workers are processes of their own), one thread each. ``waiting`` is the share of a step's time in which it waits
for patches, the filling of an empty pipeline at its start included. Reading and augmenting are CPU time of one process.

    python benchmarks/loader.py WORK --hippocampus FOLDER --json benchmarks/results/loader_cpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loader_data import Prepared, prepare, set_folders

PATCHES_PER_UNIT = (1, 2, 8)
WORKERS = (0, 1, 2)


class Bench:
    """One planned data set: requests, loaders and the engine of a run on it."""

    def __init__(self, prepared: Prepared, base: Path) -> None:
        import torch  # noqa: PLC0415  (after the folders are set)

        from nnunet_adpfl.nnunet_compat.training import PlannedTrainer  # noqa: PLC0415
        from nnunet_adpfl.trainers import prepared_fold  # noqa: PLC0415

        torch.set_num_threads(1)
        self.device = torch.device("cpu")
        self.patches = prepared.patches
        self.fold = prepared_fold.load(
            base / "preprocessed" / prepared.name, prepared.plans, prepared.configuration, 0, "nnUNetTrainerADP"
        )
        self.trainer = PlannedTrainer(self.fold.plans, prepared.configuration, self.fold.dataset_json, self.device)
        self.batch_size = self.trainer.configuration_manager.batch_size

    def requests(self, patches_per_unit: int) -> list[Any]:
        from nnunet_adpfl.trainers.patient_loader import UnitRequest  # noqa: PLC0415

        cases, draw = self.fold.cases_by_unit(), random.Random(0)
        drawn = [draw.choice(sorted(cases)) for _ in range(self.patches // patches_per_unit)]
        return [UnitRequest(tuple(cases[unit]), draw.randbytes(32)) for unit in drawn]

    def source(self, patches_per_unit: int) -> Any:
        from nnunet_adpfl.nnunet_compat.patches import PatchSettings, PatchSource  # noqa: PLC0415

        return PatchSource(self.trainer, self.fold.data_folder, PatchSettings(patches_per_unit, self.fold.plan.oversample_foreground))

    @contextlib.contextmanager
    def loader(self, patches_per_unit: int, workers: int) -> Iterator[Any]:
        """Patient loader whose workers run already."""
        from nnunet_adpfl.trainers.patient_loader import PatientLoader  # noqa: PLC0415

        made = PatientLoader(self.source(patches_per_unit), self.device, workers)
        for _ in made.stream(self.requests(patches_per_unit)[: 2 * max(1, workers)]):
            pass
        yield made
        made.close()

    def patient_rate(self, patches_per_unit: int, workers: int) -> float:
        requests = self.requests(patches_per_unit)
        with self.loader(patches_per_unit, workers) as loader:
            return len(requests) * patches_per_unit / _seconds(lambda: sum(1 for _ in loader.stream(requests)))

    def stock_rate(self, processes: int) -> float:
        """nnU-Net's own loader with its own batch size, its first batch not counted."""
        from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter  # noqa: PLC0415
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # noqa: PLC0415

        own = self.source(self.batch_size)._loader
        made = nnUNetDataLoader(
            own._data._dataset, self.batch_size, own.patch_size[-self.dims :], own.final_patch_size[-self.dims :],
            self.trainer.label_manager, oversample_foreground_percent=0.33, transforms=own.transforms,
        )  # fmt: skip
        augmenter = NonDetMultiThreadedAugmenter(made, None, processes, num_cached=max(6, processes // 2), wait_time=0.002)
        for _ in range(processes):
            next(augmenter)
        batches = max(8, self.patches // self.batch_size)
        seconds = _seconds(lambda: [next(augmenter) for _ in range(batches)])
        augmenter._finish()
        return batches * self.batch_size / seconds

    @property
    def dims(self) -> int:
        return len(self.trainer.configuration_manager.patch_size)

    @functools.cached_property
    def model(self) -> Any:
        from nnunet_adpfl.trainers import private_model  # noqa: PLC0415

        return private_model.build(self.trainer, self.fold.plan.model_copy(update={"engine": "fused"}))

    def steps(self, patches_per_unit: int) -> tuple[float, dict[int, float]]:
        """Patches a second of the engine with patches in memory; number of workers -> share of time spent waiting."""
        from nnunet_adpfl.privacy.clipping import NormClip  # noqa: PLC0415

        requests, engine = self.requests(patches_per_unit)[: max(1, self.patches // patches_per_unit // 2)], self.model.engine
        rule, waiting = NormClip(1.0), {}
        with self.loader(patches_per_unit, 0) as loader:
            held = list(loader.stream(requests))
        engine.clipped_sum(held[:1], rule)
        rate = len(requests) * patches_per_unit / _seconds(lambda: engine.clipped_sum(held, rule))
        for workers in WORKERS[1:]:
            with self.loader(patches_per_unit, workers) as loader:
                stream = Waiting(loader.stream(requests))
                whole = _seconds(lambda stream=stream: engine.clipped_sum(stream, rule))
                waiting[workers] = stream.seconds / whole
        return rate, waiting

    def parts(self, patches_per_unit: int) -> dict[str, float]:
        """CPU milliseconds a patch of reading (opening, properties, cropping), of augmenting and of the rest; reads."""
        from nnunetv2.training.dataloading import data_loader  # noqa: PLC0415

        source, requests = self.source(patches_per_unit), self.requests(patches_per_unit)
        spent, calls = {"open": 0.0, "crop": 0.0, "augment": 0.0}, {"open": 0, "crop": 0, "augment": 0}

        def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                began = time.process_time()
                found = function(*args, **kwargs)
                spent[what] += time.process_time() - began
                calls[what] += 1
                return found

            return run

        dataset, stock_crop = source._loader._data._dataset, data_loader.crop_and_pad_nd
        dataset.load_case = timed("open", dataset.load_case)
        source._loader.transforms = timed("augment", source._loader.transforms)
        data_loader.crop_and_pad_nd = timed("crop", stock_crop)
        try:
            began = time.process_time()
            for request in requests:
                source.patches(request.cases, request.key)
            total = time.process_time() - began
        finally:
            data_loader.crop_and_pad_nd = stock_crop
        number = len(requests) * patches_per_unit
        figures = {f"{what}_ms": round(1000 * value / number, 3) for what, value in spent.items()}
        rest = 1000 * (total - sum(spent.values())) / number
        cases = sum(min(len(request.cases), patches_per_unit) for request in requests)
        return {**figures, "rest_ms": round(rest, 3), "reads_per_case_of_a_unit": round(calls["open"] / cases, 3)}


class Waiting:
    """Patches of a loader, and how long they were waited for."""

    def __init__(self, patches: Iterator[Any]) -> None:
        self._patches = patches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return next(self._patches)
        finally:
            self.seconds += time.perf_counter() - began


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """All figures of one data set; medians of ``repeats`` turns."""
    turns: dict[str, list[Any]] = {}

    def note(name: str, value: float) -> None:
        turns.setdefault(name, []).append(value)

    for _ in range(repeats):
        for workers in WORKERS[1:]:
            note(f"nnU-Net, {workers} workers", bench.stock_rate(workers))
        for patches in PATCHES_PER_UNIT:
            for workers in WORKERS:
                note(f"patient loader, K {patches}, {workers} workers", bench.patient_rate(patches, workers))
            rate, waiting = bench.steps(patches)
            note(f"step, K {patches}", rate)
            for workers, share in waiting.items():
                note(f"waiting, K {patches}, {workers} workers", share)
    rates = {name: statistics.median(values) for name, values in turns.items()}
    stock = rates["nnU-Net, 1 workers"]
    found = {name: round(rate if name.startswith("waiting") else rate / stock, 3) for name, rate in rates.items()}
    parts = {f"K {patches}": bench.parts(patches) for patches in PATCHES_PER_UNIT}
    return {"patches_a_second_of_nnunet_with_1_worker": round(stock, 1), "ratios": found, "cpu_a_patch": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the data sets; kept, so that a second run is quick")
    parser.add_argument("--hippocampus", type=Path, help="folder with Task04_Hippocampus and sites.csv")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="data sets with this in their name")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    set_folders(options.work)
    found = {}
    for prepared in prepare(options.work, options.hippocampus):
        if options.only not in prepared.name:
            continue
        bench = Bench(prepared, options.work)
        size = {"patch": list(bench.trainer.configuration_manager.patch_size), "batch_size": bench.batch_size}
        found[prepared.name] = {"configuration": prepared.configuration, **size, **measure(bench, options.repeats)}
        print(json.dumps({prepared.name: found[prepared.name]}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
