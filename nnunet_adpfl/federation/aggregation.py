"""Federated averaging: numpy, float64, sites in sorted order, one update in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.messages import SiteUpdate, Weights
from nnunet_adpfl.privacy.signal import site_shares


def declared_shares(units: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Site -> share in the average (`site_shares`), from declared numbers of units, never from drawn sizes."""
    return dict(zip(sorted(units), site_shares([units[site] for site in sorted(units)], weighting), strict=True))


class Average:
    """Weighted mean of site updates (FedAvg, McMahan et al. 2017).

    Updates are added in sorted order of sites, so that every engine gives the same bits; another order is refused.

    Args:
        shares: site -> share, from `declared_shares`.
        wanted: trained tensors of the global model: names, shapes and dtypes that an update must have.
    """

    def __init__(self, shares: Mapping[str, float], wanted: Weights) -> None:
        self._shares = dict(shares)
        self._wanted = wanted
        self._sums = {name: np.zeros(value.shape, dtype=np.float64) for name, value in wanted.items()}
        self._added: list[str] = []
        self.noisy_count: float | None = None
        self.count_noise_std = 0.0
        self.expected_units = 0.0

    def add(self, update: SiteUpdate) -> None:
        """Add one site's update. InputError when its tensors do not fit; nothing was added then."""
        if update.site not in self._shares or (self._added and update.site <= self._added[-1]):
            raise InputError(f"update of site {update.site!r} is unknown or out of order")
        _check(update, self._wanted)
        share = self._shares[update.site]
        for name, total in self._sums.items():
            total += share * update.weights[name].astype(np.float64)
        self._added.append(update.site)
        self.expected_units += update.expected_units
        if update.noisy_count is not None:
            self.noisy_count = (self.noisy_count or 0.0) + update.noisy_count
            self.count_noise_std = math.hypot(self.count_noise_std, update.count_noise_std)

    def result(self) -> Weights:
        """The mean, in the dtypes of the global model. InputError unless every site was added."""
        missing = sorted(set(self._shares) - set(self._added))
        if missing:
            raise InputError(f"no update of site {missing[0]}: an average over fewer sites would be another model")
        return {name: total.astype(self._wanted[name].dtype) for name, total in self._sums.items()}


def averaged(average: Weights, current: Weights, decay: float) -> Weights:
    """Exponential moving average of global weights; post-processing, so free of privacy cost."""
    return {
        name: (decay * value.astype(np.float64) + (1 - decay) * current[name]).astype(value.dtype)
        for name, value in average.items()
    }


def _check(update: SiteUpdate, wanted: Weights) -> None:
    counts = (0.0 if update.noisy_count is None else update.noisy_count, update.count_noise_std, update.expected_units)
    if not (all(type(value) is float and math.isfinite(value) for value in counts) and update.expected_units > 0):
        raise InputError(f"update of site {update.site}: its counts are not finite numbers, or it expected no unit")
    if set(update.weights) != set(wanted):
        odd = sorted(set(update.weights) ^ set(wanted))[0]
        raise InputError(f"update of site {update.site}: its tensors are not those of the plan (first difference: {odd})")
    for name, value in update.weights.items():
        if not isinstance(value, np.ndarray):
            raise InputError(f"update of site {update.site}: {name} is not a plain array")
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise InputError(f"update of site {update.site}: {name} has not the shape and type of the plan")
        if not np.isfinite(value).all():
            raise InputError(f"update of site {update.site}: {name} holds values that are not finite")
