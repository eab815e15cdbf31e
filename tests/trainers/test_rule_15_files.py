"""Rule 15: files of tensors are read, never executed; too large ones are not even read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import Balloon, Canary, compressed
from workspace import PLANS, Workspace, read, weights

from nnunet_adpfl import json_files, tensor_files
from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.errors import AdpflError, InputError
from nnunet_adpfl.federation import plans as plan_files
from nnunet_adpfl.federation import raw_cases
from nnunet_adpfl.nnunet_compat.foreign_plans import check_foreign_plans
from nnunet_adpfl.nnunet_compat.prediction import load_model
from nnunet_adpfl.privacy import summary
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers.release import export_run


def refused(call: Callable[[], Any], reason: str) -> None:
    with pytest.raises(AdpflError, match=reason) as error:
        call()
    assert str(error.value).isprintable()


def test_rule_15_no_checkpoint_is_executed_wherever_it_is_read(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.train_until(1)
    latest, canary = run / checkpoints.LATEST, tmp_path / "canary"
    content = torch.load(latest, weights_only=True)
    torch.save({**content, "logging": Canary(canary)}, latest)
    for call in (
        lambda: workspace.train(go_on=True), lambda: summary.summarise(run), lambda: load_model(latest),
        lambda: checkpoints.load(latest),
    ):  # fmt: skip
        refused(call, "plain tensors")
        assert not canary.exists()


def test_rule_15_a_kept_optimizer_state_is_not_executed_and_has_to_fit(workspace: Workspace, tmp_path: Path) -> None:
    workspace.edit_plan(optimizer={"momentum": 0.9}, rounds={"optimizer_state": "kept"})
    run = workspace.train_until(1)
    path, canary = run / "sites" / "site-a" / "optimizer_after_round_0.pth", tmp_path / "canary"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "extra": Canary(canary)}, path)
    refused(lambda: workspace.train(go_on=True), "plain tensors")
    assert not canary.exists()
    state["state"][0]["momentum_buffer"] *= float("nan")
    torch.save(state, path)
    refused(lambda: workspace.train(go_on=True), "optimizer state does not fit")


def public(workspace: Workspace, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    run = workspace.train(rounds=1)
    content = torch.load(run / checkpoints.FINAL, weights_only=True)
    del content["adpfl"]
    run.rename(workspace.base / "earlier")
    return tmp_path / "public.pth", content


def declare(workspace: Workspace, path: Path) -> None:
    workspace.edit_plan(initial_weights={"kind": "public", "file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def test_rule_16_checkpoints_of_stock_nnunet_are_public_weights(workspace: Workspace, tmp_path: Path) -> None:
    """nnU-Net logs numbers of numpy, which the restricted loader of torch refuses unless they are named to it."""
    path, content = public(workspace, tmp_path)
    logged = {"train_losses": [np.mean([0.5]), np.float32(0.25)], "dice": [[np.float64(0.5)]], "epoch": np.int64(3)}
    torch.save({**content, "logging": logged, "_best_ema": np.float64(0.5), "init_args": {"device": torch.device("cuda")}}, path)
    with pytest.raises(InputError, match="numpy"):
        tensor_files.load(path)
    declare(workspace, path)
    assert weights(workspace.train(rounds=1)).keys() == content["network_weights"].keys()


@pytest.mark.parametrize("attack", ["stretched", "compressed", "large", "balloon", "old format"])
def test_rule_15_initial_weights_that_would_fill_the_memory(
    attack: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = public(workspace, tmp_path)
    first = next(iter(content["network_weights"]))
    if attack == "stretched":
        content["network_weights"][first] = torch.zeros(1).expand(10**15)
    if attack == "balloon":
        content["logging"] = Balloon(10)
    torch.save(content, path, _use_new_zipfile_serialization=attack != "old format")
    if attack == "compressed":
        compressed(path)
    if attack == "large":
        monkeypatch.setattr(checkpoints, "_most_bytes", lambda _: path.stat().st_size - 1)
        monkeypatch.setattr(tensor_files.torch, "load", lambda *_, **__: pytest.fail("it was read"))
    declare(workspace, path)
    reason = {"balloon": "bytearray", "compressed": "compressed", "large": "needs .* at the most", "old format": "zip"}.get(attack, "shape")
    refused(lambda: workspace.train(rounds=1), rf"public\.pth.*{reason}")


def test_rule_15_room_for_a_checkpoint_is_that_of_the_network() -> None:
    network = torch.nn.Linear(1_000_000, 2, bias=False)
    assert 8 * 8_000_000 < checkpoints._most_bytes(network) < 20 * 8_000_000


ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another function": lambda inner: inner.update(network_class_name="subprocess.Popen"),
    "through a module's imports": lambda inner: inner.update(
        network_class_name="dynamic_network_architectures.architectures.unet.torch.hub.load"
    ),
    "a function of torch": lambda inner: inner["arch_kwargs"].update(conv_op="torch.hub.load"),
    "through torch.nn": lambda inner: inner["arch_kwargs"].update(norm_op="torch.nn.modules.module.os.system"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_rule_15_plans_of_others_name_classes_of_nnunet_alone(attack: str, workspace: Workspace) -> None:
    """nnU-Net imports and calls whatever a plan names."""
    plans = read(workspace.preprocessed / f"{PLANS}.json")
    check_foreign_plans(plans)
    ATTACKS[attack](plans["configurations"]["3d_fullres"]["architecture"])
    path = workspace.base / "public.json"
    path.write_text(json.dumps({**plans, "dataset_name": "Dataset001_Other"}))
    raw = raw_cases.load(next((workspace.base / "raw").iterdir()))
    refused(lambda: plan_files.public_plans(path, "Dataset801_Tiny", raw), "public:.*is not a plans file")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a\\b", "", "a\nb"])
def test_rule_15_names_in_plans_of_others_stay_names(name: str, workspace: Workspace) -> None:
    plans = read(workspace.preprocessed / f"{PLANS}.json")
    for changed in ({**plans, "plans_name": name}, {**plans, "configurations": {name: plans["configurations"]["2d"]}}):
        with pytest.raises(ValueError, match="cannot name a file"):
            check_foreign_plans(changed)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a\\b", ".hidden", "", "a\nb", "x" * 201])
def test_rule_15_names_of_cases_and_data_sets_lead_nowhere(name: str, workspace: Workspace) -> None:
    """Files are named after them: labels, preprocessed cases, predictions, a release."""
    with pytest.raises(InputError, match="cannot name a file"):
        Cohort("patient", {name: CohortEntry("p", "s")})
    raw = workspace.base / "own_raw"
    raw.mkdir()
    entry = {"images": ["i.nii.gz"], "label": "l.nii.gz"}
    content = {"labels": {"background": 0}, "channel_names": {"0": "x"}, "numTraining": 1, "file_ending": ".nii.gz"}
    for changes in ({"dataset": {name: entry}}, {"file_ending": f"/{name}.png"}):
        (raw / "dataset.json").write_text(json.dumps({**content, **changes}))
        refused(lambda: raw_cases.load(raw), "cannot name a file|is no ending")
    run = workspace.train("2d", rounds=1)
    manifest = read(run / "run.json")
    for field in ("dataset", "plans", "configuration"):
        (run / "run.json").write_text(json.dumps({**manifest, field: name}))
        refused(lambda: export_run(run, workspace.base / "out"), f"{field} is .* names nothing")
    assert not (workspace.base / "out").exists()


@pytest.mark.parametrize("text", ["NaN", '{"a": -Infinity}', '{"a": 1e999}', "[" * 200_000, '"\\ud800"', "{", ""])
def test_rule_15_json_that_is_none_is_one_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        json_files.parse(text)


def test_rule_15_names_from_files_never_break_a_message_into_lines() -> None:
    assert str(InputError("case a\nb\x1b[31m\u2028c")) == "case a b [31m c"
    assert len(str(InputError("x" * 10**6))) < 1_100
