"""What the number of patients means for privacy, before anything is planned: noise against gradient at given epsilons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.federation.splits import N_FOLDS
from nnunet_adpfl.privacy.choices import default_delta, default_reserve
from nnunet_adpfl.privacy.plan import Rounds
from nnunet_adpfl.privacy.signal import noise_for

EPSILONS = (1.0, 3.0, 8.0)
RATE, STEPS = 0.25, 200  # the same for all epsilons and cohorts, so that their noise can be compared


@dataclass(frozen=True)
class NoiseAtEpsilon:
    """Noise of one training step, at sampling rate 0.25 and 200 steps.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clip norm.
        sites: site -> deviation of the noise on its average gradient, in clip norms: z / (q N), N its training units. One patient's
            gradient has at most norm 1 there, spread over all weights.
        federation: the same after averaging over the sites by size.
    """

    epsilon: float
    noise_multiplier: float
    sites: dict[str, float]
    federation: float

    def to_json(self) -> dict[str, Any]:
        return {
            "epsilon": self.epsilon,
            "noise_multiplier": self.noise_multiplier,
            "noise_of_sites": {site: float(f"{value:.3g}") for site, value in self.sites.items()},
            "noise_of_federation": float(f"{self.federation:.3g}"),
        }


def noise_at_epsilons(cohort: Cohort) -> tuple[float, list[NoiseAtEpsilon]]:
    """The delta that is a default for this cohort, and the noise at each of ``EPSILONS``."""
    training = {site: len(cohort.units(site)) * (N_FOLDS - 1) / N_FOLDS for site in cohort.sites}
    total = sum(training.values())
    delta = default_delta(max(1, round(total)))
    steps = STEPS + default_reserve(STEPS, Rounds().local_steps)
    found = []
    for epsilon in EPSILONS:
        z = noise_for(RATE, steps, epsilon, delta)
        sites = {site: z / (RATE * units) for site, units in training.items()}
        averaged = math.sqrt(sum((training[site] / total * noise) ** 2 for site, noise in sites.items()))
        found.append(NoiseAtEpsilon(epsilon, z, sites, averaged))
    return delta, found
