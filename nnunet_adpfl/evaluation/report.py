"""The report of a run: one self-contained HTML file for a person to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.cohort import names_a_file
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation import figures, overlays, run_records, scoring, site_matrix, spending
from nnunet_adpfl.evaluation.classes import scored_classes
from nnunet_adpfl.evaluation.run_evaluation import PREDICTIONS_FOLDER, SUMMARY_FILE_NAME, file_digest, is_public
from nnunet_adpfl.evaluation.run_records import RunRecords
from nnunet_adpfl.nnunet_compat.prediction import LabelReader
from nnunet_adpfl.privacy import summary as privacy_summary

FILE_NAME = "report.html"
RELEASE_FILE_NAME = "report_for_release.html"
METRIC_NAMES = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd": "NSD"}
_TEMPLATE = "report.html"


def write_report(run: Path, *, for_release: bool = False) -> Path:
    """Write RUN/report.html from the records of a run, evaluated or not, and return its path.

    Args:
        for_release: write RUN/report_for_release.html instead: without local losses and case names, and, where the
            privacy plan declares validation private, without scores and pictures.

    Raises InputError for a folder that is no run, PrivacyRefusedError for a damaged ledger.
    """
    records = run_records.load(run)
    public = is_public(records)
    context: dict[str, Any] = {
        "run": records.manifest,
        "plan": records.privacy_plan.model_dump(mode="json"),
        "privacy": privacy_summary.summarise(run),
        "metric_names": METRIC_NAMES,
        "not_for_release": [] if for_release else _reasons(records, public),
        "for_release": for_release,
        "curves": _curves(records, with_losses=not for_release),
        "scores": None,
        "overlays": [],
        "matrix": None,
    }
    if public or not for_release:
        context |= _score_parts(records, with_case_names=not for_release)
    path = run / (RELEASE_FILE_NAME if for_release else FILE_NAME)
    try:
        page = _render(context)
    except (jinja2.UndefinedError, TypeError, ValueError) as error:
        names = f"{SUMMARY_FILE_NAME} or {site_matrix.JSON_FILE_NAME}"
        raise InputError(f"{run}: {names} is damaged ({error}): run `adpfl evaluate` again") from None
    atomic_files.write_text(path, page)
    return path


def _reasons(records: RunRecords, public: bool) -> list[str]:
    """Why this report must stay at the site; empty when it holds nothing private."""
    reasons = []
    if not public and (records.path / scoring.FILE_NAME).is_file():
        reasons.append("its scores and pictures come from validation cases that the privacy plan declares private")
    if records.local_logs():
        reasons.append("its learning curves are exact losses of training patients, which no noise protects")
    return reasons


def _curves(records: RunRecords, *, with_losses: bool) -> list[tuple[str, str]]:
    """Title and figure of everything that is drawn over rounds."""
    found = []
    rounds = records.rounds()
    if with_losses:
        losses = {
            site: [(int(r["round"]), float(r["mean_loss"])) for r in log if r.get("mean_loss") is not None]
            for site, log in records.local_logs().items()
        }
        if any(losses.values()):
            found.append(("Local loss", figures.curves(losses, "mean loss of drawn units")))
    spent = spending.epsilon_over_rounds(records.path)
    if spent:
        target = ("target", records.privacy_plan.epsilon)
        found.append(("Epsilon spent", figures.curves(_merged_if_equal(spent), "epsilon", limit=target)))
    clip = [(int(r["round"]), float(r["clip_norm"])) for r in rounds if r.get("clip_norm") is not None]
    if clip and records.privacy_plan.is_private:
        found.append(("Clip norm", figures.curves({"clip norm": clip}, "clip norm C", log=True)))
    return found


def _merged_if_equal(series: Mapping[str, spending.Curve]) -> dict[str, spending.Curve]:
    """Sites that spend alike are one line, not one hidden behind another."""
    alike: dict[str, list[str]] = {}
    for site, curve in series.items():
        alike.setdefault(json.dumps(curve), []).append(site)
    return {_joined(sites): series[sites[0]] for sites in alike.values()}


def _joined(sites: list[str]) -> str:
    return ", ".join(sites) if len(sites) <= 3 else f"{sites[0]} and {len(sites) - 1} more"


def _score_parts(records: RunRecords, *, with_case_names: bool) -> dict[str, Any]:
    """Tables, bars, pictures and matrix of an evaluated run; nothing where it was not evaluated."""
    table = records.path / scoring.FILE_NAME
    if not table.is_file():
        return {}
    scores = scoring.read_table(table)
    dataset_json, plans = (_of_the_run(records.path.parent / name) for name in ("dataset.json", "plans.json"))
    pictures = overlays.make_overlays(
        scores,
        records.path / PREDICTIONS_FOLDER,
        records.preprocessed,
        scored_classes(dataset_json),
        LabelReader(plans),
        str(dataset_json["file_ending"]),
        records.raw,
    )
    matrix = records.path / site_matrix.JSON_FILE_NAME
    summary_file = records.path / SUMMARY_FILE_NAME
    evaluation = _of_the_run(summary_file) if summary_file.is_file() else {}
    return {
        "scores": scoring.summarise(scores),
        "evaluation": evaluation,
        "scores_are_old": _is_old(records.path, evaluation),
        "tolerance_mm": scores[0].tolerance_mm,
        "site_bars": figures.bars(scoring.case_dice_by_site(scores), "Dice"),
        "overlays": [{**asdict(p), "case": p.case if with_case_names else ""} for p in pictures],
        "truth_colour": figures.TRUTH_COLOUR,
        "prediction_colour": figures.PREDICTION_COLOUR,
        "matrix": _of_the_run(matrix) if matrix.is_file() else None,
    }


def _is_old(run: Path, evaluation: Mapping[str, Any]) -> bool:
    """Whether the checkpoint was replaced after it was scored (training went on, say)."""
    name = str(evaluation.get("checkpoint"))
    checkpoint = run / name
    return names_a_file(name) and checkpoint.is_file() and file_digest(checkpoint) != evaluation.get("checkpoint_sha256")


def _render(context: Mapping[str, Any]) -> str:
    source = resources.files("nnunet_adpfl.evaluation").joinpath("templates", _TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure, "metric": _metric}
    return environment.from_string(source).render(**context)


def _figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def _metric(value: float, name: str) -> str:
    return _figure(value, 2 if name.endswith("_mm") else 3)


def _of_the_run(path: Path) -> dict[str, Any]:
    return json_files.load_object(path, "it belongs to the run; restore it")
