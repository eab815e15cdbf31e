"""DP-AdamBC: Adam whose second moment is freed of the noise's own variance (Tang, Shpilevskiy and Lecuyer 2024, algorithm 1).

The second moment of a noisy gradient is that of the signal plus the variance of the noise, which is known and the same for
all coordinates. Left in, it drowns the differences between coordinates that Adam lives from. All of it is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

TINY = 1e-8  # Adam's own epsilon, of the root; where there is no noise this is plain AdamW


class CorrectedAdam(torch.optim.Optimizer):
    """AdamW with v <- max(v - noise variance, floor x noise variance).

    Args:
        lr, betas, weight_decay: as in AdamW (decoupled decay).
        floor: smallest second moment that is believed, in units of the noise variance.
    """

    noise_variance: float = 0.0  # of every coordinate of the next gradient; set before each step

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        floor: float = 0.1,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "floor": floor})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise TypeError("CorrectedAdam takes no closure: a second look at patients would not be paid for")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["noise_variance"] = torch.tensor(0.0)  # a moving average like the second moment's: the noise may change
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["noise_variance"].mul_(beta2).add_((1 - beta2) * self.noise_variance)
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        count = float(state["step"])
        variance = float(state["noise_variance"]) / (1 - beta2**count)
        second = (state["exp_avg_sq"] / (1 - beta2**count)).sub_(variance).clamp_(min=group["floor"] * variance)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], second.sqrt_().add_(TINY), value=-group["lr"] / (1 - beta1**count))
