"""What a unit adds is the same whoever else is in its pass, and has at most norm 1 however its numbers are rounded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fused_cases import DOUBLE, SHAPES, Net, distance, engines, loss, net, units
from small_model import norm
from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.clipping import NormClip
from nnunet_adpfl.privacy.gradients import record, weight_gradients
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, UnitPatches


@pytest.fixture(params=["by cost", "keep", "ghost", "twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "by cost":
        monkeypatch.setattr(record, "choose", lambda *_: request.param)
    return str(request.param)


def weighed(output: Any, target: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient is what the unit says."""
    return (output * target).sum()


def change(whole: ClippedSum, without: ClippedSum) -> float:
    return norm({name: total.double() - without.total[name].double() for name, total in whole.total.items()})


def odd_units(shape: tuple[int, ...]) -> list[UnitPatches]:
    """Ordinary ones, and such that norms have nothing to divide by: there, rounding is multiplied by thousands."""
    ordinary = [one.data for one in units(shape, 3, 1, torch.float32)]
    noise = ordinary[0]
    blank = [torch.zeros_like(noise), torch.full_like(noise, -0.5), -0.5 + 1e-4 * noise, 1e-20 * noise, 1e4 * noise]
    return [UnitPatches(data, torch.zeros(1)) for data in [*ordinary, *blank]]


@pytest.mark.parametrize("norms_frozen", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("half", [False, True])
def test_rule_03_norms_are_the_same_bits_whoever_else_is_drawn(dims: int, half: bool, norms_frozen: bool, way: str) -> None:
    """In the last, smaller pass, too. The clip and the count follow from the norm over all tensors."""
    network = net(dims, torch.float32)
    if norms_frozen:
        for module in network.modules():
            if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
                module.requires_grad_(False)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    fused = FusedEngine(network, loss, trained, patches_at_once=3, autocast=half)
    group = odd_units(SHAPES[dims])
    together = fused.norms(group)
    for subset in ([5], [1, 5], [7, 3], [0, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [7, 7, 7, 3]):
        some = fused.norms([group[index] for index in subset])
        assert all(some[name] == [together[name][index] for index in subset] for name in (*trained, "all")), subset


@pytest.mark.parametrize(("dims", "seed"), [(2, 3), (3, 23), *[(dims, seed) for dims in (2, 3) for seed in range(30, 36)]])
def test_rule_08_the_count_changes_by_a_half_whatever_the_clip_norm(dims: int, seed: int) -> None:
    """Also where it lies between the norm of a unit alone and the one that it had beside others."""
    torch.manual_seed(seed)
    network = Net(dims)
    fused, _ = engines(network)
    one, other = units(SHAPES[dims], 2, 1, torch.float32, seed)
    norm_alone = fused.norms([one])["all"][0]
    for company, place in (([one, other], 0), ([one, other, other], 0), ([other, one], 1)):
        assert fused.norms(company)["all"][place] == norm_alone
    for clip in (norm_alone, math.nextafter(norm_alone, 0), math.nextafter(norm_alone, math.inf)):
        counts = [fused.clipped_sum(group, NormClip(clip)).centred_count for group in ([one], [one, other])]
        assert abs(counts[1] - counts[0]) == 0.5


def test_rule_03_memory_formats_of_others_change_nothing() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 64, 3, 1, 1), nn.Conv2d(64, 64, 3, 1, 1))
    fused, _ = engines(network)
    group = units((16, 8, 8), 3, 2, torch.float32)
    turned = [UnitPatches(unit.data.contiguous(memory_format=torch.channels_last), unit.target) for unit in group]
    expected = fused.norms(group)
    assert fused.norms([turned[0], *group[1:]]) == fused.norms([group[0], *turned[1:]]) == fused.norms(turned) == expected


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_rule_05_a_unit_whose_loss_skips_an_output_is_judged_alone(first: float) -> None:
    def criterion(output: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return loss(output[:1] if bool(target.any()) else output, target)

    group = units(SHAPES[2], 2)
    group[0].target.fill_(first)  # type: ignore[union-attr]
    group[1].target.fill_(1 - first)  # type: ignore[union-attr]
    fused, loop = engines(net(), criterion=criterion)
    fused.clipped_sum(units(SHAPES[2], 1), NormClip(1.0))  # as the check at the start does
    for engine in (fused, loop):
        with pytest.raises(PrivacyRefusedError, match="gets no gradient"):
            engine.clipped_sum(group, NormClip(1.0))


@pytest.mark.parametrize(("dims", "channels", "size"), [(2, 64, 4), (3, 64, 4), (3, 16, 8)])
@pytest.mark.parametrize("cancelling", [1e-2, 1e-4, 1e-6])
def test_rule_03_one_more_unit_beside_patches_that_nearly_cancel(dims: int, channels: int, size: int, cancelling: float, way: str) -> None:
    torch.manual_seed(0)
    conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, channels, 3, 1, 1, bias=False)
    fused, _ = engines(conv, criterion=weighed)
    shape = (1, channels, *[size] * dims)
    data, target = torch.randn(shape), torch.randn(shape)
    cancelled = UnitPatches(torch.cat([data, data]), torch.cat([target, -target * (1 + cancelling)]))
    plain = UnitPatches(torch.cat([data, data]), torch.cat([target, target]))
    for others in range(5):
        whole, without = (fused.clipped_sum([*first, *[cancelled] * others], NormClip(1e-9)) for first in ([plain], []))
        assert change(whole, without) <= 1 + 1e-5
        assert abs(whole.centred_count - without.centred_count) == 0.5


def test_rule_03_huge_numbers_of_one_unit_do_not_move_the_others(way: str) -> None:
    torch.manual_seed(0)
    fused, _ = engines(nn.Conv3d(16, 16, 3, 1, 1, bias=False), criterion=weighed)
    data, target = torch.randn(4, 16, 4, 4, 4), torch.randn(4, 16, 4, 4, 4)
    others = [
        UnitPatches(torch.cat([one, one]), torch.cat([gradient, -gradient * (1 + 1e-5)]))
        for one, gradient in zip(data.split(1), target.split(1), strict=True)
    ]
    huge = UnitPatches(torch.zeros(2, 16, 4, 4, 4), torch.zeros(2, 16, 4, 4, 4))
    huge.data[:, :, 2:, 2:, 2:] = 1.0
    huge.target[:, :, 3, 3, 3] = 1e-9  # type: ignore[call-overload]
    huge.target[0, 0, 0, 0, 0] = 3e38  # type: ignore[call-overload]
    for rule in (NormClip(1e-9), NormClip(1e3)):
        assert change(fused.clipped_sum([huge, *others], rule), fused.clipped_sum(others, rule)) <= 1 + 1e-5


def rounded_up(size: int, channels: int = 16) -> UnitPatches:
    """A constant image, and a field whose every addition is rounded up: the true gradient is next to nothing."""
    inner = size - 2
    field = torch.full((inner**3,), 1.002)
    field[0], field[-2:] = 2.0**24, 0.0
    total = field.double().sum()
    field[-2] = -total.float()
    field[-1] = -(total + field[-2].double()).float()
    target = nn.functional.pad(field.view([inner] * 3), (1,) * 6).expand(1, channels, *[size] * 3).contiguous()
    return UnitPatches(torch.ones_like(target), target)


def test_rule_03_rounding_is_bounded_for_all_numbers() -> None:
    """Also where errors do not cancel: there a bound for independent errors fails, which would be smaller by sqrt(n)."""
    window = weight_gradients.Window((3,) * 3, (1,) * 3, (1,) * 3, (1,) * 3)
    largest = 0.0
    for size in (8, 16, 24):
        unit = rounded_up(size, 8)
        assert isinstance(unit.target, torch.Tensor)
        single, double = (
            weight_gradients.Product(unit.data.to(dtype), unit.target.to(dtype), window, torch.empty(8, 8, 3, 3, 3), 1)
            for dtype in (torch.float32, DOUBLE)
        )
        found, exact = next(weight_gradients.per_unit(single, 1)), next(weight_gradients.per_unit(double, 1))
        error, allowed = float((found.double() - exact).norm()), float(weight_gradients.rounding(single))
        assert error <= allowed
        largest = max(largest, error / allowed * size**1.5 / 3)
    assert largest > 1


@pytest.mark.parametrize("size", [8, 12])
def test_rule_03_rounding_that_always_goes_one_way(size: int, way: str) -> None:
    biased = rounded_up(size)
    network = nn.Conv3d(16, 16, 3, 1, 1, bias=False)
    with torch.no_grad():
        network.weight.mul_(1e-3)
    empty = UnitPatches(torch.zeros_like(biased.data), torch.zeros_like(biased.data))
    fused, _ = engines(network, criterion=weighed, at_once=2)
    for group in ([biased], [biased, empty], [empty, biased]):
        assert norm(fused.clipped_sum(group, NormClip(1e-3)).total) <= 1 + 1e-5
    two = fused.clipped_sum([biased, biased], NormClip(1e-3))
    assert change(two, fused.clipped_sum([biased], NormClip(1e-3))) <= 1 + 1e-5


def test_rule_03_float64_networks_stay_bounded_too(way: str) -> None:
    """Norms from Gram matrices lose half of the digits where gradients cancel."""
    fused, _ = engines(nn.Conv3d(8, 8, 3, 1, 1, bias=False).double(), criterion=weighed)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        data, target = (torch.randn(1, 8, 4, 4, 4, dtype=DOUBLE, generator=generator) for _ in range(2))
        unit = UnitPatches(torch.cat([data, data]), torch.cat([target, -target * (1 + 1e-11)]))
        assert norm(fused.clipped_sum([unit], NormClip(1e-14)).total) <= 1 + 1e-5


def test_rule_05_what_no_window_meets_is_not_multiplied(way: str) -> None:
    network = nn.Conv2d(16, 16, 3, 2, bias=False)
    data = torch.randn(1, 16, 20, 20, generator=torch.Generator().manual_seed(0))
    data[:, :, 19] = math.inf
    unit = UnitPatches(data, torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(1)))
    fused, loop = engines(network, criterion=weighed)
    found, expected = (engine.clipped_sum([unit], NormClip(1.0)) for engine in (fused, loop))
    assert found.non_finite == expected.non_finite == 0
    assert distance(found, expected) < 1e-4


class Around(nn.Module):
    """Uses the weight once more, around its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, 1, 1)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.conv(data), self.conv.weight, padding=1)


@pytest.mark.parametrize("spoilt", [False, True])
def test_rule_03_units_count_once_where_a_pass_is_given_up_half_way(spoilt: bool) -> None:
    network = Around().double()

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        past = sum((parameter**2).sum() for parameter in network.parameters()) if bool(target.any()) else 0
        return output.square().mean() + past

    group = units((2, 5, 5), 3)
    group[1].target.fill_(1.0)  # type: ignore[union-attr]
    if spoilt:
        group[1].data.fill_(math.nan)
    fused, loop = engines(network, criterion=criterion)
    found, expected = (engine.clipped_sum(group, NormClip(1e-3)) for engine in (fused, loop))
    assert fused.unsupported
    assert distance(found, expected) == 0
    assert (found.non_finite, found.centred_count, found.losses) == (expected.non_finite, expected.centred_count, expected.losses)
