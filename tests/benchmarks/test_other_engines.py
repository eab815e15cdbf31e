"""The benchmark compares like with like: its other methods give the loop engine's sums, and it says so where they cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
pytest.importorskip("opacus")

from networks import NetworkSize
from opacus.grad_sample import GradSampleHooks
from other_engines import batch_of, repaired_copy
from step_methods import METHODS, Bench, Case, distance, length, missing

from nnunet_adpfl.privacy.clipping import NoClip, NormClip

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
CPU = torch.device("cpu")
PATCHES = {2: (16, 16), 3: (8, 8, 8)}
OTHERS = [method for method in METHODS if method not in ("plain", "loop")]


def tiny(network: str, dims: int, patches: int) -> Case:
    return Case(NetworkSize(network, PATCHES[dims], 4, 3, 16, channels=2), 3, patches)


def bench(network: str, dims: int, patches: int, methods: list[str]) -> Bench:
    return Bench(tiny(network, dims, patches), CPU, ["loop", *methods])


@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("network", ["plain", "resenc"])
def test_methods_agree_with_the_loop(network: str, dims: int, patches: int) -> None:
    methods = [method for method in OTHERS if missing(method, tiny(network, dims, patches)) is None]
    case = bench(network, dims, patches, methods)
    alone = sorted(length(case.engines["loop"].clipped_sum([unit], NoClip()).total) for unit in case.units)
    rule = NormClip((alone[0] + alone[1]) / 2)  # some units are clipped, some are not
    expected = case.engines["loop"].clipped_sum(case.units, rule)
    assert case.error("loop", expected.total, {}) < 1e-4
    for method in methods:
        for _ in range(2):  # nothing may be left behind by the first time
            found = case.engines[method].clipped_sum(case.units, rule)
            assert list(found.total) == list(expected.total)
            assert distance(found.total, expected.total) < 1e-4, method
            assert found.centred_count == expected.centred_count, method
    assert all(parameter.grad is None for parameter in case.trained.values())


def test_ghost_refuses_several_patches() -> None:
    case = bench("plain", 2, 2, ["opacus ghost"])
    with pytest.raises(NotImplementedError, match="2 patches"):
        case.gradient("opacus ghost")


def test_the_copy_shares_the_weights() -> None:
    case = bench("resenc", 2, 1, [])
    copied, trained = repaired_copy(case.network, case.trained)
    assert list(trained) == list(case.trained)
    with torch.no_grad():
        for name, parameter in case.trained.items():
            parameter.add_(0.125)
            assert torch.equal(parameter, trained[name])
            assert parameter is not trained[name]
    data, _ = batch_of(case.units)
    for found, expected in zip(copied(data), case.network(data), strict=True):
        assert torch.equal(found, expected)
    assert any(getattr(module, "inplace", False) for module in case.network.modules())  # the original stays as it is


def test_opacus_alone_is_silently_wrong() -> None:
    """Why the repair is there: without it, modules that are registered twice count twice or four times."""
    case = bench("plain", 2, 1, [])
    copied, trained = repaired_copy(case.network, case.trained)
    GradSampleHooks(copied, loss_reduction="mean")
    data, targets = batch_of(case.units)
    torch.autograd.backward(case.loss(copied(data), targets))
    right = case.gradient("loop", NoClip())
    factors = {name: length({name: p.grad_sample.sum(0)}) / length({name: right[name]}) for name, p in trained.items()}
    assert {round(factor, 3) for factor in factors.values()} == {1.0, 2.0, 4.0}
