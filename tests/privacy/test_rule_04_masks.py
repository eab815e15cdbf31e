"""Declared masks: the clipped sum, its norm and its noise have the trained coordinates alone (rule 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from injected_randomness import InjectedRandomness
from small_model import make_engine, make_mechanism, make_plan, norm, start_ledger, unit
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy.clipping import NoClip, NormClip
from nnunet_adpfl.privacy.gradients.interface import Coordinates
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.trainers import masks as declared_masks
from nnunet_adpfl.trainers.masks import Masks


def make(**trainable: Any) -> tuple[Masks, dict[str, nn.Parameter]]:
    engine, trained = make_engine()

    def engine_of(kept: Coordinates) -> LoopEngine:
        return LoopEngine(engine._network, engine._loss, trained, coordinates=kept)

    return Masks(make_plan(trainable=trainable, engine="loop"), trained, engine_of), trained


def test_rule_04_masked_sum_is_the_full_one_at_the_kept_coordinates() -> None:
    masks, _ = make(random_mask=0.4)
    engine, _ = make_engine()
    full = engine.clipped_sum([unit(1)], NoClip()).total
    masked = masks.engine_at(0).clipped_sum([unit(1)], NoClip()).total
    for name, kept in masks.coordinates_at(0).items():
        expected = full[name] if kept is None else full[name].flatten()[kept]
        assert torch.equal(masked[name], expected), name


def test_rule_04_the_norm_that_is_clipped_is_that_of_the_kept_coordinates() -> None:
    masks, _ = make(random_mask=0.4)
    for rule in (NormClip(1e-3), NormClip(10.0)):
        total = masks.engine_at(0).clipped_sum([unit(2, 5.0)], rule).total
        raw = norm(masks.engine_at(0).clipped_sum([unit(2, 5.0)], NoClip()).total)
        assert norm(total) == pytest.approx(min(1.0, raw / rule.clip_norm), rel=1e-5)


def test_rule_04_noise_falls_on_the_kept_coordinates_alone(tmp_path: Path) -> None:
    masks, _ = make(random_mask=0.25)
    mechanism = make_mechanism()
    ledger = start_ledger(tmp_path, mechanism.plan)
    permit = mechanism.authorise(ledger, 0, 1, round_index=0, attempt=0)
    empty = masks.engine_at(0).clipped_sum([], mechanism.clip_rule(1.0))
    update = mechanism.release(empty, permit, "a", 0, InjectedRandomness(3))
    sizes = {name: kept.numel() for name, kept in masks.coordinates_at(0).items() if kept is not None}
    assert sizes
    for name, number in sizes.items():
        assert update.gradient[name].shape == (number,)
        assert bool((update.gradient[name] != 0).all())


def test_rule_07_the_update_says_how_much_noise_it_has(tmp_path: Path) -> None:
    """DP-AdamBC takes this variance off: it has to be that of the noise that was added, which is known, not estimated."""
    masks, _ = make(random_mask=0.999)
    mechanism = make_mechanism()
    ledger = start_ledger(tmp_path, mechanism.plan)
    permit = mechanism.authorise(ledger, 0, 20, round_index=0, attempt=0)
    values = []
    for step in range(20):
        empty = masks.engine_at(step).clipped_sum([], mechanism.clip_rule(1.0))
        update = mechanism.release(empty, permit, "a", step, InjectedRandomness(5))
        values += [value.flatten() for value in update.gradient.values()]
    found = torch.cat(values)
    assert float(found.std()) == pytest.approx(update.gradient_noise_std, rel=5 / (2 * found.numel()) ** 0.5)


def test_rule_04_a_resting_layer_gets_neither_gradient_nor_noise_and_wakes_up() -> None:
    masks, trained = make(phases=[{"until": 0.5, "freeze_patterns": ["0.*"]}])
    assert set(masks.coordinates_at(9)) == {"2.weight", "2.bias"}  # of 20 steps
    assert set(masks.coordinates_at(10)) == set(trained)
    assert set(masks.engine_at(0).clipped_sum([unit(1)], NoClip()).total) == {"2.weight", "2.bias"}
    assert set(masks.engine_at(19).clipped_sum([unit(1)], NoClip()).total) == set(trained)


def test_the_mask_depends_on_the_seed_alone_and_keeps_the_declared_share() -> None:
    weight = nn.Parameter(torch.zeros(7, 11, 3))
    first = declared_masks.random_coordinates("w", weight, 0.3, seed=1)
    assert first is not None
    assert first.numel() == round(0.3 * weight.numel()) == len(set(first.tolist()))
    again, other = (declared_masks.random_coordinates("w", weight, 0.3, seed=seed) for seed in (1, 2))
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]
    assert declared_masks.random_coordinates("b", nn.Parameter(torch.zeros(9)), 0.3, seed=1) is None


def test_spread_and_put_back_leave_other_coordinates_as_they_were() -> None:
    weight = nn.Parameter(torch.arange(12.0).view(3, 4))
    kept = torch.tensor([1, 5])
    assert declared_masks.spread(torch.tensor([7.0, 8.0]), weight, kept).flatten().nonzero().flatten().tolist() == [1, 5]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    declared_masks.put_back_(weight, before, kept)
    assert (weight - before).flatten().nonzero().flatten().tolist() == [1, 5]


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ({"phases": [{"until": 0.5, "freeze_patterns": ["nothing.*"]}]}, "matches no trained parameter"),
        ({"phases": [{"until": 0.5, "freeze_patterns": ["*"]}]}, "rests every parameter"),
    ],
)
def test_wrong_phases_are_refused(trainable: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**trainable)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": {"random_mask": 0.5}, "engine": "fused"},
        {"trainable": {"phases": [{"until": 0.8, "freeze_patterns": []}, {"until": 0.5, "freeze_patterns": []}]}},
        {"trainable": {"random_mask": 0.0}},
    ],
)
def test_plans_that_contradict_themselves_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make_plan(**changes)
