"""What a number of patients can learn at a given epsilon, before any data is touched: noise and signal over q and steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import accounting, planner
from nnunet_adpfl.privacy.choices import DEFAULT_EPSILON, OF_IMAGES, Choice, Request, default_delta, to_json
from nnunet_adpfl.privacy.signal import accumulated_signal, noise_for
from nnunet_adpfl.progress import track

RATES, STEPS = (0.1, 0.25, 0.5, 1.0), (60, 150, 500)  # of the table, beside the planner's choice
EPSILONS = (1.0, 3.0, 8.0, 10.0)  # compared at the planner's choice, beside those asked for
PARAMETERS = (30_000_000, 1_000_000, 100_000, 30_000)  # a stock network in 3D, and widths that small cohorts can fill
CURVE_STEPS = (10, 20, 50, 100, 200, 350, 500)  # of the figure
CURVE_NOISE = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the figure, over the planner's noise multiplier


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        units: training patients of each site, 2 or more.
        epsilons: above 0; the first is planned for, the others are compared with it.
        delta: below 1/N. None: the power of ten at or below 1/(10 N).
        compute: the most patches of the training of all sites. None: 100 for each patient.
        parameters: numbers of trained parameters.
    """

    units: Sequence[int]
    epsilons: Sequence[float] = (DEFAULT_EPSILON,)
    delta: float | None = None
    compute: int | None = None
    parameters: Sequence[int] = PARAMETERS

    def request(self) -> Request:
        """Raises InputError, in one sentence, for what cannot be."""
        total = sum(self.units)
        if not self.units or min(self.units) < 2:
            raise InputError(f"--patients {min(self.units, default=0)} must be 2 or more: one patient cannot hide among others")
        for epsilon in self.epsilons:
            if not (math.isfinite(epsilon) and epsilon > 0):
                raise InputError(f"--epsilon {epsilon:g} must be a finite number above 0")
        delta = default_delta(total) if self.delta is None else self.delta
        if not 0 < delta < 1 / total:
            raise InputError(f"--delta {delta:g} must be above 0 and below 1/N = 1/{total}")
        for name, value in (("compute", self.compute), *(("parameters", number) for number in self.parameters)):
            if value is not None and value < 1:
                raise InputError(f"--{name} {value} must be 1 or more")
        return Request(tuple(self.units), self.epsilons[0], delta, compute=self.compute)


def budget(question: Question) -> dict[str, Any]:
    """The planner's choice, the table over q and steps around it, and other epsilons at the choice.

    Returns ``{"units", "epsilon", "delta", "effective_units", "choices": {NAME: ..}, "table": [row, ..], "epsilons": [row, ..]}``;
    a row has sampling_rate, steps, noise_multiplier (by PLD, reserve included), accumulated_signal (A of all sites),
    share_of_best, signal_to_noise ({PARAMETERS: A / sqrt(d)}), patches (of all sites; K for images that are not known) and chosen.
    """
    request = question.request()
    choices = planner.plan_training(request)
    request = replace(request, weighting=str(choices["rounds.weights"].value))
    chosen = (float(choices["sampling_rate"].value), int(choices["steps"].value))
    patches = int(choices["patches_per_unit"].value)
    pairs = sorted({*itertools.product(RATES, STEPS), chosen})
    epsilons = sorted({*EPSILONS, *question.epsilons})
    work = [(request.epsilon, pair) for pair in pairs] + [(epsilon, chosen) for epsilon in epsilons if epsilon != request.epsilon]
    noise = {(epsilon, pair): _noise(request, epsilon, *pair) for epsilon, pair in track(work, "noise multipliers")}
    rows = [_row(request, question.parameters, pair, noise[request.epsilon, pair], patches) for pair in pairs]
    best = max(row["accumulated_signal"] for row in rows)
    for row, pair in zip(rows, pairs, strict=True):
        row.update(share_of_best=row["accumulated_signal"] / best, chosen=pair == chosen)
    others = [
        {"epsilon": epsilon, **_row(request, question.parameters, chosen, noise[epsilon, chosen], patches)} for epsilon in epsilons
    ]
    return {
        "units": list(request.units), "epsilon": request.epsilon, "delta": request.delta,
        "effective_units": request.effective_units, "choices": to_json(_without_images(choices)), "table": rows, "epsilons": others,
    }  # fmt: skip


def chosen_row(found: dict[str, Any]) -> dict[str, Any]:
    """The planner's choice in the table."""
    return next(dict(row) for row in found["table"] if row["chosen"])


def epsilon_curves(found: dict[str, Any]) -> dict[float, list[tuple[int, float]]]:
    """Noise multiplier -> (steps, epsilon) at the chosen sampling rate, around the chosen noise; for the figure."""
    row = chosen_row(found)
    levels = [round(row["noise_multiplier"] * factor, 2) for factor in CURVE_NOISE]
    return {
        z: [(n, accounting.epsilon([accounting.poisson_gaussian(row["sampling_rate"], z, n)], found["delta"])) for n in CURVE_STEPS]
        for z in track(levels, "epsilon over steps")
    }


def _without_images(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Those that do not depend on images, of which nothing is known yet."""
    return {name: choice for name, choice in choices.items() if name not in OF_IMAGES}


def _noise(request: Request, epsilon: float, rate: float, steps: int) -> float:
    return noise_for(rate, steps + request.reserve(steps), epsilon, request.delta)


def _row(request: Request, parameters: Sequence[int], pair: tuple[float, int], noise: float, patches: int) -> dict[str, Any]:
    rate, steps = pair
    signal = accumulated_signal(rate, request.effective_units, steps, noise)
    return {
        "sampling_rate": rate, "steps": steps, "noise_multiplier": noise, "accumulated_signal": signal,
        "signal_to_noise": {str(number): signal / math.sqrt(number) for number in parameters},
        "patches": round(patches * rate * steps * request.total_units),
    }  # fmt: skip
