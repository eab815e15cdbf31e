"""`adpfl pretrain`: repeatable, blind to patients, refused in one sentence, and a start that `adpfl plan` takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import CONFIGURATION, PLANS, Workspace, assert_equal, read

from nnunet_adpfl.cli import main
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.nnunet_compat.patch_format import PatchFormat
from nnunet_adpfl.nnunet_compat.prediction import load_model
from nnunet_adpfl.pretraining.overlap import HardDice
from nnunet_adpfl.pretraining.pretraining import PretrainingSettings, _rate, pretrain
from nnunet_adpfl.trainers import checkpoint as checkpoints

QUICK = PretrainingSettings(steps=3, batch_size=2)
READ = {f"{PLANS}.json", "dataset.json"}  # all that it may open of a data set


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["network_weights"])


def run(workspace: Workspace, name: str = "start.pth", settings: PretrainingSettings = QUICK, **choices: Any) -> Path:
    path = workspace.base / name
    pretrain("801", CONFIGURATION, path, settings, plans=PLANS, **choices)
    return path


def test_two_runs_and_any_number_of_workers_give_the_same_bits(workspace: Workspace) -> None:
    first, second = tensors(run(workspace)), tensors(run(workspace, "second.pth"))
    assert_equal(first, second)
    assert_equal(first, tensors(run(workspace, "third.pth", PretrainingSettings(steps=3, batch_size=2, workers=2))))
    other = tensors(run(workspace, "other.pth", PretrainingSettings(steps=3, batch_size=2, seed=1)))
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_no_patient_is_looked_at(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every other file of the data set gone it gives the same bits, and it opens none of those that are there."""
    opened: list[str] = []
    read_bytes = Path.read_bytes

    def watched(path: Path) -> bytes:
        opened.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    first = tensors(run(workspace))
    assert set(opened) == READ | {"start.pth"}
    for entry in [*workspace.preprocessed.iterdir(), workspace.base / "raw"]:
        if entry.is_symlink() or entry.name not in READ:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    assert {entry.name for entry in workspace.preprocessed.iterdir()} == READ
    assert_equal(first, tensors(run(workspace, "blind.pth")))


def test_the_checkpoint_is_nnunets_and_the_manifest_says_how_it_was_made(workspace: Workspace) -> None:
    path = run(workspace)
    content, manifest = torch.load(path, weights_only=True), read(path.with_suffix(".json"))
    assert "adpfl" not in content
    assert content["optimizer_state"] == {}
    assert content["trainer_name"] == "nnUNetTrainer"
    assert load_model(path).configuration == CONFIGURATION
    assert "numTraining" not in content["init_args"]["dataset_json"]
    intensities = content["init_args"]["plans"]["foreground_intensity_properties_per_channel"]  # of patients' voxels
    assert not any(value for values in intensities.values() for value in values.values())
    assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["settings"]["steps"] == 3
    assert manifest["fresh_patches"]["count"] == 64
    assert {"plans_digest", "versions", "patches"} <= set(manifest)
    assert not list(workspace.base.glob(".*.tmp"))


def no_folder(workspace: Workspace) -> None:
    run(workspace, "nowhere/start.pth")


def existing(workspace: Workspace) -> None:
    (workspace.base / "start.pth").write_text("mine")
    run(workspace)


def existing_manifest(workspace: Workspace) -> None:
    (workspace.base / "start.json").write_text("mine")
    run(workspace)


def damaged_plans(workspace: Workspace) -> None:
    (workspace.preprocessed / f"{PLANS}.json").write_text("{")
    run(workspace)


def incomplete_plans(workspace: Workspace) -> None:
    path = workspace.preprocessed / f"{PLANS}.json"
    path.write_text(json.dumps({name: value for name, value in read(path).items() if "intensity" not in name}))
    run(workspace)


def damaged_labels(workspace: Workspace) -> None:
    path = workspace.preprocessed / "dataset.json"
    path.write_text(json.dumps({**read(path), "labels": {"ball": 1}}))
    run(workspace)


REFUSED: dict[str, tuple[Callable[[Workspace], object], str]] = {
    "no folder": (no_folder, "does not exist"),
    "existing": (existing, "--overwrite"),
    "existing manifest": (existing_manifest, "start.json exists"),
    "ending": (lambda w: run(w, "start.pt"), r"ends in \.pth"),
    "steps": (lambda w: run(w, settings=PretrainingSettings(steps=0)), "--steps 0"),
    "batch size": (lambda w: run(w, settings=PretrainingSettings(batch_size=0)), "--batch-size 0"),
    "seed": (lambda w: run(w, settings=PretrainingSettings(seed=-1)), "--seed -1"),
    "workers": (lambda w: run(w, settings=PretrainingSettings(workers=-1)), "--workers -1"),
    "learning rate": (lambda w: run(w, settings=PretrainingSettings(learning_rate=float("nan"))), "--learning-rate nan"),
    "device": (lambda w: run(w, settings=PretrainingSettings(device="tpu")), "--device 'tpu'"),
    "data set": (lambda w: pretrain("999", CONFIGURATION, w.base / "start.pth", QUICK), "'999'"),
    "plans": (lambda w: pretrain("801", CONFIGURATION, w.base / "start.pth", QUICK), "name its plans with -p"),
    "configuration": (lambda w: pretrain("801", "4d", w.base / "start.pth", QUICK, plans=PLANS), "'4d'"),
    "damaged plans": (damaged_plans, "not valid JSON"),
    "incomplete plans": (incomplete_plans, "plan again"),
    "damaged labels": (damaged_labels, "plan again"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_sentence_before_any_work(
    name: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "save", lambda *_: pytest.fail("it was trained"))
    act, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as error:
        act(workspace)
    assert "\n" not in str(error.value)
    assert all(path.read_text() == "mine" for path in workspace.base.glob("start.*"))


def test_overwrite_replaces_both_files(workspace: Workspace) -> None:
    for ending in (".pth", ".json"):
        (workspace.base / f"start{ending}").write_text("old")
    path = run(workspace, overwrite=True)
    assert read(path.with_suffix(".json"))["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    rates = [_rate(step, 100) for step in range(100)]
    assert max(rates) == rates[5] == pytest.approx(1)
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.01
    assert _rate(0, 1) == 1


def test_dice_of_known_masks() -> None:
    flat = PatchFormat((2, 2), (1.0, 1.0), 1, (1, 2), None, ((1.0, 1.0),))
    target = torch.tensor([[1, 1], [0, 0]])[None, None]
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 0], [0, 2]]), 3).permute(2, 0, 1)[None].float()
    overlap = HardDice(flat)
    assert overlap.mean() is None
    overlap.add(logits, target)
    assert overlap.mean() == pytest.approx(2 / 3)  # of label 1; label 2 is not there
    regions = HardDice(PatchFormat((2, 2), (1.0, 1.0), 1, (1, 2), ((1, 2), 2), ((1.0, 1.0),), ignore=True))
    truth = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]], [[False] * 2] * 2])[None]
    regions.add(torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [-1.0, -1.0]]])[None], truth)
    assert regions.mean() == pytest.approx((0.8 + 1) / 2)


@pytest.mark.slow
def test_plan_and_train_start_from_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the first weights of a private run."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["adpfl", *arguments])
        with pytest.raises(SystemExit) as left:
            main.main()
        assert not left.value.code
        return capsys.readouterr().out

    path = workspace.base / "start.pth"
    made = json.loads(call("pretrain", "801", CONFIGURATION, str(path), "-p", PLANS, "--steps", "2", "--json"))
    assert made["file"] == str(path)
    call(
        "plan", "801", "-c", CONFIGURATION, "--base-features", "2", "--init", str(path), "--epsilon", "8", "--delta", "1e-3",
        "--steps", "2", "--local-steps", "1", "--sampling-rate", "0.4",
    )  # fmt: skip
    assert read(workspace.plan_file)["initial_weights"] == {"kind": "public", "file": str(path), "sha256": made["sha256"]}
    found = torch.load(workspace.train() / checkpoints.FINAL, weights_only=True)["network_weights"]
    frozen = "encoder.stages.0.0.convs.0.conv.bias"  # before a normalisation, so it is as it was at the start
    assert torch.equal(found[frozen], tensors(path)[frozen])
