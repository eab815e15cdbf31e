"""Rule 16: training starts from the trainer's own random weights or from a file declared public, from nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from workspace import Workspace, assert_equal, read_lines, steps_paid, weights

from nnunet_adpfl.errors import AdpflError, InputError, PrivacyRefusedError
from nnunet_adpfl.federation.privacy_planning import declared_public
from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP
from nnunet_adpfl.trainers.release import export_run

StockTrainer = Callable[..., nnUNetTrainerADP]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def public(workspace: Workspace, stock_trainer: StockTrainer) -> Path:
    """A checkpoint in nnU-Net's format with weights of another seed."""
    workspace.edit_plan(seed=77)
    trainer = stock_trainer()
    trainer.initialize()
    workspace.edit_plan(seed=0)
    path = workspace.base / "public.pth"
    torch.save({"network_weights": trainer.network.state_dict()}, path)
    return path


def declare(workspace: Workspace, path: Path, digest: str | None = None) -> None:
    workspace.edit_plan(initial_weights={"kind": "public", "file": str(path), "sha256": digest or sha256(path)})


def no_run(workspace: Workspace) -> bool:
    return not list(workspace.base.rglob("privacy_ledger.jsonl")) and not list(workspace.base.rglob("checkpoint_*.pth"))


def test_rule_16_undeclared_weights_of_stock_nnunet_are_refused(
    workspace: Workspace, stock_trainer: StockTrainer, public: Path
) -> None:
    trainer = stock_trainer()
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(public))
    with pytest.raises(SystemExit, match="not the trainer's own") as end:
        trainer.run_training()
    assert "\n" not in str(end.value)
    assert no_run(workspace)


def test_rule_16_one_changed_number_is_noticed(workspace: Workspace, stock_trainer: StockTrainer) -> None:
    trainer = stock_trainer()
    trainer.initialize()
    with torch.no_grad():
        next(trainer.network.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(SystemExit, match="declare public weights"):
        trainer.run_training()
    assert no_run(workspace)


def test_rule_16_declared_public_weights_are_where_training_starts(
    workspace: Workspace, stock_trainer: StockTrainer, public: Path
) -> None:
    declare(workspace, public)
    trainer = stock_trainer()
    trainer.initialize()
    assert_equal(dict(trainer.network.state_dict()), torch.load(public, weights_only=True)["network_weights"])
    trainer.run_training()
    run = workspace.run()
    assert steps_paid(read_lines(run / "privacy_ledger.jsonl")) == 6
    assert torch.load(run / "checkpoint_final.pth", weights_only=True)["adpfl"]["initial_digest"] == trainer.model.initial_digest


def test_rule_16_the_federation_starts_from_them_too(workspace: Workspace, public: Path) -> None:
    plain = workspace.train(rounds=1)
    plain.rename(workspace.base / "plain")
    declare(workspace, public)
    started = weights(workspace.train(rounds=1))
    frozen = "encoder.stages.0.0.convs.0.conv.bias"
    assert torch.equal(started[frozen], torch.load(public, weights_only=True)["network_weights"][frozen])
    assert any(not torch.equal(value, started[name]) for name, value in weights(workspace.base / "plain").items())


@pytest.mark.parametrize("through", ["stock", "federated"])
def test_rule_16_a_file_that_is_not_the_declared_one_is_refused(
    through: str, workspace: Workspace, stock_trainer: StockTrainer, public: Path
) -> None:
    declare(workspace, public, "0" * 64)
    reason = "not the declared 000000000000"
    if through == "stock":
        with pytest.raises(SystemExit, match=reason):
            stock_trainer().run_training()
    else:
        with pytest.raises(PrivacyRefusedError, match=reason):
            workspace.train()
    assert no_run(workspace)


FIRST, HEAD = "encoder.stages.0.0.convs.0.conv.weight", "decoder.seg_layers.1.weight"


def without_a_tensor(content: dict[str, Any]) -> None:
    del content["network_weights"]["decoder.stages.0.convs.0.conv.weight"]


def with_another_tensor(content: dict[str, Any]) -> None:
    content["network_weights"]["decoder.extra.weight"] = torch.zeros(1)


def with_other_channels(content: dict[str, Any]) -> None:
    content["network_weights"][FIRST] = content["network_weights"][FIRST].repeat(1, 3, 1, 1, 1)


def with_another_type(content: dict[str, Any]) -> None:
    content["network_weights"][FIRST] = content["network_weights"][FIRST].double()


def with_a_nan(content: dict[str, Any]) -> None:
    content["network_weights"][FIRST] *= float("nan")


def with_a_nan_in_a_head(content: dict[str, Any]) -> None:
    content["network_weights"][HEAD] = torch.full((7, 4, 1, 1, 1), float("nan"))


def with_a_head_of_text(content: dict[str, Any]) -> None:
    content["network_weights"][HEAD] = "weights"


def under_two_prefixes(content: dict[str, Any]) -> None:
    content["network_weights"][f"_orig_mod.{FIRST}"] = content["network_weights"][FIRST]


def without_weights(content: dict[str, Any]) -> None:
    del content["network_weights"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_a_tensor, "decoder.stages.0.convs.0.conv.weight"),
        (with_another_tensor, "decoder.extra.weight"),
        (with_other_channels, FIRST),
        (with_another_type, FIRST),
        (with_a_nan, f"{FIRST} holds values that are not finite"),
        (with_a_nan_in_a_head, f"{HEAD} holds values that are not finite"),
        (with_a_head_of_text, HEAD),
        (under_two_prefixes, f"{FIRST} twice"),
        (without_weights, "network_weights"),
    ],
)
def test_rule_16_declared_weights_must_fit_the_network(
    change: Callable[[dict[str, Any]], None], named: str, workspace: Workspace, public: Path
) -> None:
    content = torch.load(public, weights_only=True)
    change(content)
    torch.save(content, public)
    declare(workspace, public)
    with pytest.raises(InputError, match=r"public.pth") as error:
        workspace.train()
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert no_run(workspace)


def started_with(workspace: Workspace, stock_trainer: StockTrainer, path: Path, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that a trainer starts from when these are declared public."""
    torch.save({"network_weights": weights}, path)
    declare(workspace, path)
    trainer = stock_trainer()
    trainer.initialize()
    return dict(trainer.network.state_dict())


def test_rule_16_heads_for_other_classes_are_left_at_their_random_values(
    workspace: Workspace, stock_trainer: StockTrainer, public: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As nnU-Net does; and all of them, also those that would fit."""
    own = stock_trainer()
    own.initialize()
    content = torch.load(public, weights_only=True)["network_weights"]
    content[HEAD] = torch.zeros(8, *content[HEAD].shape[1:])
    found = started_with(workspace, stock_trainer, public, content)
    assert "segmentation layers are for other classes" in capsys.readouterr().err
    for name, value in own.network.state_dict().items():
        assert torch.equal(found[name], value if ".seg_layers." in name else content[name]), name


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_rule_16_prefixes_of_wrappers_are_no_part_of_a_name(
    prefix: str, workspace: Workspace, stock_trainer: StockTrainer, public: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(public, weights_only=True)["network_weights"]
    found = started_with(workspace, stock_trainer, public, {prefix + name: value for name, value in content.items()})
    assert_equal(found, content)
    assert "other classes" not in capsys.readouterr().err


class Canary:
    """A pickle that leaves a file behind when it is executed."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._path, "w")


def test_rule_15_a_checkpoint_is_read_without_executing_anything(workspace: Workspace, tmp_path: Path) -> None:
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    torch.save({"network_weights": {}, "extra": Canary(canary)}, path)
    declare(workspace, path)
    with pytest.raises(AdpflError, match="checkpoint of plain tensors") as error:
        workspace.train()
    assert "\n" not in str(error.value)
    assert not canary.exists()
    assert no_run(workspace)


def test_rule_16_planning_declares_the_file_with_its_digest(workspace: Workspace, public: Path) -> None:
    assert declared_public(public) == {"kind": "public", "file": str(public), "sha256": sha256(public)}
    with pytest.raises(InputError, match="cannot be read"):
        declared_public(workspace.base / "gone.pth")


def test_rule_16_the_checkpoint_of_a_private_run_is_not_public(workspace: Workspace) -> None:
    """Its spending would be forgotten."""
    run = workspace.train(rounds=1)
    path = workspace.base / "first.pth"
    (run / "checkpoint_final.pth").rename(path)
    run.rename(workspace.base / "first")
    declare(workspace, path)
    with pytest.raises(PrivacyRefusedError, match="trained on patients by this plugin"):
        workspace.train()
    assert not workspace.run().joinpath("run.json").exists()


@pytest.mark.parametrize("trainer", ["nnUNetTrainerADP", "nnUNetTrainerNP"])
def test_rule_16_a_release_is_not_public_either(trainer: str, workspace: Workspace) -> None:
    """It has nnU-Net's own keys, and was trained on patients all the same; without privacy it may hold them by heart."""
    run = workspace.train(rounds=1, trainer=trainer)
    export_run(run, workspace.base / "release")
    (released,) = (workspace.base / "release").glob("*/*/fold_0/checkpoint_final.pth")
    run.rename(workspace.base / "first")
    declare(workspace, released)
    with pytest.raises(PrivacyRefusedError, match="trained on patients by this plugin"):
        workspace.train()
