"""Prediction from preprocessed data, and evaluation of a whole run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny_run
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from tiny_run import TinyRun

from nnunet_adpfl.errors import AdpflError, InputError
from nnunet_adpfl.evaluation import scoring
from nnunet_adpfl.evaluation.run_evaluation import EvaluationSettings, evaluate_run, score_weights
from nnunet_adpfl.nnunet_compat.prediction import CasePredictor, load_model


@pytest.mark.parametrize("kind", ["volumes", "photos"])
def test_prediction_equals_stock_nnunet_from_the_raw_image(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tiny: TinyRun = request.getfixturevalue(kind)
    model = load_model(tiny.run / "checkpoint_final.pth")
    manager = PlansManager(dict(model.plans))
    settings = manager.get_configuration(tiny.configuration)
    device = torch.device("cpu")
    ours = CasePredictor(model, tiny.preprocessed / settings.data_identifier, device, mirroring=True)
    found = ours.predict_to_file("case_4", tmp_path)

    stock = nnUNetPredictor(device=device, allow_tqdm=False)
    network = ours._predictor.network
    stock.manual_initialization(
        network, manager, settings, [dict(model.weights)], dict(model.dataset_json), "nnUNetTrainer", (0, 1)
    )
    reader = manager.image_reader_writer_class()
    ending = model.dataset_json["file_ending"]
    raw = tiny.base / "raw" / tiny.preprocessed.name / "imagesTr" / f"case_4_0000{ending}"
    image, properties = reader.read_images([str(raw)])
    expected = stock.predict_single_npy_array(image, properties)
    assert len(np.unique(expected)) > 1, "a constant prediction would prove nothing"
    assert np.array_equal(reader.read_seg(str(found))[0][0], expected)


def test_evaluation_of_a_run_writes_predictions_table_and_summary(volume_run: TinyRun) -> None:
    summary = evaluate_run(volume_run.run, tolerance_mm=2.0)
    assert summary["cases"] == 2
    assert set(summary["sites"]) == {"north", "south"}
    assert set(summary["classes"]) == {"ball", "core"}
    assert set(summary["mean"]) == {"dice", "hd95_mm", "assd_mm", "nsd"}
    assert summary["for_release"] is False
    assert json.loads((volume_run.run / "evaluation.json").read_text()) == summary
    with (volume_run.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"], row["site"]) for row in rows] == [
        ("case_4", "ball", "north"), ("case_4", "core", "north"), ("case_5", "ball", "south"), ("case_5", "core", "south"),
    ]  # fmt: skip
    truth = nibabel.load(volume_run.preprocessed / "gt_segmentations" / "case_4.nii.gz")
    predicted = nibabel.load(volume_run.run / "validation" / "case_4.nii.gz")
    assert predicted.shape == truth.shape
    assert np.allclose(predicted.affine, truth.affine)
    a, b = np.asarray(truth.dataobj) == 1, np.asarray(predicted.dataobj) == 1
    assert float(rows[0]["dice"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    mean = np.mean([float(row["dice"]) for row in rows])
    assert summary["mean"]["dice"] == pytest.approx(mean)


def test_regions_overlap_and_public_validation_may_be_released(photo_run: TinyRun) -> None:
    summary = evaluate_run(photo_run.run, mirroring=False)
    assert summary["for_release"] is True
    assert list(summary["classes"]) == ["whole", "core"]
    truth = np.asarray(Image.open(photo_run.preprocessed / "gt_segmentations" / "case_5.png"))
    row = next(s for s in scoring.read_table(photo_run.run / "metrics.csv") if (s.case, s.label) == ("case_5", "whole"))
    assert row.truth_voxels == (truth > 0).sum()


def test_other_weights_are_scored_without_leaving_files(volume_run: TinyRun) -> None:
    before = sorted(volume_run.run.rglob("*"))
    settings = EvaluationSettings(mirroring=False)
    own = score_weights(volume_run.run, tiny_run.random_weights(volume_run, 0), settings)
    other = score_weights(volume_run.run, tiny_run.random_weights(volume_run, 1), settings)
    assert sorted(volume_run.run.rglob("*")) == before
    assert own["mean"] != other["mean"]
    assert own["mean"] == evaluate_run(volume_run.run, mirroring=False)["mean"]


def test_weights_of_another_network_are_refused(volume_run: TinyRun) -> None:
    with pytest.raises(InputError, match="do not fit the network"):
        score_weights(volume_run.run, {"a": torch.zeros(1)})


@pytest.mark.parametrize("factor", [1e7, float("nan")])
def test_diverged_weights_are_named(volume_run: TinyRun, factor: float) -> None:
    weights = tiny_run.random_weights(volume_run, 0)
    weights["decoder.seg_layers.0.weight"] = weights["decoder.seg_layers.0.weight"] * factor
    with pytest.raises(AdpflError, match="diverged"):
        score_weights(volume_run.run, weights)


def _edit_json(path: Path, change: dict) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _fold_all(tiny: TinyRun) -> None:
    _edit_json(tiny.run / "run.json", {"fold": "all"})


def _no_manifest(tiny: TinyRun) -> None:
    (tiny.run / "run.json").unlink()


def _torn_manifest(tiny: TinyRun) -> None:
    (tiny.run / "run.json").write_text("{")


def _no_checkpoint(tiny: TinyRun) -> None:
    (tiny.run / "checkpoint_final.pth").unlink()


def _torn_checkpoint(tiny: TinyRun) -> None:
    path = tiny.run / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:100])


def _changed_plans(tiny: TinyRun) -> None:
    path = tiny.preprocessed / f"{tiny_run.PLANS_NAME}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    path.write_text(json.dumps(plans))


def _no_truth(tiny: TinyRun) -> None:
    (tiny.preprocessed / "gt_segmentations" / "case_5.nii.gz").unlink()


def _not_preprocessed(tiny: TinyRun) -> None:
    for path in tiny.preprocessed.glob(f"{tiny_run.PLANS_NAME}_3d/case_5*"):
        path.unlink()


def _half_a_case(tiny: TinyRun) -> None:
    for path in tiny.preprocessed.glob("*/case_5.pkl"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_fold_all, "none is held out"),
        (_no_manifest, "holds no run.json"),
        (_torn_manifest, "damaged"),
        (_no_checkpoint, "checkpoint_final.pth is missing"),
        (_torn_checkpoint, "cannot be read as a checkpoint"),
        (_changed_plans, "not the plan that these weights"),
        (_no_truth, "case_5.nii.gz is missing"),
        (_not_preprocessed, "case case_5 is not preprocessed"),
        (_half_a_case, "case case_5 cannot be read"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(volume_run: TinyRun, damage, words: str) -> None:
    damage(volume_run)
    with pytest.raises(InputError, match=words) as caught:
        evaluate_run(volume_run.run)
    assert "\n" not in str(caught.value)
    assert not (volume_run.run / "metrics.csv").exists()
