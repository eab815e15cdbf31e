"""Networks, units and comparisons for the tests of the fused engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_model import norm
from torch import nn

from nnunet_adpfl.privacy.clipping import AutoClip, ClipRule, NoClip, NormClip
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine

DOUBLE = torch.float64
Trained = dict[str, nn.Parameter]


def loss(output: Any, target: Any) -> torch.Tensor:
    """Mean over patches of something whose gradient differs in every pixel."""
    outputs = output if isinstance(output, list) else [output]
    return torch.stack([(part.flatten(1).sin() * part.flatten(1)).mean() + part.square().mean() for part in outputs]).sum()


def engines(
    network: nn.Module, trained: Trained | None = None, at_once: int = 8, criterion: Any = loss, inverted: bool = False
) -> tuple[FusedEngine, LoopEngine]:
    trained = trained or dict(network.named_parameters())
    fused = FusedEngine(network, criterion, trained, patches_at_once=at_once, invert_activations=inverted)
    return fused, LoopEngine(network, criterion, trained)


def units(shape: tuple[int, ...], number: int = 3, patches: int = 2, dtype: torch.dtype = DOUBLE, seed: int = 0) -> list[UnitPatches]:
    generator = torch.Generator().manual_seed(seed)
    return [
        UnitPatches(torch.randn((patches, *shape), generator=generator, dtype=DOUBLE).to(dtype) * (index + 1), torch.zeros(patches))
        for index in range(number)
    ]


def distance(first: ClippedSum, second: ClippedSum) -> float:
    assert list(first.total) == list(second.total)
    assert not any(tensor.requires_grad for tensor in [*first.total.values(), *second.total.values()])
    assert {name: t.dtype for name, t in first.total.items()} == {name: t.dtype for name, t in second.total.items()}
    return norm({name: t.double() - second.total[name].double() for name, t in first.total.items()}) / norm(second.total)


def agree(
    network: nn.Module,
    group: list[UnitPatches],
    bound: float = 1e-12,
    trained: Trained | None = None,
    at_once: int = 8,
    inverted: bool = False,
) -> None:
    fused, loop = engines(network, trained, at_once, inverted=inverted)
    middle = norm(loop.clipped_sum(group[:1], NoClip()).total) * 1.5  # some units above, some below
    rules: list[ClipRule] = [NoClip(), NormClip(middle), AutoClip(0.01)]
    for rule in rules:
        found, expected = fused.clipped_sum(group, rule), loop.clipped_sum(group, rule)
        assert fused.unsupported is None
        # A clipped sum may be shorter by the rounding that norms allow for.
        allowed = bound if isinstance(rule, NoClip) else max(bound, 1e-6 if bound < 1e-6 else 2e-4)
        assert distance(found, expected) < allowed
        assert found.losses == pytest.approx(expected.losses)
        assert (found.centred_count, found.non_finite) == (expected.centred_count, expected.non_finite)


class Net(nn.Module):
    """In-place activations, a residual added in place, a layer registered twice, two outputs."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        conv, up, instance = (
            (nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)
        )
        self.first = nn.Sequential(conv(1, 4, 3, 1, 1), instance(4, affine=True), nn.LeakyReLU(inplace=True))
        self.again = self.first[0]
        self.down = nn.Sequential(conv(4, 8, 3, 2, 1), instance(8, affine=True), nn.LeakyReLU(inplace=True))
        self.block = nn.Sequential(conv(8, 8, 3, 1, 1), instance(8, affine=True))
        self.up = up(8, 4, 2, 2)
        self.heads = nn.ModuleList([conv(4, 2, 1), conv(8, 2, 1)])

    def forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        high = self.first(data)
        low = self.down(high)
        out = self.block(low)
        out += low
        out = nn.functional.leaky_relu_(out)
        return [self.heads[0](self.up(out) + high), self.heads[1](out)]


def net(dims: int = 2, dtype: torch.dtype = DOUBLE) -> Net:
    torch.manual_seed(0)
    return Net(dims).to(dtype)


SHAPES = {2: (1, 8, 6), 3: (1, 4, 6, 4)}
