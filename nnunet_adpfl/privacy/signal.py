"""How much of a training's signal its noise leaves: from units, sampling rate, steps and noise, without any data.

A gradient of norm 1 or less from each unit, summed over a training, stands against noise on every one of d parameters:
signal to noise is about A / sqrt(d) with A = q N sqrt(T) / z, up to a factor that depends on the task. Where z is above 2
or so, A hardly depends on q and T: it is N times what epsilon and delta allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import accounting

ROUGH_ORDERS = (*accounting.FILTER_ORDERS, 128.0, 256.0, 512.0)
ROUGH_EXCESS = 1.08  # rough noise over that of PLD: 1.07 to 1.10 where z is above 1


def site_shares(units: Sequence[int], weighting: str) -> list[float]:
    """Share w_k of each site in the average of the federation, from declared numbers of units N_k; they sum to 1.

    Args:
        weighting: ``declared``: as N_k (FedAvg). ``equal``. ``precision``: as N_k squared, which is one over the variance of a
            site's noise z / (q N_k), so the average has the least noise that any weights give; large sites count for more.
    """
    power = {"declared": 1, "equal": 0, "precision": 2}[weighting]
    parts = [float(number**power) for number in units]
    return [part / sum(parts) for part in parts]


def effective_units(units: Sequence[int], weighting: str = "declared", strategy: str = "fedavg") -> float:
    """Units of one site without partners whose noise would equal that of the average of these sites.

    Every site adds noise of its own, z / (q N_k) on its mean gradient, and the average weighs site k by w_k: its deviation
    is z / q * sqrt(sum (w_k / N_k)^2). With w_k = N_k / N over K sites that is N / sqrt(K) units.

    Args:
        units: declared number of units of each site, 1 or more.
        weighting: see `site_shares`.
        strategy: as `rounds.strategy`; where it is ``local`` nothing is averaged, and the smallest site stands for all.
    """
    if strategy == "local":
        return float(min(units))
    shares = site_shares(units, weighting)
    return 1 / math.hypot(*(share / number for share, number in zip(shares, units, strict=True)))


def accumulated_signal(sampling_rate: float, units: float, steps: int, noise_multiplier: float) -> float:
    """A = q N sqrt(T) / z, with N in (effective) units."""
    return sampling_rate * units * math.sqrt(steps) / noise_multiplier


def noise_for(
    sampling_rate: float,
    steps: int,
    epsilon: float,
    delta: float,
    spent: Sequence[accounting.Event] = (),
    *,
    rough: bool = False,
) -> float:
    """Smallest noise multiplier that keeps ``steps`` steps, and what was spent before, within (epsilon, delta).

    Args:
        steps: reserve included.
        rough: by Renyi DP at whole orders: 7 to 10 % too high, but thirty times as fast; to compare, never to promise.
    """

    def events(noise: float) -> list[accounting.Event]:
        return [*spent, accounting.poisson_gaussian(sampling_rate, noise, steps)]

    if rough:
        try:
            return accounting.calibrate(events, epsilon, delta, _rough_epsilon)
        except InputError:
            pass  # an epsilon that no such order reaches
    return accounting.calibrate(events, epsilon, delta)


def _rough_epsilon(events: Sequence[accounting.Event], delta: float) -> float:
    return min(accounting.epsilon_of_rdp(accounting.rdp(events, order), delta, order) for order in ROUGH_ORDERS)
