"""Site-by-model matrix: how well each model does at each site, on the same held-out cases."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation import run_records, scoring
from nnunet_adpfl.evaluation.metrics import METRICS
from nnunet_adpfl.evaluation.scoring import CaseScore

JSON_FILE_NAME = "site_matrix.json"
CSV_FILE_NAME = "site_matrix.csv"


def site_matrix(tables: Mapping[str, Sequence[CaseScore]], metric: str = "dice") -> dict[str, Any]:
    """Mean of a metric for every model (row) at every site (column).

    Args:
        tables: name of a model -> its scores; all of the same cases and classes.
        metric: dice, hd95_mm, assd_mm or nsd.

    Returns ``{"metric": .., "sites": [..], "models": {NAME: {"sites": {SITE: value}, "mean": value}}, "cases": N}``.
    Raises InputError when the models were not scored on the same cases: their figures would not be comparable.
    """
    check_metric(metric)
    if not tables:
        raise InputError("the matrix needs at least one model")
    first, reference = next(iter(tables.items()))
    wanted = {(score.case, score.label, score.tolerance_mm) for score in reference}
    rows = {}
    for name, scores in tables.items():
        if {(score.case, score.label, score.tolerance_mm) for score in scores} != wanted:
            raise InputError(
                f"{name} was not scored on the cases, classes and tolerance of {first}: evaluate runs of one data set and fold"
            )
        summary = scoring.summarise(scores)
        rows[name] = {
            "sites": {site: values[metric] for site, values in summary["sites"].items()},
            "mean": summary["mean"][metric],
        }
    sites = sorted({score.site for score in reference})
    return {"metric": metric, "sites": sites, "models": rows, "cases": len({score.case for score in reference})}


def check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")


def check_comparable(runs: Sequence[Path]) -> None:
    """InputError unless all runs hold out the same cases: elsewhere a model may have trained on another one's."""
    manifests = [run_records.load(run).manifest for run in runs]
    for run, manifest in zip(runs, manifests, strict=True):
        if (manifest["dataset"], manifest["fold"]) != (manifests[0]["dataset"], manifests[0]["fold"]):
            raise InputError(
                f"{run} is of {manifest['dataset']} fold {manifest['fold']}, {runs[0]} of {manifests[0]['dataset']} fold "
                f"{manifests[0]['fold']}: a model can only be compared on cases that it did not train on"
            )


def site_matrix_of_runs(runs: Mapping[str, Path], metric: str = "dice") -> dict[str, Any]:
    """The matrix of runs that were evaluated before (their metrics.csv); name -> run folder."""
    check_comparable(list(runs.values()))
    return site_matrix({name: scoring.read_table(run / scoring.FILE_NAME) for name, run in runs.items()}, metric)


def write(matrix: Mapping[str, Any], folder: Path) -> None:
    """Write site_matrix.json and site_matrix.csv, atomically."""
    atomic_files.write_json(folder / JSON_FILE_NAME, matrix)
    with atomic_files.replacing(folder / CSV_FILE_NAME) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", *matrix["sites"], "mean"])
        for name, row in matrix["models"].items():
            writer.writerow([name, *(row["sites"][site] for site in matrix["sites"]), row["mean"]])
