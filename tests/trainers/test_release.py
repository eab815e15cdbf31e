"""Rule 12: what a checkpoint and a release hold, and what they never hold."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import CONFIGURATION, PLANS, Workspace, ledgers, own_workspace, read, read_lines, weights

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import hash_chain, summary
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP
from nnunet_adpfl.trainers.release import export_run

MODEL = f"Dataset801_Tiny/nnUNetTrainer__{PLANS}__3d_fullres"
FILES = {
    f"{MODEL}/plans.json",
    f"{MODEL}/dataset.json",
    f"{MODEL}/privacy_plan.json",
    f"{MODEL}/privacy_statement.json",
    f"{MODEL}/fold_0/checkpoint_final.pth",
}
CHECKPOINT_KEYS = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "trainer_name", "inference_allowed_mirroring_axes",
}  # fmt: skip
LEDGER_KEYS = {
    "start": {
        "event", "composition", "unit", "adjacency", "delta", "target_epsilon", "plan_hash", "declared_steps", "largest_block",
        "planned_events", "declarations", "noise_source", "noise_terms", "run", "site", "round", "attempt", "date", "previous", "hash",
    },
    "non_private": {"event", "scope", "reason", "run", "site", "round", "attempt", "date", "previous", "hash"},
    "poisson_gaussian": {
        "event", "sampling_rate", "noise_multiplier", "steps", "run", "site", "round", "attempt", "date", "previous", "hash",
    },
}  # fmt: skip
STATEMENT_KEYS = {
    "epsilon", "complete", "delta", "unit", "adjacency", "guarantee", "not_covered", "accountant", "sampler", "noise", "sites", "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def federated(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished federated run; read only."""
    with own_workspace(planned, tmp_path_factory.mktemp("federated")) as workspace:
        return workspace.train()


@pytest.fixture(scope="module")
def central(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the stock command's kind; read only."""
    with own_workspace(planned, tmp_path_factory.mktemp("central")) as workspace:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("nnUNet_n_proc_DA", "0")
            monkeypatch.setattr("sys.argv", ["nnUNetv2_train"])
            plans = {**read(workspace.preprocessed / f"{PLANS}.json"), "continue_training": False}
            dataset_json = read(workspace.preprocessed / "dataset.json")
            nnUNetTrainerADP(plans, CONFIGURATION, 0, dataset_json, torch.device("cpu")).run_training()
        return workspace.run()


@pytest.fixture(params=["federated", "central"])
def run(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and every value that is no container, with where it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}/{key}", key
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def secrets(workspace: Workspace, run: Path) -> dict[str, str]:
    """What must not leave: text that could be searched for in every file."""
    cohort = read(workspace.preprocessed / "cohort.json")
    found = {f"case {case}": case for case in cohort["cases"]}
    found |= {f"unit {entry['unit']}": entry["unit"] for entry in cohort["cases"].values()}
    lines = [line for path in run.rglob("privacy_ledger.jsonl") for line in hash_chain.read(path).lines]
    for number, line in enumerate(lines):
        found |= {f"{key} of line {number}": line[key] for key in ("units_digest", "plan_hash", "hash") if key in line}
    found["cohort digest"] = read(run / "privacy_plan.json")["cohort_digest"]
    for path in run.rglob("local_log.jsonl"):
        for record in read_lines(path):
            found |= {f"{key} {record[key]}": repr(record[key]) for key in ("mean_loss", "seconds") if record[key]}
    return {name: text for name, text in found.items() if len(text) > 5}


def test_rule_12_checkpoint_holds_plain_values_without_losses_or_case_ids(workspace: Workspace, run: Path) -> None:
    content = torch.load(run / "checkpoint_final.pth", weights_only=True)
    assert set(content) == {*CHECKPOINT_KEYS, "adpfl"}
    assert set(content["adpfl"]) == {
        "run", "plan_hash", "initial_digest", "clip_norm", "round", "steps_done", "ledger_heads", "raw_weights", "control",
        "server_moments", "local_layers", "finished",
    }  # fmt: skip
    assert content["logging"] == {}
    assert content["_best_ema"] is None
    assert content["grad_scaler_state"] is None
    cases = set(read(workspace.preprocessed / "cohort.json")["cases"])
    for where, value in leaves(content):
        assert type(value) in (torch.Tensor, str, int, float, bool, type(None)), where
        assert "loss" not in where.lower(), where
        if isinstance(value, str):
            assert not any(case in value or value == case for case in cases), where
    for name, tensor in content["network_weights"].items():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4, name  # nothing hides behind a view


def test_rule_12_checkpoint_does_not_show_drawn_sizes_or_secret_state(run: Path) -> None:
    content = torch.load(run / "checkpoint_final.pth", weights_only=True)
    assert content["current_epoch"] == content["adpfl"]["round"] == 3
    keys = {str(key).lower() for where, key in leaves(content) if "network_weights" not in where and "/plans/" not in where}
    assert not {key for key in keys if any(word in key for word in ("random", "generator", "rng", "drawn", "key"))}


def test_rule_12_release_has_the_listed_files_alone(run: Path, tmp_path: Path) -> None:
    written = export_run(run, tmp_path / "out")
    sites = ("all-sites",) if (run / "privacy_ledger.jsonl").exists() else ("site-a", "site-b")
    expected = {*FILES, *(f"{MODEL}/privacy/{site}.privacy_ledger.jsonl" for site in sites)}
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {*expected, "Dataset801_Tiny.zip"}
    with zipfile.ZipFile(written["zip"]) as archive:
        assert set(archive.namelist()) == expected
    assert written["epsilon"] == summary.summarise(run)["epsilon"]


def test_rule_12_nothing_that_points_at_a_patient_is_in_any_released_file(
    workspace: Workspace, run: Path, tmp_path: Path
) -> None:
    export_run(run, tmp_path / "out")
    hidden = secrets(workspace, run)
    assert len(hidden) > 30
    for path in (tmp_path / "out").rglob("*"):
        if not path.is_file() or path.suffix == ".zip":
            continue
        content = path.read_bytes()
        for name, text in hidden.items():
            assert text.encode() not in content, f"{path.name}: {name}"


def test_rule_12_keys_of_released_files_are_listed(federated: Path, tmp_path: Path) -> None:
    export_run(federated, tmp_path / "out")
    model = tmp_path / "out" / MODEL
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert set(checkpoint) == {*CHECKPOINT_KEYS, checkpoints.RELEASE_MARK}
    assert checkpoint["optimizer_state"] == {}
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert set(checkpoint["init_args"]) == {"plans", "configuration", "fold", "dataset_json", "device"}
    assert set(read(model / "dataset.json")) == {"channel_names", "labels", "file_ending"}
    assert set(read(model / "privacy_statement.json")) == STATEMENT_KEYS
    assert set(read(federated / "privacy_plan.json")) - set(read(model / "privacy_plan.json")) == {"cohort_digest"}
    for path in (model / "privacy").iterdir():
        for line in read_lines(path):
            assert set(line) == LEDGER_KEYS[line["event"]]
    for name, value in weights(federated).items():
        assert torch.equal(value, checkpoint["network_weights"][name])


def test_rule_12_released_ledger_is_a_valid_chain_with_the_same_epsilon(federated: Path, tmp_path: Path) -> None:
    export_run(federated, tmp_path / "out")
    for site, lines in ledgers(federated).items():
        path = tmp_path / "out" / MODEL / "privacy" / f"{site}.privacy_ledger.jsonl"
        assert len(hash_chain.read(path).lines) == len(lines)
        assert summary.summarise(path)["epsilon"] == summary.summarise(federated)["sites"][site]["epsilon"]


def test_rule_12_a_torn_line_is_released_as_spent_without_its_bytes(
    federated: Path, tmp_path: Path
) -> None:
    federated = Path(shutil.copytree(federated.parent, tmp_path / "model")) / federated.name
    path = federated / "sites" / "site-a" / "privacy_ledger.jsonl"
    last = path.read_text().splitlines()[-1]
    with path.open("a") as file:
        file.write(last[:-60])
    spent = summary.summarise(federated)["sites"]["site-a"]
    assert spent["steps"] == 8
    export_run(federated, tmp_path / "out")
    released = tmp_path / "out" / MODEL / "privacy" / "site-a.privacy_ledger.jsonl"
    assert "torn" not in released.read_text()
    assert summary.summarise(released)["sites"]["site-a"]["epsilon"] == spent["epsilon"]


def test_rule_12_file_of_public_weights_is_named_without_its_folder(workspace: Workspace, tmp_path: Path) -> None:
    first = workspace.train(rounds=1)
    start = tmp_path / "of_patient_miller" / "start.pth"
    start.parent.mkdir()
    torch.save({"network_weights": weights(first)}, start)
    first.rename(workspace.base / "first")
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    workspace.edit_plan(initial_weights={"kind": "public", "file": str(start), "sha256": digest})
    export_run(workspace.train(rounds=1), tmp_path / "out")
    released = read(tmp_path / "out" / MODEL / "privacy_plan.json")
    assert released["initial_weights"] == {"kind": "public", "file": "start.pth", "sha256": digest}


def test_rule_12_all_of_it_or_nothing(
    federated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_run(federated, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(OSError, match="No space"):
        export_run(federated, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rule_12_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json"):
        export_run(tmp_path, tmp_path / "out")


def test_rule_12_run_folder_has_losses_in_the_local_log_alone(run: Path) -> None:
    """And the local log is for the site: no file of the release is made from it."""
    losses = [record["mean_loss"] for path in run.rglob("local_log.jsonl") for record in read_lines(path)]
    assert any(losses)
    for path in run.rglob("*.json*"):
        if path.name != "local_log.jsonl":
            text = path.read_text()
            assert not any(repr(loss) in text for loss in losses if loss), path.name
            assert "loss" not in text, path.name


def test_rule_12_no_progress_plot_no_best_checkpoint_no_debug_file(run: Path) -> None:
    names = {path.name for path in run.rglob("*") if path.is_file()}
    assert not names & {"progress.png", "checkpoint_best.pth", "debug.json"}
