"""Whole runs with declared masks: what rests does not move by a bit, and what is trained is paid for as ever (rule 4)."""

from __future__ import annotations

import one_site
import pytest
import torch
from workspace import LOCAL_STEPS, ROUNDS, Workspace, ledgers, steps_paid, weights

from nnunet_adpfl.trainers import masks as declared_masks

HEAVY = {"optimizer": {"weight_decay": 0.1, "momentum": 0.9, "ema_decay": 0.0}}


def test_rule_04_coordinates_outside_the_mask_keep_their_values(workspace: Workspace) -> None:
    workspace.edit_plan(trainable={"random_mask": 0.3}, **HEAVY)
    site = one_site.make(workspace)
    start = {name: value.detach().clone() for name, value in site.model.trained.items()}
    final = weights(workspace.train())
    seed = site.mechanism.plan.seed
    for name, before in start.items():
        kept = declared_masks.random_coordinates(name, site.model.trained[name], 0.3, seed)
        moved = (final[name] != before).flatten().nonzero().flatten()
        assert moved.numel() > 0, name
        if kept is not None:
            assert set(moved.tolist()) <= set(kept.tolist()), name


def test_rule_04_layers_rest_until_their_phase_ends(workspace: Workspace) -> None:
    phases = [{"until": 0.999, "freeze_patterns": ["encoder.*"]}]  # all but the end of six steps
    workspace.edit_plan(trainable={"phases": phases}, **HEAVY)
    start = {name: value.detach().clone() for name, value in one_site.make(workspace).model.trained.items()}
    workspace.train_until(2)  # the first four steps
    state = torch.load(workspace.run() / "checkpoint_latest.pth", weights_only=True)["network_weights"]
    for name, before in start.items():
        assert torch.equal(state[name], before) == name.startswith("encoder."), name


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"name": "adam"}, {"name": "adam", "adam_correction": False}])
def test_layers_wake_up_within_a_round_under_every_optimizer(optimizer: dict[str, object], workspace: Workspace) -> None:
    """A run that stops there has paid for the round, and would pay again at every attempt."""
    workspace.edit_plan(
        trainable={"phases": [{"until": 0.5, "freeze_patterns": ["encoder.*"]}]}, optimizer=optimizer, rounds={"optimizer_state": "kept"}
    )
    assert LOCAL_STEPS * ROUNDS * 0.5 % LOCAL_STEPS != 0
    start = {name: value.detach().clone() for name, value in one_site.make(workspace).model.trained.items()}
    final = weights(workspace.train())
    assert all(not torch.equal(final[name], before) for name, before in start.items())


@pytest.mark.parametrize("trainable", [{"random_mask": 0.5}, {"phases": [{"until": 0.5, "freeze_patterns": ["decoder.*"]}]}])
def test_rule_11_masks_change_nothing_about_what_is_spent(trainable: dict[str, object], workspace: Workspace) -> None:
    workspace.edit_plan(trainable=trainable, optimizer={"name": "adam"})
    run = workspace.train()
    assert {site: steps_paid(lines) for site, lines in ledgers(run).items()} == {"site-a": 6, "site-b": 6}
