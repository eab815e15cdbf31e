"""Rules 1, 3, 4, 5, 6: one clipped contribution per unit, summed, divided by a declared constant; exact numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from injected_randomness import InjectedRandomness
from small_model import make_engine, make_mechanism, norm, start_ledger, unit

from nnunet_adpfl.privacy.clipping import AutoClip, NoClip, NormClip
from nnunet_adpfl.privacy.gradients.interface import ClippedSum


def plain_gradient(seed: int, scale: float = 1.0, patches: int = 2) -> dict[str, torch.Tensor]:
    engine, _ = make_engine()
    return engine.clipped_sum([unit(seed, scale, patches)], NoClip()).total


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    log_scale=st.floats(-3, 6),
    clip=st.floats(1e-3, 1e3),
    patches=st.integers(1, 5),
    auto=st.booleans(),
)
def test_rule_03_one_unit_adds_at_most_norm_one(seed: int, log_scale: float, clip: float, patches: int, auto: bool) -> None:
    engine, _ = make_engine()
    rule = AutoClip(0.01) if auto else NormClip(clip)
    total = engine.clipped_sum([unit(seed, 10**log_scale, patches)], rule).total
    assert norm(total) <= 1 + 1e-6


def test_rule_03_all_patches_of_a_unit_are_averaged_before_one_clip() -> None:
    expected = plain_gradient(3, patches=4)
    length = norm(expected)
    engine, _ = make_engine()
    clipped = engine.clipped_sum([unit(3, patches=4)], NormClip(length / 2)).total
    for name, value in clipped.items():
        assert torch.allclose(value, expected[name] / length, atol=1e-6)


def test_rule_03_a_unit_does_not_change_with_who_else_is_drawn() -> None:
    engine, _ = make_engine()
    rule = NormClip(0.5)
    alone = engine.clipped_sum([unit(1)], rule).total
    both = engine.clipped_sum([unit(2, 50.0), unit(1)], rule).total
    other = engine.clipped_sum([unit(2, 50.0)], rule).total
    for name in alone:
        assert torch.allclose(both[name] - other[name], alone[name], atol=1e-6)


def test_rule_04_sum_of_clipped_gradients_not_clipped_sum() -> None:
    engine, _ = make_engine()
    units = [unit(5, 30.0) for _ in range(6)]  # the same direction, so the norms add up
    assert norm(engine.clipped_sum(units, NormClip(0.1)).total) == pytest.approx(6, rel=1e-4)


@pytest.mark.parametrize("drawn", [0, 1, 7])
def test_rule_04_divisor_is_the_declared_constant(drawn: int, tmp_path) -> None:
    mechanism = make_mechanism(clipping={"method": "none"})
    plan = mechanism.plan
    permit = mechanism.authorise(start_ledger(tmp_path, plan), 0, 1, round_index=0, attempt=0)
    summed = ClippedSum({"w": torch.full((3,), float(drawn))}, losses=[0.0] * drawn)
    update = mechanism.release(summed, permit, "a", 0, InjectedRandomness(0))
    assert torch.allclose(update.gradient["w"], torch.full((3,), drawn / (0.25 * 40)))


def test_rule_04_noise_is_on_every_trained_coordinate_also_of_an_empty_draw(tmp_path) -> None:
    mechanism = make_mechanism()
    plan = mechanism.plan
    engine, trained = make_engine()
    permit = mechanism.authorise(start_ledger(tmp_path, plan), 0, 1, round_index=0, attempt=0)
    summed = engine.clipped_sum([], mechanism.clip_rule(1.0))
    assert norm(summed.total) == 0
    update = mechanism.release(summed, permit, "a", 0, InjectedRandomness(1))
    assert set(update.gradient) == set(trained)
    for value in update.gradient.values():
        assert (value != 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_rule_05_a_unit_that_is_not_finite_adds_exactly_nothing(value: float) -> None:
    engine, _ = make_engine()
    good, rule = unit(1), NormClip(0.5)
    bad = unit(2)
    bad.data[0, 0, 0, 0] = value
    alone = engine.clipped_sum([good], rule)
    both = engine.clipped_sum([good, bad], rule)
    assert both.non_finite == 1
    assert both.centred_count == alone.centred_count
    for name, tensor in both.total.items():
        assert torch.equal(tensor, alone.total[name])


def test_rule_06_clip_and_sum_are_float32_also_for_a_half_precision_network() -> None:
    engine, _ = make_engine(torch.bfloat16)
    summed = engine.clipped_sum([unit(seed, 100.0, dtype=torch.bfloat16) for seed in range(3)], NormClip(0.1))
    assert {tensor.dtype for tensor in summed.total.values()} == {torch.float32}
    one = engine.clipped_sum([unit(0, 100.0, dtype=torch.bfloat16)], NormClip(0.1))
    assert norm(one.total) == pytest.approx(1, abs=1e-5)


def test_rule_06_noise_in_half_precision_is_refused(tmp_path) -> None:
    mechanism = make_mechanism()
    plan = mechanism.plan
    permit = mechanism.authorise(start_ledger(tmp_path, plan), 0, 1, round_index=0, attempt=0)
    with pytest.raises(TypeError):
        mechanism.release(ClippedSum({"w": torch.zeros(3, dtype=torch.bfloat16)}), permit, "a", 0, InjectedRandomness(0))
