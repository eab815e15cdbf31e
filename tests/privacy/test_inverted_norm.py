"""Norms that keep only what comes after their activation give the same gradients, or say that they cannot."""

from __future__ import annotations

import pytest
import torch
from fused_cases import DOUBLE, SHAPES, Net, agree, distance, engines, loss, net, units
from torch import nn

from nnunet_adpfl.privacy.clipping import NormClip
from nnunet_adpfl.privacy.gradients import inverted_norm
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.inverted_norm import NormAndActivation


def pairs(engine: FusedEngine) -> list[NormAndActivation]:
    return [layer for layer in engine._layers if isinstance(layer, NormAndActivation)]


def with_random_affine(network: Net) -> Net:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
                size = module.weight.shape
                module.weight.copy_((torch.rand(size, generator=generator) + 0.2) * (torch.arange(size[0]) % 2 * 2 - 1))  # both signs
                module.bias.copy_(torch.randn(size, generator=generator))
    return network


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("patches", [1, 3])
def test_rule_03_inverted_norms_agree_with_the_loop(dims: int, patches: int) -> None:
    network = with_random_affine(net(dims))
    assert len(pairs(engines(network, inverted=True)[0])) == 2  # the block's norm goes into a sum, not into an activation
    agree(network, units(SHAPES[dims], 4, patches), inverted=True)
    agree(network.float(), units(SHAPES[dims], 4, patches, torch.float32), 1e-5, inverted=True)


def saved_bytes(engine: FusedEngine) -> int:
    """Of all different tensors that backward gets."""
    seen: dict[int, int] = {}
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # else another tensor may get its place
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        engine.clipped_sum(units((1, 64, 64), 2), NormClip(1.0))
    return sum(seen.values())


def test_less_is_kept() -> None:
    plain, inverted = (saved_bytes(engines(net(), inverted=inverted)[0]) for inverted in (False, True))
    assert inverted < 0.8 * plain


@pytest.mark.parametrize("shift", [0.3, 0.0])
@pytest.mark.parametrize("scale", [0.0, 1e-8, -1e-8])
def test_a_scale_that_cannot_be_divided_by_makes_the_norm_keep_its_input(scale: float, shift: float) -> None:
    network = net()
    with torch.no_grad():
        network.first[1].weight[1] = scale
        network.first[1].bias[1] = shift
    agree(network, units(SHAPES[2], 3), inverted=True)


def test_a_large_shift_makes_the_norm_keep_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    network = net(dtype=torch.float32)
    with torch.no_grad():
        network.first[1].weight.fill_(1e-3)
        network.first[1].bias.fill_(20.0)
    group = units(SHAPES[2], 3, dtype=torch.float32)
    agree(network, group, 1e-5, inverted=True)
    monkeypatch.setattr(inverted_norm, "_MOST_SHIFT", 1e9)
    fused, loop = engines(network, inverted=True)
    found, expected = (engine.clipped_sum(group, NormClip(1.0)).total["first.1.weight"] for engine in (fused, loop))
    assert float((found - expected).detach().norm() / expected.detach().norm()) > 1e-4  # as bad as feared


def test_rule_05_a_unit_that_is_not_finite_adds_exactly_nothing() -> None:
    fused, _ = engines(net(), inverted=True)
    group = units(SHAPES[2], 3)
    bad = units(SHAPES[2], 1, seed=9)[0]
    bad.data[1, 0, 2, 2] = float("nan")
    alone, both = (fused.clipped_sum(some, NormClip(0.5)) for some in (group, [group[0], bad, *group[1:]]))
    assert both.non_finite == 1
    assert all(torch.equal(value, alone.total[name]) for name, value in both.total.items())


def test_frozen_norms_and_other_activations_are_left_alone() -> None:
    network = net()
    network.first[1].bias.requires_grad_(False)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(pairs(engines(network, trained, inverted=True)[0])) == 1
    agree(network, units(SHAPES[2]), trained=trained, inverted=True)
    network.down[2] = nn.ReLU()
    assert not pairs(engines(network, trained, inverted=True)[0])
    shared = nn.LeakyReLU()
    other = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True), shared, nn.Conv2d(2, 2, 1), shared).double()
    assert not pairs(engines(other, inverted=True)[0])
    agree(other, units((1, 5, 6)), inverted=True)


class Apart(nn.Module):
    """Has norm and activation in one sequence, and goes another way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.norm, self.activation = nn.InstanceNorm2d(2, affine=True), nn.LeakyReLU()
        self.sequence = nn.Sequential(self.norm, self.activation)
        self.way = way

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        if self.way == "norm alone":
            return self.norm(data)
        if self.way == "something between":
            return self.activation(self.norm(data) + 1)
        return self.sequence(self.activation(data))


@pytest.mark.parametrize("way", ["norm alone", "something between", "activation first"])
def test_modules_that_are_used_apart_are_left_to_the_loop(way: str) -> None:
    network = Apart(way).to(DOUBLE)
    fused, loop = engines(network, inverted=True)
    group = units((2, 5, 4))
    found = fused.clipped_sum(group, NormClip(0.3))
    assert fused.unsupported
    assert distance(found, loop.clipped_sum(group, NormClip(0.3))) == 0
    assert not any("forward" in vars(module) for module in network.modules())


def test_nothing_is_inverted_in_half_precision() -> None:
    network = net()
    trained = dict(network.named_parameters())
    assert not pairs(FusedEngine(network, loss, trained, patches_at_once=2, autocast=True, invert_activations=True))
