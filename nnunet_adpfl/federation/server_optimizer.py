"""What the server does with the average of the sites' weights: take it as it is, or as a step of an optimizer.

The difference between the average and the global weights is made of private outputs alone, so all of this is free of
privacy cost. numpy in float64, like the average itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.messages import Weights
from nnunet_adpfl.privacy.plan import Rounds

SECOND_DECAY = 0.99  # beta_2 of FedAdam in its paper
Moments = dict[str, dict[str, torch.Tensor]]  # which moment -> tensor name -> float64 values; plain, for the checkpoint


class ServerOptimizer:
    """FedAvg (the average itself), FedAvgM (Hsu et al. 2019) or FedAdam (Reddi et al. 2021, algorithm 2).

    Args:
        settings: section of the privacy plan; ``fedprox`` and ``fedbn`` differ from FedAvg at the sites only.
        like: trained tensors of the global model.
        moments: from the checkpoint of an interrupted run.

    Raises InputError when the moments do not fit.
    """

    def __init__(self, settings: Rounds, like: Weights, moments: Mapping[str, Mapping[str, torch.Tensor]] | None = None) -> None:
        self._settings = settings
        kinds = {"fedavgm": ("first",), "fedadam": ("first", "second")}.get(settings.strategy, ())
        if moments is not None and not _fits(moments, kinds, like):
            raise InputError("the checkpoint: its server momentum does not fit the network of the plan; restore the file")
        known = moments or {}
        self._moments = {
            kind: {
                name: known[kind][name].numpy().copy() if kind in known else np.zeros(value.shape)
                for name, value in like.items()
            }
            for kind in kinds
        }

    def step(self, current: Weights, average: Weights) -> Weights:
        """The next global weights, in the dtypes of ``current``."""
        return {name: self._moved(name, value, average[name]) for name, value in current.items()}

    def state(self) -> Moments | None:
        """What a checkpoint has to hold; None where there is nothing."""
        found = {kind: {name: torch.from_numpy(value) for name, value in moment.items()} for kind, moment in self._moments.items()}
        return found or None

    def _moved(self, name: str, current: np.ndarray, average: np.ndarray) -> np.ndarray:
        settings = self._settings
        if not self._moments:
            return average
        change = average.astype(np.float64) - current
        first = self._moments["first"]
        if settings.strategy == "fedavgm":
            first[name] = settings.server_momentum * first[name] + change
            step = first[name]
        else:
            second = self._moments["second"]
            first[name] = settings.server_momentum * first[name] + (1 - settings.server_momentum) * change
            second[name] = SECOND_DECAY * second[name] + (1 - SECOND_DECAY) * change**2
            step = first[name] / (np.sqrt(second[name]) + settings.server_adaptivity)
        return np.asarray((current + settings.server_learning_rate * step).astype(current.dtype))


def _fits(moments: Mapping[str, Mapping[str, torch.Tensor]], kinds: tuple[str, ...], like: Weights) -> bool:
    if not isinstance(moments, dict) or set(moments) != set(kinds):
        return False
    for moment in moments.values():
        if not isinstance(moment, dict) or set(moment) != set(like):
            return False
        for name, value in moment.items():
            plain = isinstance(value, torch.Tensor) and value.dtype == torch.float64 and tuple(value.shape) == like[name].shape
            if not (plain and bool(torch.isfinite(value).all())):
                return False
    return True
