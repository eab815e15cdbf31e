"""Bad input of ``adpfl plan`` and ``adpfl run``: one line, a non-zero code, nothing planned, trained or spent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import workspace as workspaces
from workspace import Workspace

from nnunet_adpfl.cli import main

PRIVACY = [
    (["--epsilon", "0"], "epsilon"),
    (["--epsilon", "nan"], "epsilon"),
    (["--epsilon", "inf"], "epsilon"),
    (["--delta", "0"], "delta"),
    (["--delta", "1"], "delta"),
    (["--delta", "nan"], "delta"),
    (["--delta", "0.2"], "not below 1/N"),
    (["--sampling-rate", "0"], "sampling_rate"),
    (["--sampling-rate", "1.01"], "sampling_rate"),
    (["--sampling-rate", "nan"], "sampling_rate"),
    (["--patches-per-patient", "0"], "patches_per_unit"),
    (["--compute", "0"], "--compute"),
    (["--compute", "3"], "--compute 3 does not pay"),
    (["--steps", "0"], "steps"),
    (["--reserve-steps", "-1"], "reserve_steps"),
    (["--local-steps", "0"], "local_steps"),
    (["--validation", "secret"], "validation"),
    (["--seed", "-1"], "seed"),
    (["--set", "clipping.quantile=1.5"], "quantile"),
    (["--set", "clipping.method=magic"], "method"),
    (["--set", "clipping.count_noise_ratio=1.9"], "count_noise_ratio"),
    (["--set", "clipping.clip_norm=NaN"], "clip_norm"),
    (["--set", "noise_decay.plateaus=21"], "plateaus"),
    (["--set", "optimizer.typo=1"], "typo"),
    (["--set", "nothing"], "--set"),
    (["--initial-weights", "/nowhere/weights.pth"], "/nowhere/weights.pth"),
]
PLANNING = [
    (["--planner", "NoPlanner"], "NoPlanner"),
    (["--fingerprint", "magic"], "--fingerprint"),
    (["--fingerprint", "public:/nowhere.json"], "/nowhere.json"),
    (["--base-features", "0"], "--base-features"),
    (["--base-features", "wide"], "--base-features 'wide'"),
    (["--small-sites", "hide"], "--small-sites"),
]
RUN = [
    (["--rounds", "0"], "--rounds"),
    (["--rounds", "3", "--local-steps", "2", "--steps", "5"], "--steps"),
    (["--device", "tpu"], "--device"),
    (["-tr", "nnUNetTrainerMagic"], "nnUNetTrainerMagic"),
]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["adpfl", *arguments])
    with pytest.raises(SystemExit) as left:
        main.main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return int(left.value.code or 0), said[0]


def snapshot(base: Path) -> dict[str, int]:
    files = [path for path in base.rglob("*") if path.is_file() and ".adpfl" not in path.parts]
    return {str(path.relative_to(base)): path.stat().st_mtime_ns for path in files}


def spelt(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


@pytest.mark.parametrize(("options", "named"), [*PRIVACY, *PLANNING], ids=spelt)
def test_plan_refuses(
    options: list[str], named: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    before = snapshot(workspace.base)
    code, said = call(monkeypatch, capsys, "plan", "801", "-c", "3d_fullres", "--base-features", "2", *options)
    assert code != 0
    assert named in said
    assert snapshot(workspace.base) == before


@pytest.mark.parametrize(("options", "named"), RUN, ids=spelt)
def test_run_refuses(
    options: list[str], named: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    code, said = call(monkeypatch, capsys, "run", "801", "3d_fullres", "0", "--base-features", "2", *options)
    assert code != 0
    assert named in said
    assert not list(workspace.base.rglob("privacy_ledger.jsonl"))


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
@pytest.mark.parametrize("command", [["plan", "801", "-c", "2d"], ["run", "801", "2d", "0"], ["train", "801", "2d", "0"]], ids=spelt)
def test_a_missing_variable_is_named(
    command: list[str], variable: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.delenv(variable)
    code, said = call(monkeypatch, capsys, *command)
    assert code != 0
    assert variable in said


def test_unknown_data_sets_and_configurations(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'999'" in call(monkeypatch, capsys, "plan", "999", "-c", "2d")[1]
    assert "4d_hugeres" in call(monkeypatch, capsys, "plan", "801", "-c", "4d_hugeres")[1]
    assert "fold 9" in call(monkeypatch, capsys, "train", "801", workspaces.CONFIGURATION, "9", "-p", workspaces.PLANS)[1]


def test_help_loads_nothing_heavy() -> None:
    loaded = "[name for name in ('torch', 'numpy', 'nnunetv2', 'pandas') if name in sys.modules]"
    program = f"import sys; from nnunet_adpfl.cli import main; print({loaded})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
