"""Which engine a run uses: never one that differs, and always the one that it began with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fused_cases import DOUBLE, SHAPES, distance, engines, loss, net, units
from small_model import norm
from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.clipping import NoClip, NormClip
from nnunet_adpfl.privacy.gradients import agreement, choice, precision, record, trial, weight_gradients
from nnunet_adpfl.privacy.gradients.choice import EngineChoice
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine


class Own(nn.Conv2d):
    pass


@pytest.fixture
def ghost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "choose", lambda *_: "ghost")


@pytest.fixture(params=["fused", "loop"])
def faster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine whose trial is the shorter one."""
    times = {"fused": 1.0, "loop": 1.02}  # as fast as the loop is not fast enough
    if request.param == "fused":
        times["loop"] = 1.2
    monkeypatch.setattr(trial, "seconds", lambda *_: times)
    return str(request.param)


def draw(number: int) -> list[UnitPatches]:
    return units(SHAPES[2], 3, dtype=torch.float32, seed=number)


def choose(kind: Any, network: nn.Module, **changes: Any) -> Any:
    trained = dict(network.named_parameters())
    return choice.choose(kind, network, loss, trained, **{"draw": draw, "most_patches": 6, **changes})


def network() -> nn.Module:
    return net(dtype=torch.float32)


def test_engine_of_the_plan(faster: str) -> None:
    assert isinstance(choose("loop", network())[0], LoopEngine)
    engine, chosen = choose("fused", network())
    assert isinstance(engine, FusedEngine)
    assert (chosen.engine, chosen.patches_at_once) == ("fused", 6)
    engine, chosen = choose("auto", network())
    assert isinstance(engine, FusedEngine if faster == "fused" else LoopEngine)
    assert chosen.engine == faster
    assert set(chosen.seconds) == {"fused", "loop"}


def test_trial_times_every_engine() -> None:
    fused, loop = engines(network())
    found = trial.seconds({"loop": loop, "fused": fused}, draw(0))
    assert all(0 < seconds < 60 for seconds in found.values())


def test_choice_stays_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "seconds", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(trial, "patches_that_fit", lambda *_: pytest.fail("measured again"))
    fused, loop = EngineChoice("fused", 4, "faster", {"fused": 1.0, "loop": 2.0}), EngineChoice("loop", 0, "not faster")
    for earlier in (fused, loop):
        engine, chosen = choose("auto", network(), earlier=earlier)
        assert chosen == earlier
        assert isinstance(engine, FusedEngine if earlier.engine == "fused" else LoopEngine)


def test_rule_03_an_earlier_choice_does_not_replace_the_check(ghost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    squares = weight_gradients.squared_norms
    monkeypatch.setattr(weight_gradients, "squared_norms", lambda product: squares(product) / 4)
    earlier = EngineChoice("fused", 4, "fused is faster")
    assert isinstance(choose("auto", network(), earlier=earlier)[0], LoopEngine)
    assert isinstance(choose("loop", network(), earlier=earlier)[0], LoopEngine)
    with pytest.raises(PrivacyRefusedError, match="engine: loop"):
        choose("fused", network(), earlier=earlier)


@pytest.mark.parametrize("free", [0, 1, 10**5, 10**12])
def test_no_more_patches_than_memory_allows(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    unit, small = draw(0)[0], net(dtype=torch.float32)
    found = trial.patches_that_fit(small, unit, 8)
    assert found == {0: 1, 1: 1, 10**5: found, 10**12: 8}[free]
    if free == 10**5:
        kept = trial._saved_bytes(small, unit.data) / len(unit.data)
        assert 1 <= found < 8
        assert found * kept <= free


@pytest.mark.parametrize("kind", ["fused", "auto"])
def test_engine_for_an_unknown_network_is_the_loop(kind: str) -> None:
    engine, chosen = choose(kind, nn.Sequential(Own(1, 2, 3), nn.Conv2d(2, 2, 1)))
    assert isinstance(engine, LoopEngine)
    assert "Own" in chosen.reason


def test_a_compiled_network_is_left_to_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    compiled: Any = torch.compile(net())  # nothing is compiled before it runs
    fused = FusedEngine(compiled, loss, dict(compiled.named_parameters()), patches_at_once=4)
    assert "torch.compile" in str(fused.unsupported)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fault", ["norm", "sum", "nan"])
def test_rule_03_a_fused_engine_that_differs_is_never_used(fault: str, ghost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = weight_gradients.per_unit
    if fault == "norm":
        squares = weight_gradients.squared_norms
        monkeypatch.setattr(weight_gradients, "squared_norms", lambda product: squares(product) / 4)
    else:
        factor = 1.001 if fault == "sum" else math.nan
        monkeypatch.setattr(weight_gradients, "per_unit", lambda *of: (own * factor for own in original(*of)))
    with pytest.raises(PrivacyRefusedError, match="engine: loop"):
        choose("fused", network())
    assert isinstance(choose("auto", network())[0], LoopEngine)


def small_share(network: Any) -> float:
    total = engines(network)[1].clipped_sum(draw(0), NoClip()).total
    return norm({"block": total["block.0.weight"]}) / norm(total)


def test_rule_03_a_fault_of_a_single_tensor_is_noticed(ghost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with so little of the gradient now that the norm of the whole shows nothing."""
    small = net(dtype=torch.float32)
    with torch.no_grad():
        for module in (small.heads[1], small.up):
            module.weight.mul_(1e-3)  # what lies below them has little gradient
    share = small_share(small)
    assert 1e-4 < share < 1e-2
    squares = weight_gradients.squared_norms
    wrong = lambda product: squares(product) * (0.5 if product.weight.shape == small.block[0].weight.shape else 1.0)  # noqa: E731
    monkeypatch.setattr(weight_gradients, "squared_norms", wrong)
    with pytest.raises(PrivacyRefusedError, match="engine: loop"):
        choose("fused", small)


def test_rule_03_an_engine_in_which_units_are_rounded_by_their_company_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    original = FusedEngine.norms
    wrong = lambda self, group: {name: [norm + 2.0**-30 * len(group) for norm in own] for name, own in original(self, group).items()}  # noqa: E731
    monkeypatch.setattr(FusedEngine, "norms", wrong)
    with pytest.raises(PrivacyRefusedError, match="when others are drawn"):
        choose("fused", network())
    assert isinstance(choose("auto", network())[0], LoopEngine)


def test_rule_06_half_precision_is_held_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = choose("fused", network(), autocast=True)
    assert isinstance(engine, FusedEngine)
    monkeypatch.setattr(agreement, "longest", lambda *_: 1.001)
    with pytest.raises(PrivacyRefusedError, match="half precision"):
        choose("fused", network(), autocast=True)
    assert isinstance(choose("auto", network(), autocast=True)[0], LoopEngine)


@pytest.mark.parametrize("way", ["keep", "ghost", "twice", "by cost"])
@pytest.mark.parametrize("dims", [2, 3])
def test_rule_06_half_precision_networks_are_clipped_in_full_precision(dims: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 as on a GPU, here on the CPU: sums near those of the loop in bfloat16, and no unit beyond the clip norm."""
    if way != "by cost":
        monkeypatch.setattr(record, "choose", lambda *_: way)
    small = net(dims, torch.float32)
    trained = dict(small.named_parameters())
    fused = FusedEngine(small, loss, trained, patches_at_once=8, autocast=True)
    loop = LoopEngine(small, loss, trained, autocast=True)
    group = units(SHAPES[dims], 3, 2, torch.float32)
    found, expected = fused.clipped_sum(group, NoClip()), loop.clipped_sum(group, NoClip())
    assert fused.unsupported is None
    assert distance(found, expected) < 2e-2
    for clip in (1e-6, 1e-3):
        for unit in group:
            assert 1 - 2e-3 < norm(fused.clipped_sum([unit], NormClip(clip)).total) <= 1 + 1e-6
    assert all(value.dtype == torch.float32 for value in found.total.values())


def test_rule_06_norm_and_sum_know_nothing_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[str] = []
    original = weight_gradients.per_unit

    def watched(product: weight_gradients.Product, number: int) -> Iterator[torch.Tensor]:
        inside.append(torch.backends.cuda.matmul.fp32_precision + torch.backends.mkldnn.conv.fp32_precision)
        return original(product, number)

    monkeypatch.setattr(weight_gradients, "per_unit", watched)
    monkeypatch.setattr(record, "choose", lambda *_: "ghost")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        engines(net(dtype=DOUBLE))[0].clipped_sum(units(SHAPES[2], 2), NormClip(1.0))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"  # as it was
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert set(inside) == {"ieeeieee"}


def test_full_precision_is_given_back_after_an_error() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    with pytest.raises(RuntimeError), precision.full():
        raise RuntimeError
    assert torch.backends.cudnn.conv.fp32_precision == before
