"""The fused engine gives the loop engine's numbers for every kind of layer, and never a norm that is too small."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import audited_model
import pytest
import torch
from fused_cases import DOUBLE, SHAPES, agree, distance, engines, loss, net, units
from small_model import norm
from torch import nn

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy.clipping import AutoClip, ClipRule, NoClip, NormClip
from nnunet_adpfl.privacy.gradients import record, weight_gradients
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import UnitPatches


@pytest.fixture(params=["keep", "ghost", "twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every layer by one of the three ways, whatever its shape."""
    monkeypatch.setattr(record, "choose", lambda *_: request.param)
    return str(request.param)


@pytest.fixture
def ghost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "choose", lambda *_: "ghost")


def convolutions() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    flat = itertools.product([(3, 3), (1, 3), (2, 2), (1, 1)], [(1, 1), (2, 2), (1, 2), (3, 2)], [(0, 0), (1, 1), (0, 1)], [(1, 1), (2, 1)])
    for kernel, stride, padding, dilation in flat:
        if all(pad <= width // 2 for pad, width in zip(padding, kernel, strict=True)):
            bias = stride == (1, 1)
            yield f"2d-{kernel}-{stride}-{padding}-{dilation}", nn.Conv2d(2, 3, kernel, stride, padding, dilation, bias=bias), (2, 7, 9)
    yield "3d", nn.Conv3d(2, 3, 3, 1, 1), (2, 4, 5, 3)
    yield "3d-strided", nn.Conv3d(2, 3, 3, 2, 1, bias=False), (2, 4, 5, 7)
    yield "3d-anisotropic", nn.Conv3d(2, 3, (1, 3, 3), (1, 2, 2), (0, 1, 1)), (2, 3, 6, 5)
    yield "3d-dilated", nn.Conv3d(1, 2, (2, 3, 1), (1, 1, 2), (1, 2, 0), (3, 2, 1)), (1, 5, 6, 4)
    yield "3d-disjoint", nn.Conv3d(2, 3, (2, 1, 3), (2, 1, 3)), (2, 5, 3, 7)


def transposed() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    yield "2d-up", nn.ConvTranspose2d(3, 2, 2, 2), (3, 4, 5)
    yield "2d-anisotropic", nn.ConvTranspose2d(3, 2, (1, 2), (1, 2), bias=False), (3, 4, 5)
    yield "2d-overlapping", nn.ConvTranspose2d(3, 2, 3, 2, 1, 1), (3, 4, 5)
    yield "2d-dilated", nn.ConvTranspose2d(3, 2, (3, 2), (2, 1), (1, 0), dilation=(1, 3)), (3, 4, 5)
    yield "2d-output-padding", nn.ConvTranspose2d(3, 2, 2, 2, 0, 1), (3, 4, 5)
    yield "3d-up", nn.ConvTranspose3d(3, 2, 2, 2), (3, 2, 3, 4)
    yield "3d-anisotropic", nn.ConvTranspose3d(3, 2, (1, 2, 2), (1, 2, 2)), (3, 2, 3, 4)
    yield "3d-overlapping", nn.ConvTranspose3d(2, 2, 3, 2, 1, bias=False), (2, 2, 3, 4)


LAYERS = [
    *convolutions(),
    *transposed(),
    ("norm-2d", nn.InstanceNorm2d(3, affine=True), (3, 5, 4)),
    ("norm-3d", nn.InstanceNorm3d(3, affine=True, eps=1e-2), (3, 2, 3, 4)),
    ("linear", nn.Linear(5, 4), (5,)),
    ("linear-tokens", nn.Linear(5, 4, bias=False), (3, 7, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS])
def test_rule_06_every_layer_agrees_with_the_loop(layer: nn.Module, shape: tuple[int, ...], way: str) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    for patches in (1, 3):
        agree(layer, units(shape, patches=patches))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("patches", [1, 2, 3])
def test_rule_03_network_agrees_with_the_loop(dims: int, patches: int, way: str) -> None:
    agree(net(dims), units(SHAPES[dims], 4, patches))


@pytest.mark.parametrize("dims", [2, 3])
def test_rule_03_network_agrees_by_the_cost_rule(dims: int) -> None:
    agree(net(dims), units(SHAPES[dims], 4))
    agree(net(dims, torch.float32), units(SHAPES[dims], 4, dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 5, 6])
def test_rule_03_sum_does_not_depend_on_how_many_go_together(at_once: int, way: str) -> None:
    agree(net(), units(SHAPES[2], 5), at_once=at_once)


def test_units_of_different_shapes() -> None:
    group = [*units((1, 8, 6), 2), *units((1, 10, 4), 1), *units((1, 8, 6), 2, patches=3)]
    agree(net(), group)
    agree(net(), group[2:])


def test_nobody_drawn() -> None:
    fused, loop = engines(net())
    found, expected = fused.clipped_sum(iter(()), NormClip(1.0)), loop.clipped_sum(iter(()), NormClip(1.0))
    assert list(found.total) == list(expected.total)
    assert norm(found.total) == 0
    assert (found.centred_count, found.non_finite, found.losses) == (0, 0, [])


def test_frozen_parameters_are_left_out(way: str) -> None:
    network = net()
    trained = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.endswith("conv.bias") and "first" not in name and name != "block.0.bias")
        if parameter.requires_grad:
            trained[name] = parameter
    agree(network, units(SHAPES[2]), trained=trained)
    only_bias = {"heads.0.bias": network.heads[0].bias}
    for parameter in network.parameters():
        parameter.requires_grad_(parameter is network.heads[0].bias)
    agree(network, units(SHAPES[2]), trained=only_bias)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("rule", [NormClip(0.5), NormClip(1e-3), AutoClip(0.01)], ids=str)
def test_rule_03_one_unit_adds_at_most_norm_one(scale: float, rule: ClipRule, way: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.LeakyReLU(inplace=True), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 2, 3))
    fused, _ = engines(network)
    for seed in range(5):
        for one in units((1, 12, 12), 3, dtype=torch.float32, seed=seed):
            scaled = UnitPatches(one.data * scale, one.target)
            found = fused.clipped_sum([scaled], rule)
            assert found.non_finite == 0
            assert norm(found.total) <= 1 + 1e-6


def opposed(size: float) -> tuple[Callable[..., torch.Tensor], list[UnitPatches]]:
    """Units whose patches are equal but for a little, and whose losses have opposite signs: gradients nearly cancel."""

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.mean(tuple(range(1, output.dim()))) * target).mean()

    group = []
    for one in units((3, 8, 8), 4, patches=1, dtype=torch.float32):
        data = torch.cat([one.data + 3, one.data + 3 + size * torch.randn_like(one.data)])
        group.append(UnitPatches(data, torch.tensor([1e3, -1e3])))
    return criterion, group


@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-5, 1e-3, 1e-1])
def test_rule_03_patches_that_nearly_cancel_stay_bounded(size: float, way: str) -> None:
    """The small difference of large numbers: its rounding may be as large as itself, and the norm must know."""
    torch.manual_seed(1)
    criterion, group = opposed(size)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 2, 1), nn.ConvTranspose2d(6, 4, 2, 2), nn.Linear(8, 3))
    fused, _ = engines(network, criterion=criterion)
    for clip in (1e-6, 1e-3, 1.0):
        alone = [fused.clipped_sum([one], NormClip(clip)).total for one in group]
        assert max(map(norm, alone)) <= 1 + 1e-5
        without = fused.clipped_sum(group[1:], NormClip(clip)).total
        everyone = fused.clipped_sum(group, NormClip(clip)).total
        assert norm({name: everyone[name].double() - value.double() for name, value in without.items()}) <= 1 + 1e-5


@pytest.mark.parametrize(("layer", "shape"), [case[1:] for case in LAYERS if "linear" not in case[0] and "norm" not in case[0]])
def test_rule_03_ghost_norms_in_double_precision(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Against the norm of the gradient itself; magnitudes bound rounding from above."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn((6, *shape), generator=generator)
    with torch.no_grad():
        gradient = torch.randn(layer.float()(data).shape, generator=generator)
    is_transposed = isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d))
    source, field = (gradient, data) if is_transposed else (data, gradient)
    window = weight_gradients.Window(layer.kernel_size, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
    product = weight_gradients.Product(source, field, window, layer.weight.detach(), 2)  # type: ignore[arg-type]
    exact = weight_gradients.Product(source.double(), field.double(), window, product.weight.double(), 2)
    squares, magnitudes = weight_gradients.squared_norms(product), weight_gradients.magnitudes(product)
    expected = torch.stack([own.square().sum() for own in weight_gradients.per_unit(exact, 2)])
    assert squares.dtype == DOUBLE
    assert torch.allclose(squares, expected, rtol=1e-7)
    assert (squares >= expected).all()
    absolute = weight_gradients.Product(exact.source.abs(), exact.field.abs(), window, exact.weight, 2)
    bound = torch.stack([own.square().sum() for own in weight_gradients.per_unit(absolute, 2)]).sqrt()
    assert (magnitudes >= bound * (1 - 1e-12)).all()


@pytest.mark.parametrize("layer", [nn.Conv3d(4, 3, 3, 1, 1), nn.Conv3d(4, 3, (3, 1, 3), (2, 1, 1), (1, 0, 1)), nn.Conv2d(4, 3, 3, 3, 2, 2)])
@pytest.mark.parametrize("rows", [2, 3, 6, 7, 8])
def test_rule_03_single_samples_are_halved_without_loss(layer: Any, rows: int) -> None:
    """What is done to get the fast convolution for one sample changes nothing."""
    shape = (4, rows + 6, *[5] * (len(layer.kernel_size) - 1))
    data = torch.randn((1, *shape), generator=torch.Generator().manual_seed(1))
    field = torch.randn(layer(data).shape, generator=torch.Generator().manual_seed(2))
    window = weight_gradients.Window(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    product = weight_gradients.Product(data, field, window, layer.weight.detach(), 1)
    whole = weight_gradients.Product(data.double(), field.double(), window, layer.weight.detach().double(), 1)
    assert weight_gradients._is_slow(data)
    assert not weight_gradients._is_slow(whole.source)
    found = weight_gradients._correlate(data, field, product)
    assert torch.allclose(found.double(), weight_gradients._correlate(whole.source, whole.field, whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_rule_05_a_unit_that_is_not_finite_adds_exactly_nothing(value: float, place: int, way: str) -> None:
    fused, _ = engines(net(), at_once=10)  # so that everyone is in one pass
    group = units(SHAPES[2], 4)
    bad = units(SHAPES[2], 1, seed=9)[0]
    bad.data[1, 0, 2, 2] = value
    alone = fused.clipped_sum(group, NormClip(0.5))
    both = fused.clipped_sum([*group[:place], bad, *group[place:]], NormClip(0.5))
    assert both.non_finite == 1
    assert both.losses == alone.losses
    assert both.centred_count == alone.centred_count
    assert all(torch.equal(value, alone.total[name]) for name, value in both.total.items())


def test_rule_05_gradients_that_are_not_finite_though_the_loss_is(way: str) -> None:
    def steep(output: Any, target: torch.Tensor) -> torch.Tensor:
        return loss(output, target) + ((output[0] * 0).abs().sqrt().mean() if bool(target.any()) else 0)  # derivative 0 / 0

    fused, loop = engines(net(), criterion=steep)
    group = units(SHAPES[2], 3)
    expected = fused.clipped_sum([group[0], group[2]], NormClip(0.5))
    group[1].target.fill_(1.0)  # type: ignore[union-attr]
    found = fused.clipped_sum(group, NormClip(0.5))
    assert found.non_finite == loop.clipped_sum(group, NormClip(0.5)).non_finite == 1
    assert all(torch.equal(value, expected.total[name]) for name, value in found.total.items())


def test_rule_05_factors_that_leave_the_range_are_left_to_the_loop(ghost: None) -> None:
    """A dead input pixel under a huge gradient adds nothing, but huge x factor = inf, and inf x 0 = NaN."""
    network = nn.Conv2d(1, 1, 1, bias=False)
    group = [UnitPatches(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[3e38, 1e-9]]]]))]

    def criterion(output: Any, target: Any) -> torch.Tensor:
        return (output * target).sum()

    fused, loop = engines(network, criterion=criterion)
    found, expected = (engine.clipped_sum(group, NormClip(1e-3)) for engine in (fused, loop))
    assert torch.equal(found.total["weight"], expected.total["weight"])
    assert torch.isfinite(found.total["weight"]).all()


def test_loss_that_reaches_parameters_past_the_network() -> None:
    """As canaries do: such a unit is left to the loop, the others are not."""
    network = net()

    def criterion(output: Any, target: torch.Tensor) -> torch.Tensor:
        past = sum((parameter**2).sum() for parameter in network.parameters()) if bool(target.any()) else 0
        return loss(output, target) + past

    fused, loop = engines(network, criterion=criterion)
    group = units(SHAPES[2], 3)
    group[1].target.fill_(1.0)  # type: ignore[union-attr]
    for rule in (NoClip(), NormClip(0.5)):
        found, expected = fused.clipped_sum(group, rule), loop.clipped_sum(group, rule)
        assert fused.unsupported is None
        assert distance(found, expected) < 1e-12
        assert sorted(found.losses) == pytest.approx(sorted(expected.losses))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, 1, 1)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(data))


class Around(Twice):
    """Uses the weight once through its layer and once around it."""

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.conv(data), self.conv.weight, padding=1)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return data * self.scale


class Mixes(nn.Module):
    """Puts patches into the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.conv(data.flatten(0, 1).unflatten(0, (2, -1)).transpose(0, 1)[::2]).repeat(2, 1, 1, 1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.two.weight = self.one.weight

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(data))


class Own(nn.Conv2d):
    pass


UNKNOWN = {
    "used twice": Twice, "weight used around its layer": Around, "bare parameter": Bare, "tied weights": Tied, "patches mixed": Mixes,
    "subclass": lambda: Own(2, 2, 1), "groups": lambda: nn.Conv2d(2, 2, 1, groups=2), "group norm": lambda: nn.GroupNorm(1, 2),
    "padding mode": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "padding same": lambda: nn.Conv2d(2, 2, 3, padding="same"),
    "running statistics": lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False, track_running_stats=False)),
    "output padding": lambda: nn.ConvTranspose2d(2, 2, 3, 1, 1, 1, dilation=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_unknown_is_left_to_the_loop_with_one_line(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    network = UNKNOWN[kind]().double()
    group = units((2, 5, 5), 3)
    fused, loop = engines(network)
    for _ in range(2):
        found = fused.clipped_sum(iter(group), NormClip(0.3))
        assert all(parameter.grad is None for parameter in network.parameters())
    assert fused.unsupported
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert distance(found, loop.clipped_sum(iter(group), NormClip(0.3))) == 0
    assert not any("forward" in vars(module) for module in network.modules())


def test_rule_04_a_trained_parameter_without_gradient_is_refused() -> None:
    network = net()

    def first_only(output: Any, target: Any) -> torch.Tensor:
        return loss(output[0], target)

    with pytest.raises(PrivacyRefusedError, match=r"heads\.1\.weight is trained but gets no gradient"):
        engines(network, criterion=first_only)[0].clipped_sum(units(SHAPES[2]), NormClip(1.0))


def test_forwards_and_state_are_as_before_also_after_an_error() -> None:
    network = net()
    before = {name: type(module) for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def fails(output: Any, target: Any) -> torch.Tensor:
        assert "forward" in vars(network.up)
        raise ValueError("broken")

    for criterion in (loss, fails):
        try:
            engines(network, criterion=criterion)[0].clipped_sum(units(SHAPES[2]), NormClip(1.0))
        except ValueError:
            assert criterion is fails
        assert {name: type(module) for name, module in network.named_modules()} == before
        assert not any("forward" in vars(module) for module in network.modules())
        assert list(network.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_left_behind_by_others_do_not_matter() -> None:
    network = net()
    loss(network(units(SHAPES[2])[0].data), None).backward()
    agree(network, units(SHAPES[2]))


def test_rule_06_half_precision_networks_are_clipped_and_added_in_single(way: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.Conv2d(3, 1, 3)).to(torch.bfloat16)
    fused, loop = engines(network)
    group = units((1, 8, 8), 3, dtype=torch.bfloat16)
    found = fused.clipped_sum(group, NormClip(0.01))
    assert {value.dtype for value in found.total.values()} == {torch.float32}
    assert distance(found, loop.clipped_sum(group, NormClip(0.01))) < 0.05
    assert norm(fused.clipped_sum(group[:1], NormClip(0.01)).total) == pytest.approx(1, abs=1e-5)


def test_rule_03_canaries_beside_fused_units_change_the_sum_by_at_most_one() -> None:
    loop, trained = audited_model.make_engine()
    fused = FusedEngine(loop._network, loop._loss, trained, patches_at_once=8)
    for rule in (NormClip(1.0), NormClip(1e-3)):
        _, changed = audited_model.changes(fused, trained, rule)
        assert fused.unsupported is None
        assert all(difference.norm <= 1 + 1e-5 for difference in changed.values())
        assert all(abs(difference.count) == 0.5 for difference in changed.values())
