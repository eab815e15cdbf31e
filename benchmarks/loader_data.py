"""Prepared data sets for benchmarks/loader.py, made by the `adpfl` command as a user does it, in a folder of nnU-Net's own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMMAND = "from nnunet_adpfl.cli.main import main; main()"


@dataclass(frozen=True)
class Prepared:
    """A data set to load from; ``patches``: how many a turn of the benchmark takes."""

    name: str
    configuration: str
    patches: int
    plans: str = "nnUNetPlans_f8"


MADE_UP = (
    (Prepared("Dataset901_Skin", "2d", 96), "ham10000", "96x128", 40),
    (Prepared("Dataset902_Brain", "3d_fullres", 16), "brats2024", "96x112x96", 10),
)
REAL = Prepared("Dataset904_Hippocampus", "3d_fullres", 48)


def set_folders(base: Path) -> None:
    """nnU-Net's variables; before nnU-Net is imported."""
    for kind in ("raw", "preprocessed", "results"):
        (base / kind).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{kind}"] = str(base / kind)


def prepare(base: Path, hippocampus: Path | None) -> list[Prepared]:
    """Make, convert and plan what is not there yet.

    Args:
        hippocampus: folder with Task04_Hippocampus and sites.csv; None leaves it out.
    """
    found = []
    for wanted, kind, size, cases in MADE_UP:
        number, _, name = wanted.name.removeprefix("Dataset").partition("_")
        made = base / "made" / kind
        if not (base / "raw" / wanted.name).is_dir():
            _adpfl("synth", kind, str(made), "--cases", str(cases), "--sites", "1", "--size", size)
            _adpfl("convert", kind, str(made), number, "--name", name)
        found.append(_planned(base, wanted))
    if hippocampus is not None:
        if not (base / "raw" / REAL.name).is_dir():
            table = str(hippocampus / "sites.csv")
            _adpfl("convert", "msd", str(hippocampus / "Task04_Hippocampus"), "904", "--name", "Hippocampus", "--sites", table)
        found.append(_planned(base, REAL))
    return found


def _planned(base: Path, wanted: Prepared) -> Prepared:
    if not (base / "preprocessed" / wanted.name / "cohort.json").is_file():
        _adpfl("plan", wanted.name, "-c", wanted.configuration, "--base-features", "8", "--delta", "1e-3")
    return wanted


def _adpfl(*arguments: str) -> None:
    print("adpfl", *arguments, file=sys.stderr)
    subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL)
