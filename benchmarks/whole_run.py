"""What privacy costs over a whole training run: loader, steps, noise, averages, ledger and checkpoints.

`adpfl train` as it is, with nnUNetTrainerNP and nnUNetTrainerADP, the same patients drawn in the same steps and the same
patches (draws and patch keys repeat; real runs have no such thing), once with each gradient engine. Runs take turns;
medians of CPU time of the process and its workers. The ratio that counts: ADP to NP with the same engine.

    python benchmarks/whole_run.py WORK --hippocampus FOLDER --json benchmarks/results/whole_run_cpu.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from loader_data import Prepared, prepare, set_folders

TRAINERS = ("nnUNetTrainerNP", "nnUNetTrainerADP")
ENGINES = ("loop", "fused")


class Repeated:
    """The same draws, patches and noise in every run."""

    def draws(self, site: str, step: int) -> np.random.Generator:
        return self._generator(f"draws {site} {step}")

    def noise(self, site: str, step: int) -> np.random.Generator:
        return self._generator(f"noise {site} {step}")

    def patch_key(self, site: str, step: int, unit: str) -> bytes:
        return hashlib.sha256(f"patch {site} {step} {unit}".encode()).digest()

    def _generator(self, purpose: str) -> np.random.Generator:
        # Philox, as in a real run: the kind of generator is part of the cost
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(purpose.encode()))))


def measure(prepared: Prepared, patches: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each trainer and engine."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {(trainer, engine): [] for engine in ENGINES for trainer in TRAINERS}
    for _ in range(repeats):
        for trainer, engine in found:
            found[trainer, engine].append(_run(prepared, trainer, engine, patches, steps))
    seconds = {case: [statistics.median(own) for own in zip(*values, strict=True)] for case, values in found.items()}
    return [
        {
            "dataset": prepared.name, "configuration": prepared.configuration, "patches_per_patient": patches, "steps": steps,
            "trainer": trainer, "engine": engine, "cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2),
            "ratio_to_np": round(cpu / seconds["nnUNetTrainerNP", engine][0], 3),
            "ratio_to_np_with_loop": round(cpu / seconds["nnUNetTrainerNP", "loop"][0], 3),
        }
        for (trainer, engine), (cpu, wall) in seconds.items()
    ]  # fmt: skip


def _run(prepared: Prepared, trainer: str, engine: str, patches: int, steps: int) -> tuple[float, float]:
    """CPU and wall seconds of one run, in a folder of its own that is gone afterwards."""
    from nnunet_adpfl import folders  # noqa: PLC0415  (after the folders are set)
    from nnunet_adpfl.federation.training import train  # noqa: PLC0415
    from nnunet_adpfl.privacy import plan as privacy_plans  # noqa: PLC0415

    path = folders.preprocessed_folder(prepared.name) / privacy_plans.file_name(prepared.plans, prepared.configuration)
    changes = {"engine": engine, "patches_per_unit": patches, "steps": steps, "reserve_steps": 10, "noise_multiplier": 2.0, "epsilon": 1e3}
    privacy_plans.load(path).model_copy(update=changes).save(path)
    results = folders.base_folder("nnUNet_results")
    shutil.rmtree(results)
    results.mkdir()
    began = _clock()
    train(prepared.name, prepared.configuration, 0, trainer=trainer, plans=prepared.plans, workers=1, randomness=Repeated())
    ended = _clock()
    return ended[0] - began[0], ended[1] - began[1]


def _clock() -> tuple[float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # workers that have ended, as they have after a run
    return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for data sets and runs; kept, so that they are made once")
    parser.add_argument("--hippocampus", type=Path, help="folder with Task04_Hippocampus and sites.csv")
    parser.add_argument("--datasets", nargs="+", help="only these")
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 2], help="K, patches per patient")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_folders(options.work)
    import torch  # noqa: PLC0415  (after the folders are set)

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for prepared in prepare(options.work, options.hippocampus):
        if options.datasets and prepared.name not in options.datasets:
            continue
        for patches in options.patches:
            rows += measure(prepared, patches, options.steps, options.repeats)
            for row in rows[-len(TRAINERS) * len(ENGINES) :]:
                print(
                    f"{row['dataset']:22} K={patches}  {row['trainer']:16} {row['engine']:5}  {row['cpu_seconds']:7.1f} s of CPU, "
                    f"{row['ratio_to_np']:.2f} of NP, {row['ratio_to_np_with_loop']:.2f} of NP with the loop",
                    flush=True,
                )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
