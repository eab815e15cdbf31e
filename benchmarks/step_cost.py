"""What a private step costs: time and peak memory of each way to compute it, as ratios to a plain nnU-Net step.

The same units, patches and weights for every method; methods take turns, so that a busy machine hurts all alike; medians.
A plain step: one batch of all patches, forward, nnU-Net's loss, backward, its clip at 12, SGD. A private step: the method's
clipped sum, noise on every coordinate, SGD. The noise costs the same whatever the method, so ``gradient_ratio`` compares the
clipped sum alone with plain forward and backward. Ratios are of CPU time on a CPU, since machines are shared, and of wall
time on a GPU. Peak memory: growth of the resident set (of the allocator on a GPU) during one step, on a CPU each method in a
process of its own. The other methods are Opacus's hooks and ghost clipping, and torch.func's vmap (see other_engines.py).

Every method is first compared with the loop engine, in float64 on small patches and as it runs; one that is wrong or fails
gets a row with the reason and no time. What a method cannot do, and cases whose work (patients x K x pixels x features of
the first stage, twice for residual encoders) is beyond a limit, are listed under ``left_out``.

    python benchmarks/step_cost.py --quick --json step_cost.json --plot step_cost.png      # CPU: under three minutes
    python benchmarks/step_cost.py --json step_cost.json                                   # CPU: a quarter of an hour
    python benchmarks/step_cost.py --sizes large --patches 1 --methods fused "fused inverted"
    python benchmarks/step_cost.py --from step_cost.json --plot step_cost.svg              # draws, measures nothing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from networks import NetworkSize
from rich.console import Console
from rich.table import Table
from step_measures import Measured, measure
from step_methods import METHODS, Case, missing
from step_plot import draw

Sizes = tuple[tuple[NetworkSize, int], ...]  # network and patients
QUICK: Sizes = (
    (NetworkSize("plain", (64, 64), 16, 5, 256, channels=3), 2),
    (NetworkSize("resenc", (32, 32), 8, 4, 64, channels=3), 2),
    (NetworkSize("plain", (16, 16, 16), 16, 3, 64), 2),
    (NetworkSize("resenc", (16, 16, 16), 8, 3, 32), 2),
)
FULL: Sizes = (
    (NetworkSize("plain", (128, 128), 32, 6, 512, channels=3), 4),
    (NetworkSize("resenc", (96, 96), 32, 5, 512, channels=3), 4),
    (NetworkSize("plain", (32, 32, 32), 32, 4, 320), 2),
    (NetworkSize("resenc", (24, 24, 24), 32, 4, 320), 2),
    (NetworkSize("plain", (64, 64), 16, 5, 256, channels=3), 4),
    (NetworkSize("plain", (16, 16, 16), 16, 3, 64), 4),
)
LARGE: Sizes = (
    (NetworkSize("plain", (256, 256), 32, 7, 512, channels=3), 4),
    (NetworkSize("resenc", (256, 256), 32, 7, 512, channels=3), 2),
    (NetworkSize("plain", (64, 64, 64), 32, 5, 320), 2),
    (NetworkSize("resenc", (64, 64, 64), 32, 5, 320), 2),
)
GPU: Sizes = (  # nnU-Net's own for large images
    (NetworkSize("plain", (512, 512), 32, 8, 512, channels=3), 12),
    (NetworkSize("resenc", (512, 512), 32, 8, 512, channels=3), 12),
    (NetworkSize("plain", (128, 128, 128), 32, 6, 320, channels=4), 2),
    (NetworkSize("resenc", (128, 128, 128), 32, 6, 320, channels=4), 2),
)
SIZES = {"quick": QUICK, "full": FULL, "large": LARGE, "gpu": GPU}
MOST_WORK = {"quick": 500_000, "full": 2_400_000, "large": 40_000_000, "gpu": 2**29}  # of a case
PACKAGES = ("torch", "opacus", "nnunetv2", "dynamic-network-architectures", "numpy")


def rows_of(case: Case, methods: list[str], found: Measured, device: torch.device) -> Iterator[dict[str, Any]]:
    """One row per method that can do the case; null where there is no number, and then a reason."""
    clock = "wall" if device.type == "cuda" else "cpu"
    plain = found.seconds.get("plain")
    for method in methods:
        if missing(method, case):
            continue
        own = found.seconds.get(method)
        yield {
            **_described(case),
            "parameters": found.parameters,
            "method": method,
            "time_ratio": _ratio(own, plain, clock),
            "gradient_ratio": _ratio(own, plain, f"gradient_{clock}"),
            "memory_ratio": _rounded(found.memory.get(method), found.memory.get("plain")),
            "error": found.errors.get(method),
            "error_float64": found.exact_errors.get(method),
            "clock": clock,
            "seconds": {name: round(value, 4) for name, value in vars(own).items()} if own else None,
            "memory_mib": _rounded(found.memory.get(method), 1.0),
            "reason": found.reasons.get(method),
        }


def _described(case: Case) -> dict[str, Any]:
    size = case.size
    return {
        "network": size.network, "dims": size.dims, "patch_size": list(size.patch), "features": size.features,
        "stages": size.stages, "patients": case.patients, "patches_per_patient": case.patches,
    }  # fmt: skip


def _ratio(own: Any, plain: Any, clock: str) -> float | None:
    return _rounded(getattr(own, clock, None), getattr(plain, clock, None))


def _rounded(value: float | None, base: float | None) -> float | None:
    return round(value / base, 3) if value is not None and base else None


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def run(
    cases: list[Case], limit: int, methods: list[str], device: torch.device, repeats: int, file: Path | None
) -> dict[str, Any]:
    """Measure all cases; the file is complete after each of them."""
    result: dict[str, Any] = {"machine": machine(device), "repeats": repeats, "rows": [], "left_out": []}
    console, began = Console(width=120), time.perf_counter()
    for case in cases:
        if case.work > limit:
            result["left_out"].append({**_described(case), "reason": f"work {case.work:.1e} is beyond {limit:.1e}"})
            continue
        try:
            rows = list(rows_of(case, methods, measure(case, methods, device, repeats), device))
        except RuntimeError as error:  # not one method: the network itself does not fit
            result["left_out"].append({**_described(case), "reason": f"{type(error).__name__}: {error!s:.160}"})
            continue
        result["rows"] += rows
        absent = ((method, missing(method, case)) for method in methods)
        result["left_out"] += [{**_described(case), "method": method, "reason": why} for method, why in absent if why]
        result["seconds"] = round(time.perf_counter() - began, 1)
        console.print(table_of(str(case), rows))
        if file:
            save(file, result)
    for left in result["left_out"]:
        console.print("left out:", json.dumps(left), highlight=False)
    if file:
        save(file, result)
    return result


def save(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("method", "step", "gradient", "memory", "seconds", "MiB", "error", "float64", title=title)
    for row in rows:
        if row["reason"]:
            table.add_row(row["method"], row["reason"])
            continue
        ratios = [_text(row[name], ".2f") for name in ("time_ratio", "gradient_ratio", "memory_ratio")]
        errors = [_text(row[name], ".1e") for name in ("error", "error_float64")]
        seconds = (row["seconds"] or {}).get(row["clock"])
        table.add_row(row["method"], *ratios, _text(seconds, ".3f"), _text(row["memory_mib"], ".0f"), *errors)
    return table


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="as --sizes quick")
    parser.add_argument("--sizes", choices=SIZES, help="default: full on a CPU, gpu (nnU-Net's own) on a GPU")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="beside plain and loop, which are always measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on a CPU")
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 2, 8], help="K, patches per patient")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each method")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios: .png or .svg")
    parser.add_argument("--from", type=Path, dest="source", help="draw the numbers of this file, measure nothing")
    options = parser.parse_args()
    if options.source:
        result = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(options.threads)
        device = torch.device(options.device)
        kind = options.sizes or ("gpu" if device.type == "cuda" else "quick" if options.quick else "full")
        cases = [Case(size, patients, number) for size, patients in SIZES[kind] for number in options.patches]
        methods = [method for method in METHODS if method in ("plain", "loop", *options.methods)]
        result = run(cases, MOST_WORK[kind], methods, device, options.repeats, options.json)
    if options.plot:
        draw(result, options.plot)


if __name__ == "__main__":
    main()
