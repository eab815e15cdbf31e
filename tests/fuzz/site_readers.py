"""Readers of what lies in nnU-Net's folders at a site: plans, cohort, splits, runs, ledgers, checkpoints, releases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import one_site
import tiny_dataset
import torch
from damaged_binary import checkpoint, release, tensors_file
from damaged_text import json_file, json_lines, sealed_lines, table
from reader import Reader
from workspace import CONFIGURATION, PLANS, SITES, Workspace

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folds, tensor_files
from nnunet_adpfl.evaluation import run_records, scoring
from nnunet_adpfl.evaluation.report import write_report
from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
from nnunet_adpfl.federation import dependent_runs, examination, raw_cases, stored_update
from nnunet_adpfl.federation import plans as plan_files
from nnunet_adpfl.federation.client import run_site_round
from nnunet_adpfl.federation.preprocessing import Preprocessing
from nnunet_adpfl.federation.training import KIND
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.nnunet_compat.prediction import load_model
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_network, check_supported
from nnunet_adpfl.privacy import hash_chain, summary
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import installation, post_processing, prepared_fold, run_manifest, site_ledger
from nnunet_adpfl.trainers.release import export_run
from nnunet_adpfl.trainers.run_folder import RunFolder


def plan_readers(workspace: Workspace) -> list[Reader]:
    """Data set, cohort, splits and plans."""
    pre, raw = workspace.preprocessed, workspace.base / "own_raw"
    shutil.copytree(workspace.base / "raw" / tiny_dataset.NAME, raw)
    (raw / "imagesTr" / "unused").mkdir()
    loaded = raw_cases.load(raw)
    fingerprint = examination.examined_fingerprint(pre, loaded, cohorts.load(pre), pooled=True, processes=1)
    assert fingerprint
    plans_file, dataset_file = pre / f"{PLANS}.json", pre / "dataset.json"
    public = workspace.base / "public.json"
    public.write_text(plans_file.read_text().replace(tiny_dataset.NAME, "Dataset001_Other"))

    def prepared() -> Any:
        return prepared_fold.load(pre, PLANS, CONFIGURATION, 0, "nnUNetTrainerADP")

    def of_the_public() -> None:
        plans = plan_files.adapted_plans(plan_files.public_plans(public, tiny_dataset.NAME, loaded), 2)
        for configuration in plans["configurations"]:
            check_supported(plans, configuration)
            build_network(PlannedTrainer(plans, configuration, loaded.dataset_json, torch.device("cpu")), 0)

    def of_raw() -> None:
        found = raw_cases.load(raw)
        stock.check_labels(found.dataset_json)
        stock.reader_name(found.dataset_json, next(iter(found.files.values()))["images"][0])
        assert all("/" not in case for case in found.files)

    def examined() -> None:
        known = examination._remembered(pre / ".adpfl" / "examined.json", examination.state_of(loaded))
        if known:  # else the cases are examined again
            plan_files.make_plans(tiny_dataset.NAME, loaded, known)

    def splits() -> None:
        known = cohorts.load(pre)
        for fold in range(2):
            folds.training_units(known, folds.make_fold(folds.load_splits(pre, known), known, fold))

    record = Preprocessing(pre, loaded, prepared().plans, CONFIGURATION)
    return [
        Reader("cohort.json", pre / "cohort.json", lambda: cohorts.load(pre).digest(), json_file),
        Reader("splits_final.json", pre / "splits_final.json", splits, json_file),
        Reader("dataset.json (raw)", raw / "dataset.json", of_raw, json_file),
        Reader("dataset.json (preprocessed)", dataset_file, prepared, json_file),
        Reader("PLANS.json", plans_file, prepared, json_file),
        Reader("public PLANS.json", public, of_the_public, json_file, cost=2),
        Reader("privacy plan", workspace.plan_file, lambda: privacy_plans.load(workspace.plan_file).digest(), json_file),
        Reader("examined.json", pre / ".adpfl" / "examined.json", examined, json_file, cost=4),
        Reader("preprocessing records", pre / ".adpfl" / f"{record.data_identifier}.jsonl", record.would_change, json_lines),
    ]


def run_readers(workspace: Workspace) -> list[Reader]:
    """A finished run and its release."""
    run, pre = workspace.run(), workspace.preprocessed
    prepared = prepared_fold.load(pre, PLANS, CONFIGURATION, 0, "nnUNetTrainerADP")
    folder = RunFolder(run, prepared, "nnUNetTrainerADP")
    site = one_site.make(workspace)
    ledger, odometer = run / "sites" / SITES[0] / ledgers.FILE_NAME, site_ledger.odometer_of(pre, SITES[0])
    first = hash_chain.read(ledger).lines[0]
    released = export_run(run, workspace.base / "release")
    archive = Path(released["zip"])
    (run / "rounds.jsonl").chmod(0o600)

    def resume() -> Any:
        content, state = folder.resume(KIND)
        checkpoints.load_weights(site.model.network, {**content["network_weights"], **(state.raw_weights or {})}, "the checkpoint")
        return state

    def resume_ledger() -> Any:
        ledger_file = ledgers.Ledger.resume(ledger, first["run"], SITES[0], first["units_digest"], [odometer])
        site_ledger.next_attempt(ledger_file, 0)
        return summary.summarise(ledger)

    def rewind() -> Any:
        folder.rewind_rounds(2)
        return run_records.load(run).rounds()

    def export() -> Any:
        shutil.rmtree(workspace.base / "again", ignore_errors=True)
        return export_run(run, workspace.base / "again")

    def manifest() -> None:
        run_manifest.load(run)
        run_records.load(run).held_out_cases()
        dependent_runs.of_plans(workspace.results, PLANS)

    def install() -> Any:
        shutil.rmtree(workspace.results / f"nnUNetTrainer__{PLANS}__{CONFIGURATION}", ignore_errors=True)
        return installation.install(archive)

    def scores() -> Any:
        found = scoring.read_table(run / "metrics.csv")
        scoring.case_dice_by_site(found)
        return scoring.summarise(found)

    final = run / checkpoints.FINAL
    again = ("again", "again/*", "again/*/*", "again/*/*/*", "again/*/*/*/*")
    model = f"results/{tiny_dataset.NAME}/nnUNetTrainer__{PLANS}__{CONFIGURATION}"
    installed = (model, f"{model}/*", f"{model}/*/*")
    page = ("report.html",)

    def report() -> Path:
        return write_report(run)

    return [
        Reader("privacy ledger", ledger, lambda: summary.summarise(ledger), sealed_lines, cost=2),
        Reader("privacy ledger of a run", ledger, lambda: summary.summarise(run), sealed_lines, cost=2),
        Reader("privacy ledger, resumed", ledger, resume_ledger, sealed_lines, (odometer.path,), cost=2),
        Reader("privacy odometer", odometer.path, resume_ledger, sealed_lines, (ledger,), cost=2),
        Reader("checkpoint of a run", final, resume, checkpoint),
        Reader("checkpoint, its ledgers", final, lambda: summary.summarise(run), checkpoint),
        Reader("checkpoint for prediction", final, lambda: load_model(final), checkpoint),
        Reader("checkpoint, evaluated", final, lambda: evaluate_run(run), checkpoint, cost=10),
        Reader("run.json", run / "run.json", manifest, json_file),
        Reader("run.json, exported", run / "run.json", export, json_file, may_write=again, cost=4),
        Reader("frozen privacy plan, exported", run / "privacy_plan.json", export, json_file, may_write=again, cost=4),
        Reader("privacy ledger, exported", ledger, export, sealed_lines, may_write=again, cost=4),
        Reader("plans.json of a run, exported", run.parent / "plans.json", export, json_file, may_write=again, cost=4),
        Reader("rounds.jsonl", run / "rounds.jsonl", rewind, json_lines),
        Reader("metrics.csv", run / "metrics.csv", scores, table),
        Reader("rounds.jsonl, in the report", run / "rounds.jsonl", report, json_lines, may_write=page, cost=20),
        Reader("local_log.jsonl, in the report", ledger.parent / "local_log.jsonl", report, json_lines, may_write=page, cost=20),
        Reader("metrics.csv, in the report", run / "metrics.csv", report, table, may_write=page, cost=20),
        Reader("evaluation.json, in the report", run / "evaluation.json", report, json_file, may_write=page, cost=20),
        Reader("release zip", archive, install, release, may_write=installed, cost=2),
    ]


def update_readers(workspace: Workspace) -> list[Reader]:
    """What a site keeps between two rounds."""
    workspace.edit_plan(optimizer={"momentum": 0.9}, rounds={"optimizer_state": "kept"})
    site = one_site.make(workspace)
    task = one_site.first_task(site)
    update = run_site_round(task, site)
    wanted = {name: value.shape for name, value in update.weights.items()}
    optimizer = site.folder / "optimizer_after_round_0.pth"

    def whole_or_none(found: Any) -> None:
        """A damaged update is never sent; one that is sent is the stored one to the last bit."""
        assert found is None or (found.ledger_head, found.noisy_count) == (update.ledger_head, update.noisy_count)
        assert found is None or all((found.weights[name] == value).all() for name, value in update.weights.items())

    def restore() -> None:
        fresh = post_processing.make_optimizer(site.mechanism.plan.optimizer, site.model.trained)
        post_processing.restore_optimizer(fresh, tensor_files.load(optimizer), str(optimizer))
        assert fresh.param_groups[0]["momentum"] == 0.9

    return [
        Reader(
            "stored update", site.folder / stored_update.FILE_NAME,
            lambda: stored_update.load(task, site.name, site.folder, wanted), tensors_file, check=whole_or_none,
        ),
        Reader("optimizer state", optimizer, restore, checkpoint),
    ]  # fmt: skip
