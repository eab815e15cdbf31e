"""What a private step costs: time and peak memory of each gradient engine, as ratios to a plain nnU-Net step.

The same units and patches for every method; methods take turns, so that a busy machine hurts all alike; medians.
A plain step: one batch of all patches, forward, nnU-Net's loss, backward, its clip at 12, SGD. A private step: the
engine's clipped sum, noise on every coordinate, SGD. Peak memory: growth of the resident set (of the allocator on a
GPU) during the second step, each method in a process of its own.

    python benchmarks/step_cost.py --quick --json step_cost.json
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from networks import NetworkSize, planned_trainer

from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.privacy.clipping import NormClip
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import GradientEngine, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.noise import add_gaussian_
from nnunet_adpfl.privacy.plan import Trainable
from nnunet_adpfl.trainers.parameters import select_trained

METHODS = ("plain", "loop", "fused")
CPU_SIZES = {
    "quick": (
        NetworkSize("plain", (96, 96), 32, 5, 512, channels=3),
        NetworkSize("plain", (32, 32, 32), 32, 4, 320),
        NetworkSize("resenc", (32, 32, 32), 32, 4, 320),
    ),
    "full": (
        NetworkSize("plain", (256, 256), 32, 7, 512, channels=3),
        NetworkSize("resenc", (256, 256), 32, 7, 512, channels=3),
        NetworkSize("plain", (64, 64, 64), 32, 5, 320),
        NetworkSize("resenc", (64, 64, 64), 32, 5, 320),
    ),
}
GPU_SIZES = (
    NetworkSize("plain", (512, 512), 32, 8, 512, channels=3),
    NetworkSize("resenc", (512, 512), 32, 8, 512, channels=3),
    NetworkSize("plain", (128, 128, 128), 32, 6, 320, channels=4),
    NetworkSize("resenc", (128, 128, 128), 32, 6, 320, channels=4),
)
UNITS = {2: 4, 3: 2}  # dims -> units in a step
LEARNING_RATE, CLIP_NORM, NOISE = 1e-6, 1.0, 1.0


class Bench:
    """One network with the patches of one step, and every method on them."""

    def __init__(self, size: NetworkSize, patches_per_unit: int, device: torch.device) -> None:
        trainer = planned_trainer(size, device)
        self.device = device
        self.network = stock.build_network(trainer, 0)
        self.loss = stock.build_loss(trainer)
        generator = torch.Generator().manual_seed(1)
        self.units = [
            UnitPatches(*stock.random_batch(trainer, patches_per_unit, generator)) for _ in range(UNITS[size.dims])
        ]
        one = self.units[0]
        self.trained = select_trained(self.network, Trainable(), lambda: self.loss(self.network(one.data), one.target))
        autocast, patches = device.type == "cuda", patches_per_unit * len(self.units)
        self.engines: dict[str, GradientEngine] = {
            "loop": LoopEngine(self.network, self.loss, self.trained, autocast=autocast),
            "fused": FusedEngine(self.network, self.loss, self.trained, patches_at_once=patches, autocast=autocast),
        }
        self.optimizer = torch.optim.SGD(self.trained.values(), lr=LEARNING_RATE, momentum=0.99, nesterov=True)
        self.noise = np.random.default_rng(0)
        data = torch.cat([unit.data for unit in self.units])
        targets = [torch.cat(list(parts)) for parts in zip(*(unit.target for unit in self.units), strict=True)]
        self.batch = data, targets

    def step(self, method: str) -> None:
        if method == "plain":
            self._plain()
        else:
            self._private(self.engines[method])

    def _plain(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            value = self.loss(self.network(self.batch[0]), self.batch[1])
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 12)
        self.optimizer.step()

    def _private(self, engine: GradientEngine) -> None:
        summed = engine.clipped_sum(self.units, NormClip(CLIP_NORM))
        for name, tensor in summed.total.items():
            add_gaussian_(tensor, NOISE, self.noise)
            self.trained[name].grad = tensor.div_(len(self.units))
        self.optimizer.step()

    def error(self, method: str) -> float:
        """Largest deviation of an engine's unclipped mean from the gradient of the whole batch, relative to its norm."""
        summed = self.engines[method].clipped_sum(self.units, NormClip(1e9)).total
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.loss(self.network(self.batch[0]), self.batch[1]))
        plain = {name: parameter.grad for name, parameter in self.trained.items()}
        norm = torch.sqrt(sum((g.double() ** 2).sum() for g in plain.values()))  # type: ignore[union-attr]
        worst = max(float((summed[name] * 1e9 / len(self.units) - plain[name]).abs().max()) for name in summed)
        return worst / float(norm)


def timed(bench: Bench, repeats: int) -> dict[str, float]:
    """Median seconds of a step, methods in turn, after one step of each to warm up."""
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for repeat in range(repeats + 1):
        for method in METHODS:
            began = time.perf_counter()
            bench.step(method)
            _finish(bench.device)
            if repeat:
                seconds[method].append(time.perf_counter() - began)
    return {method: statistics.median(values) for method, values in seconds.items()}


def peak_memory(size: NetworkSize, patches_per_unit: int, device: torch.device, method: str) -> float:
    """Peak MiB of the second step above what model, optimizer and patches take; in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (size, patches_per_unit, str(device), method, torch.get_num_threads()))


def _peak(size: NetworkSize, patches_per_unit: int, device: str, method: str, threads: int) -> float:
    torch.set_num_threads(threads)
    bench = Bench(size, patches_per_unit, torch.device(device))
    bench.step(method)  # the optimizer's state is made here
    bench.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        bench.step(method)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return _watched(lambda: bench.step(method)) / 2**20


def _watched(work: Callable[[], None]) -> float:
    """Growth of the resident set while ``work`` runs, looked at every two milliseconds."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return float(peak[0] - before)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(size: NetworkSize, patches_per_unit: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """One row per method."""
    bench = Bench(size, patches_per_unit, device)
    seconds = timed(bench, repeats)
    engines = [method for method in METHODS if method != "plain"]
    error = {method: bench.error(method) if device.type == "cpu" else None for method in engines}
    parameters = sum(parameter.numel() for parameter in bench.trained.values())
    del bench
    memory = {method: peak_memory(size, patches_per_unit, device, method) for method in METHODS}
    return [
        {
            "network": size.network,
            "dims": size.dims,
            "method": method,
            "patches_per_patient": patches_per_unit,
            "time_ratio": round(seconds[method] / seconds["plain"], 3),
            "memory_ratio": round(memory[method] / memory["plain"], 3),
            "max_rel_error": error.get(method, 0.0),
            "seconds": round(seconds[method], 4),
            "memory_mib": round(memory[method], 1),
            "patch_size": list(size.patch),
            "patients": UNITS[size.dims],
            "parameters": parameters,
        }
        for method in METHODS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, few repeats: under three minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 4], help="K, patches per patient")
    parser.add_argument("--repeats", type=int, default=0, help="timed steps of each method; default 3 (quick) or 7")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = GPU_SIZES if device.type == "cuda" else CPU_SIZES["quick" if arguments.quick else "full"]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for patches in arguments.patches:
            rows += measure(size, patches, device, arguments.repeats or (3 if arguments.quick else 7))
            for row in rows[-len(METHODS) :]:
                print(
                    f"{row['network']:7} {row['dims']}D {'x'.join(map(str, row['patch_size'])):11} K={row['patches_per_patient']} "
                    f"{row['method']:6} time {row['time_ratio']:5.2f} ({row['seconds']:.3f} s)  memory "
                    f"{row['memory_ratio']:5.2f} ({row['memory_mib']:.0f} MiB)",
                    flush=True,
                )
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if not arguments.json:
        json.dump(rows, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
