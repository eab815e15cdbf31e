"""Leave-one-site-out: the site that is left out spends nothing, trains nothing, and is what the model is scored on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import workspace as workspaces
from tiny_dataset import NAME
from workspace import Workspace, read

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
from nnunet_adpfl.experiments import pipeline
from nnunet_adpfl.experiments.comparison import comparison
from nnunet_adpfl.experiments.pipeline import PlanningChoices
from nnunet_adpfl.federation.privacy_planning import PrivacyChoices
from nnunet_adpfl.trainers import central_training, prepared_fold
from nnunet_adpfl.trainers.patient_totals import dataset_totals
from nnunet_adpfl.trainers.run_folder import RunFolder

CHOICES = PrivacyChoices(epsilon=20.0, delta=1e-2, steps=2, sampling_rate=0.5, patches_per_unit=1)


@pytest.fixture
def by_site(workspace: Workspace) -> Any:
    return pipeline.plan(NAME, [workspaces.CONFIGURATION], PlanningChoices(base_features=2, folds="sites"), CHOICES)


@pytest.mark.slow
def test_the_site_left_out_spends_nothing_and_is_scored(workspace: Workspace, by_site: Any) -> None:
    sites = sorted(cohorts.load(workspace.preprocessed).sites)
    units = by_site["configurations"][workspaces.CONFIGURATION]["units"]
    assert [sorted(units[str(fold)]) for fold in range(2)] == [[sites[1]], [sites[0]]]
    assert sorted(units["all"]) == sites
    run = workspace.train(fold=1)
    assert [path.name for path in (run / "sites").iterdir()] == [sites[0]]
    totals = dataset_totals(workspace.preprocessed)
    assert [bool(totals["sites"][site]["runs"]) for site in sites] == [True, False]
    assert totals["sites"][sites[1]]["epsilon"] == 0.0
    found = evaluate_run(run, device="cpu", mirroring=False)
    assert list(found["sites"]) == [sites[1]]
    assert found["cases"] == sum(entry.site == sites[1] for entry in cohorts.load(workspace.preprocessed).cases.values())


def test_central_training_needs_every_site(workspace: Workspace, by_site: Any, tmp_path: Path) -> None:
    prepared = prepared_fold.load(workspace.preprocessed, by_site["plans"], workspaces.CONFIGURATION, 0, "nnUNetTrainerADP")
    with pytest.raises(InputError, match="fold 0 leaves out site site-a, and a central run"):
        central_training.train_in(RunFolder(tmp_path / "run", prepared, "nnUNetTrainerADP"), torch.device("cpu"), workers=0)
    assert dataset_totals(workspace.preprocessed)["runs"] == 0


def test_folds_of_sites_do_not_give_way_to_splits_that_are_there(workspace: Workspace) -> None:
    before = (workspace.preprocessed / "splits_final.json").read_bytes()
    workspace.run().mkdir(parents=True)
    (workspace.run() / "checkpoint_latest.pth").touch()
    with pytest.raises(InputError, match=r"--folds sites: .* has other splits"):
        pipeline.plan(NAME, [workspaces.CONFIGURATION], PlanningChoices(base_features=2, folds="sites"), CHOICES)
    assert (workspace.preprocessed / "splits_final.json").read_bytes() == before


def test_later_calls_keep_folds_of_sites(workspace: Workspace, by_site: Any) -> None:
    path = workspace.preprocessed / "splits_final.json"
    before = read(path)
    assert len(before) == 2
    pipeline.plan(NAME, [workspaces.CONFIGURATION], PlanningChoices(base_features=2), CHOICES)
    assert read(path) == before
    pipeline.plan(NAME, [workspaces.CONFIGURATION], PlanningChoices(base_features=2, folds="patients"), CHOICES)
    assert len(read(path)) == 5


def test_no_model_of_its_own_for_a_site_that_is_left_out(workspace: Workspace, by_site: Any) -> None:
    with pytest.raises(InputError, match=r"leaves out site site-a, and rounds\.strategy local"):
        workspace.train(fold=0, strategy="local")
    for methods, message in ((("local",), "rounds.strategy local"), (("central",), "a central run")):
        with pytest.raises(InputError, match=message):
            comparison.compare(comparison.CompareSettings(NAME, workspaces.CONFIGURATION, "0", by_site["plans"], methods, ()))


def test_a_fold_without_training_cases_is_refused(workspace: Workspace) -> None:
    path = workspace.preprocessed / "splits_final.json"
    path.write_text(json.dumps([{"train": [], "val": list(cohorts.load(workspace.preprocessed).cases)}]))
    with pytest.raises(InputError, match="has no training patient in fold 0"):
        pipeline.plan(NAME, [workspaces.CONFIGURATION], PlanningChoices(base_features=2), CHOICES)


@pytest.mark.slow
def test_a_run_is_not_scored_on_whom_it_trained_on(workspace: Workspace) -> None:
    run = workspace.train()
    path = workspace.preprocessed / "splits_final.json"
    splits = read(path)
    path.write_text(json.dumps([splits[1], splits[0], *splits[2:]]))
    with pytest.raises(InputError, match="was changed after this run"):
        evaluate_run(run, device="cpu", mirroring=False)
    path.write_text(json.dumps(splits))
    assert evaluate_run(run, device="cpu", mirroring=False)["cases"] == len(splits[0]["val"])


def test_a_site_half_left_out_is_refused(workspace: Workspace) -> None:
    path = workspace.preprocessed / "splits_final.json"
    splits = read(path)
    cohort = cohorts.load(workspace.preprocessed)
    first = [case for case, entry in cohort.cases.items() if entry.site == "site-a"]
    splits[0] = {"train": [case for case in cohort.cases if case not in first], "val": first[1:]}
    path.write_text(json.dumps(splits))
    with pytest.raises(InputError, match="site site-a has no training patient in fold 0"):
        pipeline.plan(NAME, [workspaces.CONFIGURATION], PlanningChoices(base_features=2), CHOICES)
