"""What travels between the server and a site: plain numbers, text and arrays. No pickles, no losses, no case ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class RoundTask:
    """What a site is asked to do in a round.

    Attributes:
        run: name of the run.
        round: number of the round, from 0.
        first_step: first step of this round within the plan's steps.
        steps: local steps to take.
        declared_steps: steps that the run takes in all, fixed before its first round.
        clip_norm: C of this round, the same at all sites.
        noise_level: how often the noise was lowered so far; 0 unless the privacy plan is data-driven.
        plan_hash: digest of the privacy plan that the server works with; a site with another one refuses.
        weights: the global weights: every tensor of the network once, under its first name.
        ledger_head: newest line of the site's ledger that the server's checkpoint knows; None before the first round.
    """

    run: str
    round: int
    first_step: int
    steps: int
    declared_steps: int
    clip_norm: float
    plan_hash: str
    weights: Weights
    ledger_head: str | None = None
    noise_level: int = 0

    def weights_hash(self) -> str:
        """Part of the round's identity: the same round with other weights is another one."""
        return weights_hash(self.weights)


@dataclass(frozen=True)
class SiteUpdate:
    """What a site gives back: only what clip and noise have passed, and what is declared.

    Attributes:
        weights: the trained tensors after the site's local steps.
        noisy_count: noisy centred count for the clip norm, summed over the steps; None where C does not adapt.
        count_noise_std: standard deviation of its noise.
        expected_units: q times the declared number of units, summed over the steps.
        attempt: how often this round had been paid for before.
        ledger_head: newest line of the site's ledger.
        task_digest: identity of the task that was answered; an update of another one is refused.
    """

    site: str
    run: str
    round: int
    attempt: int
    steps: int
    weights: Weights
    noisy_count: float | None
    count_noise_std: float
    expected_units: float
    ledger_head: str
    task_digest: str = ""


@dataclass(frozen=True)
class SiteFailure:
    """A site that gave no update. Its reason is shown; nothing is put in its place.

    Attributes:
        budget_spent: the site stopped because the next step would exceed its budget.
        refused: going on would break the privacy claim, so trying again is pointless.
    """

    site: str
    reason: str
    budget_spent: bool = False
    refused: bool = False


def weights_hash(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
