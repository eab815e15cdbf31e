"""Adam with the noise's variance taken off: plain AdamW without noise, signal to noise restored with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_adpfl.privacy.plan import Optimizer
from nnunet_adpfl.trainers import post_processing
from nnunet_adpfl.trainers.corrected_adam import CorrectedAdam


def test_without_noise_it_is_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=generator)
    first, second = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = CorrectedAdam([first], lr=0.01, weight_decay=0.1)
    torchs = torch.optim.AdamW([second], lr=0.01, weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(50, generator=generator)
        first.grad, second.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
    assert torch.allclose(first, second, atol=1e-6)


def test_known_noise_no_longer_levels_the_steps_of_large_and_small_gradients() -> None:
    """Where every coordinate has signal 1 or 3 under noise of 10, Adam's second moment is about 100 for all: steps differ
    by three. Corrected it is 1 and 9: steps are about equal, as Adam means them to be."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.cat([torch.ones(4000), 3 * torch.ones(4000)])
    ratios = {}
    for noise_variance in (0.0, 100.0):
        weights = nn.Parameter(torch.zeros(8000))
        optimizer = CorrectedAdam([weights], lr=0.01, floor=1e-6, betas=(0.9, 0.999))
        optimizer.noise_variance = noise_variance
        for _ in range(400):
            weights.grad = signal + 10 * torch.randn(8000, generator=generator)
            optimizer.step()
        state = optimizer.state[weights]
        second = state["exp_avg_sq"] / (1 - 0.999**400) - noise_variance
        ratios[noise_variance] = float(second[4000:].mean() / second[:4000].mean())
    assert ratios[0.0] == pytest.approx(109 / 101, rel=0.05)
    assert ratios[100.0] == pytest.approx(9, rel=0.5)


def test_second_moment_never_falls_below_the_floor() -> None:
    weights = nn.Parameter(torch.zeros(10))
    optimizer = CorrectedAdam([weights], lr=1.0, floor=0.25)
    optimizer.noise_variance = 4.0
    weights.grad = torch.full((10,), 0.5)  # far less than the noise: the difference is negative
    optimizer.step()
    assert torch.allclose(weights, torch.full((10,), -0.5), atol=1e-4)  # 0.5 / sqrt(0.25 x 4)


def test_moving_noise_is_followed() -> None:
    weights = nn.Parameter(torch.zeros(1))
    optimizer = CorrectedAdam([weights], lr=0.0)
    for variance in (4.0, 1.0, 1.0):
        optimizer.noise_variance = variance
        weights.grad = torch.zeros(1)
        optimizer.step()
    expected = (4 * 0.999**2 + 0.999 + 1) * 0.001
    assert float(optimizer.state[weights]["noise_variance"]) == pytest.approx(expected, rel=1e-4)


def test_the_plan_chooses_it_and_its_state_is_restored() -> None:
    settings = Optimizer(name="adam", adam_floor=0.3, learning_rate=0.5)
    weights = {"w": nn.Parameter(torch.ones(3))}
    optimizer = post_processing.make_optimizer(settings, weights)
    assert isinstance(optimizer, CorrectedAdam)
    optimizer.noise_variance = 1.0
    weights["w"].grad = torch.ones(3)
    optimizer.step()
    other = post_processing.make_optimizer(settings, {"w": nn.Parameter(torch.ones(3))})
    post_processing.restore_optimizer(other, optimizer.state_dict(), "test")
    (state,) = other.state.values()
    assert float(state["noise_variance"]) == pytest.approx(1e-3)
    assert other.param_groups[0]["floor"] == 0.3


def test_a_closure_is_refused() -> None:
    with pytest.raises(TypeError, match="closure"):
        CorrectedAdam([nn.Parameter(torch.zeros(1))], lr=1.0).step(lambda: 0.0)
