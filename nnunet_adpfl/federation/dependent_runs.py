"""Runs that were trained with a plan or on preprocessed data, and that would be orphaned if these changed."""

from __future__ import annotations

from pathlib import Path

from nnunet_adpfl import json_files
from nnunet_adpfl.federation.preprocessing import data_identifier
from nnunet_adpfl.trainers import run_manifest


def of_plans(results: Path, plans_name: str, configuration: str | None = None) -> list[Path]:
    """Run folders, stock ones and ours, below ``nnUNet_results/DATASET`` that used these plans."""
    found = {path.parent for path in results.glob(f"*__{plans_name}__{configuration or '*'}/fold_*/checkpoint_*.pth")}
    for folder in of_cohort(results):
        manifest = run_manifest.load(folder)
        if plans_name in ("*", manifest.plans) and configuration in (None, manifest.configuration):
            found.add(folder)
    return sorted(found)


def any_run(results: Path) -> bool:
    """Does any run of this data set exist, stock or ours?"""
    return bool(of_plans(results, "*"))


def of_data(results: Path, preprocessed: Path, identifier: str) -> list[Path]:
    """Run folders whose plans, whatever their name, read the preprocessed cases in this folder."""
    found: set[Path] = set()
    for path in preprocessed.glob("*.json"):
        try:
            plans = json_files.load(path)
            same = [name for name in plans["configurations"] if data_identifier(plans, name) == identifier]
            for configuration in same:
                found.update(of_plans(results, plans["plans_name"], configuration))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # another kind of file
    return sorted(found)


def of_cohort(results: Path) -> list[Path]:
    """Run folders of this plugin, which all depend on the cohort."""
    return sorted(path.parent for path in results.rglob(run_manifest.FILE_NAME) if path.is_file())
