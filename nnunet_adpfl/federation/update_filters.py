"""Filters on a site's whole update, as the ADP-FL paper and NVIDIA FLARE use them. NONE OF THEM PROTECTS A PATIENT.

They are here to be compared with. Their unit is the update of a site, not a patient; their thresholds are taken from the
exact update; and what they add up to over all coordinates and rounds is far from any promise (`honest_sum`). A run with a
filter trains without clip and noise, and its ledger says so (``non_private``).

``paper``: the paper's method as far as it is known (its code is not published; arXiv:2604.06518): the threshold is a percentile
of the update's magnitudes, the largest coordinates are kept, clipped at the threshold, and get Laplace noise in proportion
to it. ``svt``: the sparse vector technique of NVIDIA FLARE up to April 2026 (after Li et al. 2019), whose defaults are the
paper's epsilon of 0.001; very likely its DP-FL baseline.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from nnunet_adpfl.federation.messages import Weights
from nnunet_adpfl.privacy.plan import PrivacyPlan, UpdateFilter

_MOST_PASSES = 1_000  # of svt; its noise lets every coordinate pass sooner or later


def filtered(settings: UpdateFilter, before: Weights, after: Weights, steps: int, generator: np.random.Generator) -> Weights:
    """The weights that a site sends instead of its own: before + filter(after - before).

    Args:
        before: received weights; only the names of ``after`` are looked at.
        after: trained tensors after the site's local steps.
        steps: local steps; thresholds are meant per step.
        generator: of all noise.
    """
    names = sorted(after)
    change = np.concatenate([(after[name].astype(np.float64) - before[name]).ravel() for name in names]) / steps
    sent = (_paper if settings.kind == "paper" else _svt)(settings, change, generator) * steps
    found, start = {}, 0
    for name in names:
        end = start + after[name].size
        found[name] = (before[name] + sent[start:end].reshape(after[name].shape)).astype(after[name].dtype)
        start = end
    return {name: found[name] for name in after}


def honest_sum(plan: PrivacyPlan, coordinates: int) -> float:
    """What the filter's own epsilons add up to for the update of a whole site, over all coordinates and rounds (pure DP).

    Even that leaves out the threshold, which ``paper`` takes from the exact update.
    """
    settings = plan.update_filter
    sent = np.ceil(settings.fraction * coordinates)
    rounds = -(-plan.steps // plan.rounds.local_steps)
    selection = 0.0 if settings.kind == "paper" else settings.epsilon * (1 + (2 * sent) ** (2 / 3))
    return float(rounds * (selection + sent * settings.release_epsilon))


def _paper(settings: UpdateFilter, change: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    size = np.abs(change)
    threshold = float(np.percentile(size, settings.percentile))
    kept = size >= np.quantile(size, 1 - settings.fraction)
    noisy = np.clip(change, -threshold, threshold) + generator.laplace(0.0, 2 * threshold / settings.release_epsilon, change.shape)
    return np.where(kept, noisy, 0.0)


def _svt(settings: UpdateFilter, change: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    gamma, number = settings.gamma, int(np.ceil(settings.fraction * change.size))
    clipped = np.clip(change, -gamma, gamma)
    threshold = settings.tau + generator.laplace(0.0, 2 * gamma / settings.epsilon)
    query_scale = 4 * gamma * number / (settings.epsilon * (2 * number) ** (2 / 3))
    accepted = np.zeros(change.size, dtype=bool)
    for _ in range(_MOST_PASSES):
        waiting = np.flatnonzero(~accepted)
        passed = waiting[np.abs(clipped[waiting]) + generator.laplace(0.0, query_scale, waiting.size) >= threshold]
        missing = number - int(accepted.sum())
        accepted[generator.permutation(passed)[:missing]] = True
        if len(passed) >= missing:
            break
    noisy = np.clip(clipped + generator.laplace(0.0, 2 * gamma / settings.release_epsilon, change.size), -gamma, gamma)
    return np.where(accepted, noisy, 0.0)


def reason(plan: PrivacyPlan, trained: Mapping[str, nn.Parameter]) -> str:
    """What the ledger says of a run with a filter."""
    total = honest_sum(plan, sum(value.numel() for value in trained.values()))
    return (
        f"update filter {plan.update_filter.kind}: no formal patient-level guarantee; its own epsilons add up to {total:.3g} for the "
        "update of a whole site"
    )
