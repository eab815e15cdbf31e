"""What is done to the noisy update before it changes the weights. All of it is post-processing, so free of privacy cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy.plan import Optimizer
from nnunet_adpfl.trainers.corrected_adam import CorrectedAdam

POLY_EXPONENT = 0.9  # nnU-Net's
_SCALARS = ("step", "noise_variance")  # of an optimizer's state


def learning_rate_at(settings: Optimizer, step: int, steps: int) -> float:
    """Learning rate of a step (0-based) of ``steps``; polynomial decay as in nnU-Net, or constant."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 - min(step, steps - 1) / steps) ** POLY_EXPONENT


def make_optimizer(settings: Optimizer, trained: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the privacy plan. Weight decay is added to the noisy gradient, after clip and noise.

    On a CPU it is PyTorch's fused one, which goes through the memory once (docs/performance.md); elsewhere PyTorch chooses.
    """
    parameters = list(trained.values())
    if settings.name == "adam" and settings.adam_correction:
        return CorrectedAdam(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, floor=settings.adam_floor
        )
    fused = True if all(parameter.device.type == "cpu" for parameter in parameters) else None
    if settings.name == "adam":
        return torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay, fused=fused
        )
    optimizer = torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=fused,
    )
    _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum of zero where there is none: the same, but a layer that wakes up later has one like the others, which fused
    kernels need."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum", 0) else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def laid_out_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The tensor in the memory format of its parameter: a fused optimizer takes number by number as they lie in memory,
    and would silently mix up the coordinates of a contiguous gradient and a parameter that is channels-last."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any, origin: str) -> None:
    """Moments of an earlier round; what is declared (momentum, weight decay) stays as the privacy plan has it.

    Raises InputError unless they belong to these parameters and are finite.
    """
    declared = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
        fits = all(
            not isinstance(value, torch.Tensor)
            or (value.shape == (() if key in _SCALARS else parameter.shape) and bool(torch.isfinite(value).all()))
            for parameter, moments in optimizer.state.items()
            for key, value in moments.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError):
        fits = False
    if not fits:
        raise InputError(f"{origin}: its optimizer state does not fit the network of the plan; restore the file")
    for group, settings in zip(optimizer.param_groups, declared, strict=True):
        group.update(settings)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, torch.Tensor) and key not in _SCALARS:
                moments[key] = laid_out_like(value, parameter)
    _start_momentum(optimizer)


def keep_largest_(gradient: dict[str, torch.Tensor], fraction: float) -> None:
    """Sparsify a noisy update in place: keep this share of all coordinates, those of largest magnitude."""
    if fraction >= 1:
        return
    magnitudes = torch.cat([tensor.flatten() for tensor in gradient.values()]).abs_()
    threshold = _kth_smallest(magnitudes, magnitudes.numel() - max(1, round(fraction * magnitudes.numel())))
    below = float(np.nextafter(threshold, threshold.dtype.type(0)))  # hardshrink drops what equals its limit, too
    for tensor in gradient.values():
        torch.hardshrink(tensor, below, out=tensor)


def _kth_smallest(values: torch.Tensor, k: int) -> np.ndarray:
    """The k-th smallest (from 0) of the values, which lose their order: on a CPU numpy finds it in half the time."""
    if values.device.type != "cpu":
        return torch.kthvalue(values, k + 1).values.cpu().numpy()
    numbers = values.numpy()
    numbers.partition(k)
    return np.asarray(numbers[k])


def average_decay(settings: Optimizer, first_step: int, block: int, steps: int) -> float:
    """How much of the average of the weights is kept when the weights after a block of steps are taken in.

    An exponential moving average is a plain mean at first, so that it has no start-up bias (Polyak and Juditsky 1992 for
    the mean; De et al. 2022 for the moving average under noise). The tail average is the plain mean of the weights after
    the blocks that end in the last ``tail_share`` of the steps, and the weights themselves before.

    Args:
        first_step: first step (0-based) of the block.
        block: steps between two averages: 1 in a central run, the local steps of a round in a federation.
        steps: of the whole training.
    """
    number = first_step // block
    if settings.tail_share > 0:
        first = int((1 - settings.tail_share) * steps + 1e-9) // block
        number = min(max(0, number - first), steps)
        return number / (number + 1)
    return min(settings.ema_decay**block, number / (number + 1))
