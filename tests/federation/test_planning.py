"""Planning: the stock plan for all sites, what it writes, and what it refuses to overwrite."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny_dataset
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from PIL import Image

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folds
from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.dataset_conversion import converters
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import raw_cases
from nnunet_adpfl.federation.planning import PlanningChoices, adapted_plans, prepare_dataset
from nnunet_adpfl.federation.privacy_planning import PrivacyChoices, plan_privacy
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.trainers import prepared_fold, site_ledger

NAME = tiny_dataset.NAME


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with size and time of change, records of what was looked at left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".adpfl" not in path.parts]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_writes_all_that_training_needs(tiny: Path, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # makes the stock planner crash
    planned = prepare_dataset(801, ["3d_fullres", "2d"])
    folder = nnunet_folders / "preprocessed" / NAME
    assert planned.preprocessed == folder
    assert cohorts.load(folder).digest() == cohorts.load(tiny).digest()
    assert read(folder / "dataset.json") == read(tiny / "dataset.json")
    assert read(folder / "nnUNetPlans.json") == planned.plans
    assert folds.load_splits(folder, planned.cohort) == planned.splits
    assert len(planned.splits) == 5
    assert all(not settings.get("batch_dice") for settings in planned.plans["configurations"].values())
    for place in ("nnUNetPlans_3d_fullres", "nnUNetPlans_2d"):
        assert len(list((folder / place).glob("*.pkl"))) == len(planned.cohort.cases)
    assert len(list((folder / "gt_segmentations").iterdir())) == len(planned.cohort.cases)


def test_trainers_can_read_what_was_written(tiny: Path) -> None:
    planned = prepare_dataset(NAME, ["3d_fullres"], PlanningChoices(base_features=4))
    choices = PrivacyChoices(epsilon=8.0, delta=1e-2, steps=5)
    plan = plan_privacy(planned.plans, planned.cohort, planned.splits, planned.fingerprint, choices).plan
    name = planned.plans["plans_name"]
    (planned.preprocessed / privacy_plans.file_name(name, "3d_fullres")).write_text(plan.model_dump_json())
    fold = prepared_fold.load(planned.preprocessed, name, "3d_fullres", 0, "nnUNetTrainerADP")
    assert fold.sites == ["site-a", "site-b"]
    cases = [case for found in fold.cases_by_unit().values() for case in found]
    assert sorted(cases) == sorted(planned.splits[0]["train"])
    assert all((fold.data_folder / f"{case}.b2nd").is_file() for case in cases)


def test_the_fingerprint_file_lists_no_real_case(tiny: Path, nnunet_folders: Path) -> None:
    prepare_dataset(NAME, ["3d_fullres"])
    found = read(nnunet_folders / "preprocessed" / NAME / "dataset_fingerprint.json")
    pairs = list(zip(found["spacings"], found["shapes_after_crop"], strict=True))
    assert pairs == sorted(pairs)
    assert not any(case in json.dumps(found) for case in cohorts.load(tiny).cases)


def test_a_second_call_changes_no_preprocessed_case(tiny: Path, nnunet_folders: Path) -> None:
    first = prepare_dataset(NAME, ["3d_fullres"])
    before = snapshot(first.preprocessed / "nnUNetPlans_3d_fullres")
    second = prepare_dataset(NAME, ["3d_fullres"])
    assert (second.plans, second.splits) == (first.plans, first.splits)
    assert snapshot(first.preprocessed / "nnUNetPlans_3d_fullres") == before


def test_base_features_share_the_preprocessed_data(tiny: Path) -> None:
    wide = prepare_dataset(NAME, ["3d_fullres"])
    before = snapshot(wide.preprocessed / "nnUNetPlans_3d_fullres")
    narrow = prepare_dataset(NAME, ["3d_fullres"], PlanningChoices(base_features=8))
    assert narrow.plans["plans_name"] == "nnUNetPlans_f8"
    assert read(narrow.preprocessed / "nnUNetPlans_f8.json") == narrow.plans
    assert read(narrow.preprocessed / "nnUNetPlans.json") == wide.plans
    settings = narrow.plans["configurations"]["3d_fullres"]
    assert settings["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert settings["architecture"]["arch_kwargs"]["features_per_stage"][:2] == [8, 16]
    assert snapshot(wide.preprocessed / "nnUNetPlans_3d_fullres") == before


@pytest.mark.parametrize(("base", "expected"), [(8, [8, 16, 32, 64, 80, 80]), (32, [32, 64, 128, 256, 320, 320]),
                                                (48, [48, 96, 192, 384, 480, 480])])  # fmt: skip
def test_features_and_their_cap_are_scaled_alike(base: int, expected: list[int]) -> None:
    plans = {
        "plans_name": "nnUNetPlans_f16",
        "configurations": {"3d_fullres": {"batch_dice": True, "architecture": {
            "arch_kwargs": {"features_per_stage": [32, 64, 128, 256, 320, 320]}}}, "3d_cascade_fullres": {"inherits_from": "3d_fullres"}},
    }  # fmt: skip
    found = adapted_plans(plans, base)
    assert found["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == expected
    assert found["configurations"]["3d_fullres"]["batch_dice"] is False
    assert found["plans_name"] == f"nnUNetPlans_f{base}"
    assert plans["plans_name"] == "nnUNetPlans_f16", "the given plan is not changed"


@pytest.mark.parametrize(("planner", "name"), [("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
                                               ("ResEncUNetPlanner", "nnUNetResEncUNetPlans")])  # fmt: skip
def test_other_stock_planners(tiny: Path, planner: str, name: str) -> None:
    planned = prepare_dataset(NAME, ["2d"], PlanningChoices(planner=planner))
    assert planned.plans["plans_name"] == name
    assert planned.plans["experiment_planner_used"] == planner
    assert "ResidualEncoderUNet" in planned.plans["configurations"]["2d"]["architecture"]["network_class_name"]


def test_plans_name_is_used_for_the_data_too(tiny: Path) -> None:
    planned = prepare_dataset(NAME, ["2d"], PlanningChoices(plans_name="mine"))
    assert planned.plans["plans_name"] == "mine"
    assert planned.plans["configurations"]["2d"]["data_identifier"] == "mine_2d"


def test_public_plans_use_no_patient(tiny: Path, nnunet_folders: Path) -> None:
    given = prepare_dataset(NAME, ["2d"]).plans
    given["dataset_name"] = "Dataset900_Public"
    given["configurations"]["2d"].update(batch_dice=True, patch_size=[16, 16])
    given["foreground_intensity_properties_per_channel"]["0"]["mean"] = 123.0
    public = nnunet_folders / "public.json"
    public.write_text(json.dumps(given))
    tiny_dataset.write_raw(nnunet_folders / "raw", name="Dataset802_Other", patients=10, side=10)
    planned = prepare_dataset(802, ["2d"], PlanningChoices(f"public:{public}", base_features=4))
    assert planned.fingerprint == "public"
    assert planned.plans["plans_name"] == "nnUNetPlansPublic_f4"
    assert planned.plans["dataset_name"] == "Dataset802_Other"
    settings = planned.plans["configurations"]["2d"]
    assert (settings["patch_size"], settings["batch_dice"], settings["data_identifier"]) == ([16, 16], False, "nnUNetPlansPublic_2d")
    assert planned.plans["foreground_intensity_properties_per_channel"]["0"]["mean"] == 123.0
    assert not (planned.preprocessed / "dataset_fingerprint.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "not a plans file"), ("[]", "not a plans file"), ('{"plans_name": 3}', "not a plans file"),
     ('{"plans_name": "a", "dataset_name": "Dataset700_Other", "configurations": {}, '
      '"foreground_intensity_properties_per_channel": {"0": {}, "1": {}}}', "2 channels"),
     ],
)  # fmt: skip
def test_bad_public_plans(tiny: Path, nnunet_folders: Path, content: str | None, message: str) -> None:
    path = nnunet_folders / "public.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        prepare_dataset(NAME, ["2d"], PlanningChoices(f"public:{path}"))
    assert snapshot(nnunet_folders / "preprocessed") == {}


@pytest.mark.parametrize(
    ("choices", "configurations", "message"),
    [
        (PlanningChoices("dp2"), ["2d"], "--fingerprint"),
        (PlanningChoices(planner="NoPlanner"), ["2d"], "--planner 'NoPlanner' is unknown"),
        (PlanningChoices(planner="DatasetFingerprintExtractor"), ["2d"], "is unknown"),
        (PlanningChoices(base_features=0), ["2d"], "--base-features 0"),
        (PlanningChoices(small_sites="drop"), ["2d"], "--small-sites"),
        (PlanningChoices(), [], "no configuration"),
        (PlanningChoices(), ["4d"], "configuration '4d'"),
    ],
)
def test_bad_choices_write_nothing(
    tiny: Path, nnunet_folders: Path, choices: PlanningChoices, configurations: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_dataset(NAME, configurations, choices)
    assert snapshot(nnunet_folders / "preprocessed") == {}


def _wrong_label(raw: Path) -> None:
    path = sorted((raw / "labelsTr").iterdir())[0]
    image = nibabel.load(path)
    nibabel.Nifti1Image(np.full(image.shape, 7, np.uint8), image.affine).to_filename(path)


def _other_shape(raw: Path) -> None:
    path = sorted((raw / "labelsTr").iterdir())[0]
    nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)).to_filename(path)


def _not_finite(raw: Path) -> None:
    path = sorted((raw / "imagesTr").iterdir())[0]
    image = nibabel.load(path)
    nibabel.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine).to_filename(path)
    _change_json(raw, overwrite_image_reader_writer="NibabelIO")  # nnU-Net's default reader puts zeros there


def _change_json(raw: Path, **values: Any) -> None:
    (raw / "dataset.json").write_text(json.dumps({**read(raw / "dataset.json"), **values}))


def _no_such_case(raw: Path) -> None:
    cohort = cohorts.load(raw)
    Cohort(cohort.unit_kind, {**cohort.cases, "ghost": CohortEntry("ghost", "site-a")}).save(raw)


def _case_left_out(raw: Path) -> None:
    cohort = cohorts.load(raw)
    Cohort(cohort.unit_kind, dict(list(cohort.cases.items())[1:])).save(raw)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda raw: (raw / "cohort.json").unlink(), "cohort.json is missing"),
        (lambda raw: (raw / "dataset.json").unlink(), "dataset.json is missing"),
        (lambda raw: (raw / "dataset.json").write_text("{"), "not valid JSON"),
        (lambda raw: _change_json(raw, labels=None), "has no 'labels'"),
        (lambda raw: _change_json(raw, numTraining=99), "numTraining is 99"),
        (lambda raw: _change_json(raw, labels={"background": 0, "ball": 1, "core": 3}), "without a gap"),
        (lambda raw: _change_json(raw, channel_names={"0": "a", "1": "b"}), "case case_00_0 is broken .*Expected: 2. Got: 1"),
        (lambda raw: sorted((raw / "labelsTr").iterdir())[0].unlink(), "case case_00_0 lacks .*labelsTr"),
        (lambda raw: sorted((raw / "imagesTr").iterdir())[2].write_bytes(b"no image"), "case case_01_0 cannot be used"),
        (_wrong_label, "case case_00_0 is broken .*Unexpected labels"),
        (_other_shape, "case case_00_0 is broken .*Shape mismatch"),
        (_not_finite, "case case_00_0 is broken .*not finite"),
        (_no_such_case, "names case ghost"),
        (_case_left_out, "does not name case case_00_0"),
    ],
)
def test_broken_raw_data_is_one_line_and_writes_nothing(tiny: Path, nnunet_folders: Path, harm: Any, message: str) -> None:
    harm(tiny)
    with pytest.raises(InputError, match=message) as caught:
        prepare_dataset(NAME, ["2d"])
    assert "\n" not in str(caught.value)
    assert snapshot(nnunet_folders / "preprocessed") == {}


def _trained(folder: Path, **manifest: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(b"")
    if manifest:
        (folder / "run.json").write_text(json.dumps(manifest))


def test_what_a_run_depends_on_is_not_overwritten(tiny: Path, nnunet_folders: Path) -> None:
    prepare_dataset(NAME, ["3d_fullres"])
    results = nnunet_folders / "results" / NAME
    _trained(results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0")
    preprocessed = nnunet_folders / "preprocessed"
    prepare_dataset(NAME, ["3d_fullres"])  # unchanged: fine
    before = snapshot(preprocessed)
    image = sorted((tiny / "imagesTr").iterdir())[0]
    loaded = nibabel.load(image)
    nibabel.Nifti1Image(loaded.get_fdata().astype(np.float32) + 5, loaded.affine).to_filename(image)
    with pytest.raises(InputError, match=r"nnUNetPlans.json would change, but .*fold_0 was trained with it"):
        prepare_dataset(NAME, ["3d_fullres"])
    with pytest.raises(InputError, match=r"nnUNetPlans_3d_fullres would change, but .*fold_0 was trained on it"):
        prepare_dataset(NAME, ["3d_fullres"], PlanningChoices(base_features=8))  # another plan, the same data
    assert snapshot(preprocessed) == before


def test_the_cohort_of_a_run_is_not_overwritten(tiny: Path, nnunet_folders: Path) -> None:
    planned = prepare_dataset(NAME, ["2d"])
    merged = Cohort("patient", {case: CohortEntry(entry.unit, "one") for case, entry in planned.cohort.cases.items()})
    merged.save(tiny)
    compared = nnunet_folders / "results" / NAME / "adpfl_compare" / "x" / "adp-fl" / "seed_0"
    _trained(compared, **dict.fromkeys(("kind", "run", "dataset", "trainer", "fold", "plan_hash", "device"), "x"), seed=0,
             plans="nnUNetPlans", configuration="2d")  # fmt: skip
    with pytest.raises(InputError, match=r"cohort.json would change, but .*seed_0 was trained with it"):
        prepare_dataset(NAME, ["2d"])
    (compared / "run.json").unlink()
    site_ledger.odometer_of(planned.preprocessed, "site-a").record({"run": "r", "site": "site-a", "hash": "h"}, "units")
    with pytest.raises(InputError, match="counts what was spent"):
        prepare_dataset(NAME, ["2d"])
    assert cohorts.load(planned.preprocessed).digest() == planned.cohort.digest()


def test_without_a_run_a_changed_cohort_gets_new_splits(tiny: Path) -> None:
    planned = prepare_dataset(NAME, ["2d"])
    names = sorted(planned.cohort.cases)
    Cohort("case", {case: CohortEntry(case, "one") for case in names}).save(tiny)
    again = prepare_dataset(NAME, ["2d"])
    assert again.splits != planned.splits
    assert folds.load_splits(again.preprocessed, again.cohort) == again.splits


def test_splits_beside_the_raw_data_are_used(tiny: Path) -> None:
    cohort = cohorts.load(tiny)
    held_out = cohort.cases_of("patient_03")
    splits = [{"train": [case for case in cohort.cases if case not in held_out], "val": held_out}]
    (tiny / folds.FILE_NAME).write_text(json.dumps(splits))
    assert prepare_dataset(NAME, ["2d"]).splits == splits


@pytest.mark.parametrize("kind", [None, "patients", "sites"])
def test_damaged_splits_are_refused_and_kept(tiny: Path, kind: str | None) -> None:
    planned = prepare_dataset(NAME, ["2d"])
    path = planned.preprocessed / folds.FILE_NAME
    path.write_text(path.read_text()[:-40])
    damaged = path.read_bytes()
    with pytest.raises(InputError, match=r"splits_final.json is not valid JSON.*move it away"):
        prepare_dataset(NAME, ["2d"], PlanningChoices(folds=kind))
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("listed", [False, True])
def test_files_are_found_as_nnunet_finds_them(tiny: Path, listed: bool) -> None:
    if listed:
        files = {
            "one": {"images": [f"imagesTr/{sorted(os.listdir(tiny / 'imagesTr'))[0]}"],
                    "label": f"labelsTr/{sorted(os.listdir(tiny / 'labelsTr'))[0]}"},
        }  # fmt: skip
        _change_json(tiny, dataset=files, numTraining=1)
    stock = get_filenames_of_train_images_and_targets(str(tiny), read(tiny / "dataset.json"))
    assert dict(raw_cases.load(tiny).files) == dict(stock)


def test_a_colour_image_is_one_file_of_three_channels(nnunet_folders: Path, few_samples: None) -> None:
    raw, generator = nnunet_folders / "raw" / "Dataset803_Colour", np.random.default_rng(0)
    cases = {f"c{number}": CohortEntry(f"lesion{number // 2}", "one") for number in range(10)}
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for case in cases:
        Image.fromarray(generator.integers(1, 255, (20, 24, 3), dtype=np.uint8)).save(raw / "imagesTr" / f"{case}_0000.png")
        Image.fromarray(generator.integers(0, 2, (20, 24), dtype=np.uint8)).save(raw / "labelsTr" / f"{case}.png")
    channels = {"0": "R", "1": "G", "2": "B"}
    (raw / "dataset.json").write_text("{}")
    _change_json(raw, channel_names=channels, labels={"background": 0, "lesion": 1}, numTraining=10, file_ending=".png")
    Cohort("lesion", cases).save(raw)
    planned = prepare_dataset(803, ["2d"], PlanningChoices(base_features=2))
    assert len(planned.plans["foreground_intensity_properties_per_channel"]) == 3
    assert len(list((planned.preprocessed / "nnUNetPlans_2d").glob("*_seg.b2nd"))) == 10


@pytest.mark.slow
def test_hippocampus_gets_the_plan_of_stock_nnunet(
    shared_data: Path, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )

    source = shared_data / "hippocampus"
    if not source.is_dir():
        pytest.skip("the hippocampus cases are not on this machine")
    converters.convert("msd", source / "Task04_Hippocampus", 4, sites=source / "sites.csv")
    ours = prepare_dataset(4, ["3d_fullres"], processes=2).plans
    monkeypatch.setenv("nnUNet_preprocessed", str(nnunet_folders / "results"))
    extract_fingerprint_dataset(4, num_processes=1, show_progress_bar=False)
    theirs = json.loads(json.dumps(plan_experiment_dataset(4)[0]))
    statistics = "foreground_intensity_properties_per_channel"
    assert ours[statistics].keys() == theirs[statistics].keys()
    for channel, values in theirs.pop(statistics).items():
        assert ours[statistics][channel] == pytest.approx(values, rel=1e-6)  # nnU-Net adds in float32
    ours.pop(statistics)
    for settings in theirs["configurations"].values():
        settings["batch_dice"] = False
    assert ours == theirs

