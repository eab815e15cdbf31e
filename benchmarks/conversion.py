"""Cases per second of `adpfl convert` and of the federated preprocessing, beside nnU-Net's own, on the same files.

    python benchmarks/conversion.py [--quick] --json benchmarks/results/conversion.json

Sources are made-up sets at the sizes of the real ones. `checked` is what only adpfl does: it reads every voxel, compares grids and labels.
Ratios of one run; the disk's cache is warm for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

WORK = Path(tempfile.mkdtemp(prefix="conversion_"))
for part in ("raw", "preprocessed", "results"):
    (WORK / part).mkdir()
    os.environ[f"nnUNet_{part}"] = str(WORK / part)

from nnunet_adpfl.cli.synth import GENERATORS  # noqa: E402  (nnU-Net reads its variables on import)
from nnunet_adpfl.dataset_conversion import converters  # noqa: E402
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice  # noqa: E402
from nnunet_adpfl.dataset_conversion.source_set import Options  # noqa: E402

FULL = {"ham10000": (80, (450, 600)), "kits23": (6, (104, 512, 512)), "brats2024": (5, (182, 218, 182))}
QUICK = {"ham10000": (20, (225, 300)), "kits23": (5, (52, 128, 128)), "brats2024": (5, (91, 109, 91))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="Rows of other sets that the file has are kept.")
    parser.add_argument("--sets", nargs="+", choices=list(FULL), default=list(FULL))
    arguments = parser.parse_args()
    kept = json.loads(arguments.json.read_text())["rows"] if arguments.json and arguments.json.exists() else []
    rows = [row for row in kept if row["set"] not in arguments.sets]
    try:
        for name, (units, size) in (QUICK if arguments.quick else FULL).items():
            if name not in arguments.sets:
                continue
            of_set = _measured(name, units, size)
            for row in of_set:
                print("{set:10s} {what:34s} {cases:4d} cases {seconds:8.2f} s {cases_per_second:9.2f} cases/s".format(**row), flush=True)
            rows += of_set
            if arguments.json:
                machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
                arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    finally:
        shutil.rmtree(WORK)


def _measured(name: str, units: int, size: tuple[int, ...]) -> list[dict[str, Any]]:
    source = WORK / name
    made = import_module(GENERATORS[name]).generate(source, units=units, sites=1, size=size)
    cases = sum(made.images.values())
    rows = []

    def time_of(what: str, call: Callable[[], object], fresh: bool = True) -> None:
        if fresh:
            shutil.rmtree(WORK / "raw")
            (WORK / "raw").mkdir()
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        rows.append(_row(name, what, cases, seconds))

    def convert(processes: int, options: Options | None = None) -> None:
        os.environ.update(nnUNet_def_n_proc=str(processes))
        tables = sorted(source.glob("*_sites.csv"))
        converters.convert(name, source, 55, sites=SitesChoice(tables[0] if tables else None), options=options)

    convert(2)  # warm cache
    time_of("adpfl convert, 1 core", lambda: convert(1))
    time_of("adpfl convert, 2 cores", lambda: convert(2))
    time_of("adpfl convert again", lambda: convert(2), fresh=False)
    if name != "ham10000":
        time_of("adpfl convert --link, 2 cores", lambda: convert(2, Options(linked=True)))
    if name == "kits23":
        kits = import_module("nnunetv2.dataset_conversion.Dataset220_KiTS2023")
        kits.nnUNet_raw = str(WORK / "raw")
        time_of("nnU-Net's converter (copies)", lambda: kits.convert_kits2023(str(source / "kits23" / "dataset"), 220))
    if name == "brats2024":
        time_of("copying the files alone", lambda: shutil.copytree(source, WORK / "raw" / "copy"))
    if name in ("ham10000", "kits23"):
        time_of("adpfl convert, 2 cores, once more", lambda: convert(2))
        rows += _preprocessing(name, cases)
    shutil.rmtree(source)
    shutil.rmtree(WORK / "raw")
    (WORK / "raw").mkdir()
    return rows


def _row(name: str, what: str, cases: int, seconds: float) -> dict[str, Any]:
    return {"set": name, "what": what, "cases": cases, "seconds": round(seconds, 3), "cases_per_second": round(cases / seconds, 2)}


def _preprocessing(name: str, cases: int) -> list[dict[str, Any]]:
    """adpfl plan (examines, plans, preprocesses, splits) and nnUNetv2_plan_and_preprocess with its integrity check."""
    configuration = "2d" if name == "ham10000" else "3d_fullres"
    bin_folder = Path(sys.executable).parent
    rows = []

    def timed(what: str, command: list[str], fresh: bool = True) -> None:
        if fresh:
            shutil.rmtree(WORK / "preprocessed")
            (WORK / "preprocessed").mkdir()
        began = time.perf_counter()
        environment = {**os.environ, "nnUNet_def_n_proc": "2", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        rows.append(_row(name, what, cases, seconds))

    plan = [str(bin_folder / "adpfl"), "plan", "55", "-c", configuration]
    stock = [str(bin_folder / "nnUNetv2_plan_and_preprocess"), "-d", "55", "-c", configuration, "-np", "2", "-npfp", "2"]
    timed("nnUNetv2_plan_and_preprocess, 2", [*stock, "--verify_dataset_integrity"])
    timed("adpfl plan, 2 cores", plan)
    timed("adpfl plan again", plan, fresh=False)
    shutil.rmtree(WORK / "preprocessed")
    (WORK / "preprocessed").mkdir()
    return rows


if __name__ == "__main__":
    main()
