"""What happens to the noisy update: fused and ordinary optimizers agree in every memory format, and the largest are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy.plan import Optimizer
from nnunet_adpfl.trainers import post_processing
from nnunet_adpfl.trainers.checkpoint import save

SETTINGS = {
    "sgd": Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": Optimizer(name="adam", learning_rate=0.1, weight_decay=1e-2, adam_correction=False),
}
FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def parameter(memory_format: torch.memory_format) -> dict[str, nn.Parameter]:
    values = torch.randn(4, 5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return {"w": nn.Parameter(values.to(memory_format=memory_format))}


def gradient(step: int, memory_format: torch.memory_format) -> torch.Tensor:
    return torch.randn(4, 5, 3, 3, 3, generator=torch.Generator().manual_seed(step + 1)).to(memory_format=memory_format)


def ordinary(trained: dict[str, nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    made = post_processing.make_optimizer(settings, trained)
    for group in made.param_groups:
        group.update(fused=False, foreach=False)
    return made


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("gradients", FORMATS)
def test_fused_and_ordinary_optimizer_agree_in_every_memory_format(
    name: str, weights: torch.memory_format, gradients: torch.memory_format
) -> None:
    """A fused kernel mixes up the coordinates where the formats differ, and says nothing."""
    fused, plain = parameter(weights), parameter(torch.contiguous_format)
    optimizers = [(fused, post_processing.make_optimizer(SETTINGS[name], fused)), (plain, ordinary(plain, SETTINGS[name]))]
    assert optimizers[0][1].param_groups[0]["fused"]
    for step in range(3):
        for trained, optimizer in optimizers:
            trained["w"].grad = post_processing.laid_out_like(gradient(step, gradients), trained["w"])
            optimizer.step()
    assert torch.allclose(fused["w"], plain["w"], atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
def test_a_restored_optimizer_goes_on_in_the_same_bits(
    name: str, weights: torch.memory_format, stored: torch.memory_format, tmp_path: Path
) -> None:
    whole, halted = parameter(weights), parameter(weights)
    optimizers = [post_processing.make_optimizer(SETTINGS[name], trained) for trained in (whole, halted)]
    for step in range(4):
        if step == 2:
            path = tmp_path / "optimizer.pth"
            save(in_format(optimizers[1].state_dict(), stored), path)
            optimizers[1] = post_processing.make_optimizer(SETTINGS[name], halted)
            post_processing.restore_optimizer(optimizers[1], torch.load(path, weights_only=True), str(path))
        for trained, optimizer in zip((whole, halted), optimizers, strict=True):
            trained["w"].grad = post_processing.laid_out_like(gradient(step, weights), trained["w"])
            optimizer.step()
    assert torch.equal(whole["w"], halted["w"])


def in_format(state: dict[str, Any], memory_format: torch.memory_format) -> dict[str, Any]:
    moments = {
        index: {key: value.contiguous(memory_format=memory_format) if value.dim() == 5 else value for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": moments}


@pytest.mark.parametrize("name", SETTINGS)
def test_moments_of_one_number_are_refused(name: str) -> None:
    """A fused optimizer would read and write beyond them."""
    trained = parameter(torch.contiguous_format)
    optimizer = post_processing.make_optimizer(SETTINGS[name], trained)
    trained["w"].grad = gradient(0, torch.contiguous_format)
    optimizer.step()
    state = optimizer.state_dict()
    for key, value in state["state"][0].items():
        if value.dim() == 5:
            state["state"][0][key] = torch.zeros(())
            break
    with pytest.raises(InputError, match="does not fit"):
        post_processing.restore_optimizer(post_processing.make_optimizer(SETTINGS[name], trained), state, "the file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1, 1e-9])
def test_the_largest_coordinates_are_kept(fraction: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(7, 11, generator=generator, dtype=dtype), "b": torch.randn(23, generator=generator, dtype=dtype)}
    before = torch.cat([tensor.flatten().clone() for tensor in tensors.values()])
    post_processing.keep_largest_(tensors, fraction)
    after = torch.cat([tensor.flatten() for tensor in tensors.values()])
    kept = max(1, round(fraction * 100))
    largest = before.abs().topk(kept).indices
    assert torch.equal(after.nonzero().flatten(), largest.sort().values)
    assert torch.equal(after[largest], before[largest])


def test_ties_at_the_threshold_are_kept() -> None:
    tensors = {"a": torch.tensor([0.0, -2.0, 2.0, 1.0, -1.0, 0.0])}
    post_processing.keep_largest_(tensors, 0.5)
    assert tensors["a"].tolist() == [0.0, -2.0, 2.0, 1.0, -1.0, 0.0]
    post_processing.keep_largest_(tensors, 0.2)
    assert tensors["a"].tolist() == [0.0, -2.0, 2.0, 0.0, 0.0, 0.0]
