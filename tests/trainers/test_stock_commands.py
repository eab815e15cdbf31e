"""nnU-Net's own commands in processes of their own: train, kill, continue, predict; and a release without this package."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nibabel import load as load_image
from workspace import PLANS, Workspace, read, read_lines, steps_paid

from nnunet_adpfl.privacy import hash_chain, summary
from nnunet_adpfl.trainers.release import export_run

pytestmark = pytest.mark.slow
STEPS = 40
TRAIN = ("nnUNetv2_train", "801", "2d", "0", "-tr", "nnUNetTrainerADP", "-p", PLANS, "-device", "cpu")


@pytest.fixture
def environment(workspace: Workspace) -> dict[str, str]:
    """nnU-Net's variables, with the trainers found as the documentation says."""
    path = subprocess.run([command("adpfl"), "trainer-path"], capture_output=True, text=True, check=True).stdout.strip()
    workspace.plan_file.with_name(f"{PLANS}__2d.privacy.json").write_text(longer_plan(workspace))
    # nnU-Net asks for as many threads as there are processors; where these are busy, tiny tensors wait for them.
    return {**os.environ, "nnUNet_extTrainer": path, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def longer_plan(workspace: Workspace) -> str:
    """The planned privacy plan of 2d with more steps, so that there is time to kill it."""
    path = workspace.plan_file.with_name(f"{PLANS}__2d.privacy.json")
    first = workspace.plan_file.read_text()
    workspace.plan_file.write_text(path.read_text())
    workspace.edit_plan(steps=STEPS, reserve_steps=6, noise_multiplier=6.0)
    changed = workspace.plan_file.read_text()
    workspace.plan_file.write_text(first)
    return changed


def command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def call(environment: dict[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command(name), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def kill_within_training(environment: dict[str, str], run: Path) -> None:
    process = subprocess.Popen(
        [command(TRAIN[0]), *TRAIN[1:]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    records = run / "rounds.jsonl"
    while process.poll() is None and not (records.exists() and len(records.read_text().splitlines()) > 2):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_rule_11_train_kill_continue_predict_release(workspace: Workspace, environment: dict[str, str], tmp_path: Path) -> None:
    run = workspace.run(configuration="2d")
    kill_within_training(environment, run)
    latest = torch.load(run / "checkpoint_latest.pth", weights_only=True)["adpfl"]
    assert 0 < latest["steps_done"] < STEPS
    assert steps_paid(list(hash_chain.read(run / "privacy_ledger.jsonl").lines)) >= latest["steps_done"]

    done = call(environment, *TRAIN, "--c")
    assert done.returncode == 0, done.stderr
    paid = steps_paid(read_lines(run / "privacy_ledger.jsonl"))
    assert STEPS <= paid <= STEPS + 4
    assert torch.load(run / "checkpoint_final.pth", weights_only=True)["adpfl"]["steps_done"] == STEPS
    assert summary.summarise(run)["epsilon"] <= 8
    validation = read(workspace.preprocessed / "splits_final.json")[0]["val"]
    assert {path.name for path in (run / "validation").glob("*.nii.gz")} == {f"{case}.nii.gz" for case in validation}

    final = (run / "checkpoint_final.pth").read_bytes()
    again = call(environment, *TRAIN, "--c")
    assert again.returncode == 0, again.stderr
    assert (run / "checkpoint_final.pth").read_bytes() == final
    assert steps_paid(read_lines(run / "privacy_ledger.jsonl")) == paid

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(next((workspace.base / "raw").glob("*/imagesTr/case_00_0_0000.nii.gz")), images)
    wanted = ("-i", str(images), "-d", "801", "-c", "2d", "-f", "0", "-p", PLANS, "-device", "cpu", "-npp", "1", "-nps", "1")
    predicted = call(environment, "nnUNetv2_predict", *wanted, "-o", str(tmp_path / "one"), "-tr", "nnUNetTrainerADP")
    assert predicted.returncode == 0, predicted.stderr

    export_run(run, tmp_path / "release")
    elsewhere = {name: value for name, value in environment.items() if name != "nnUNet_extTrainer"}
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / "elsewhere" / kind).mkdir(parents=True)
        elsewhere[f"nnUNet_{kind}"] = str(tmp_path / "elsewhere" / kind)
    archive = tmp_path / "release" / "Dataset801_Tiny.zip"
    installed = call(elsewhere, "nnUNetv2_install_pretrained_model_from_zip", str(archive))
    assert installed.returncode == 0, installed.stderr
    predicted = call(elsewhere, "nnUNetv2_predict", *wanted, "-o", str(tmp_path / "two"), "-tr", "nnUNetTrainer")
    assert predicted.returncode == 0, predicted.stderr
    one, two = (load_image(tmp_path / name / "case_00_0.nii.gz").get_fdata() for name in ("one", "two"))
    assert one.shape == (16, 16, 16)
    assert (one == two).all()


def test_rule_11_calls_that_are_refused_end_with_one_line(
    workspace: Workspace, environment: dict[str, str], tmp_path: Path
) -> None:
    public = tmp_path / "public.pth"
    torch.save({"network_weights": pretrained(workspace)}, public)
    calls = {
        "--val_best is refused": call(environment, *TRAIN, "--val_best"),
        "Weights & Biases": call({**environment, "nnUNet_wandb_enabled": "1"}, *TRAIN),
        "not the trainer's own": call(environment, *TRAIN, "-pretrained_weights", str(public)),
    }
    for reason, done in calls.items():
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(said) == 1, done.stderr
        assert reason in said[0]
        assert "Traceback" not in done.stderr
    assert not list(workspace.base.rglob("privacy_ledger.jsonl"))
    assert not list(workspace.base.rglob("checkpoint_*"))


def pretrained(workspace: Workspace) -> dict[str, torch.Tensor]:
    from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_network

    plans, dataset = read(workspace.preprocessed / f"{PLANS}.json"), read(workspace.preprocessed / "dataset.json")
    return dict(build_network(PlannedTrainer(plans, "2d", dataset, torch.device("cpu")), seed=5).state_dict())
