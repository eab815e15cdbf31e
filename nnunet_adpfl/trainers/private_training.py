"""The training loop of one group of units: every step drawn, clipped, noised and only then applied to the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from nnunet_adpfl.privacy.gradients.interface import GradientEngine
from nnunet_adpfl.privacy.mechanism import Mechanism, NoisyUpdate, Permit
from nnunet_adpfl.privacy.noise import Randomness
from nnunet_adpfl.trainers import post_processing
from nnunet_adpfl.trainers.patient_loader import PatientLoader, UnitRequest


@dataclass
class BlockOutcome:
    """What a block of steps gives besides the changed weights.

    Attributes:
        noisy_count: noisy centred count of units below the clip norm, summed over the steps; None unless C adapts.
        count_noise_std: standard deviation of its noise.
        expected_units: q times the declared N, summed over the steps.
        losses: PRIVATE, for the site's own log: loss of each drawn unit.
        non_finite: PRIVATE: how many units contributed nothing because they were not finite.
        seconds: PRIVATE: wall time, which shows how many were drawn.
    """

    noisy_count: float | None
    count_noise_std: float
    expected_units: float
    losses: list[float] = field(default_factory=list)
    non_finite: int = 0
    seconds: float = 0.0

    @property
    def mean_loss(self) -> float | None:
        return sum(self.losses) / len(self.losses) if self.losses else None


class PrivateTraining:
    """Takes private steps on one network for one group of units (a site, or all of them in a central run).

    Args:
        mechanism: sampler, clip, noise and event.
        engine: clipped sums of the network's trained parameters.
        trained: name -> parameter, those that the engine differentiates.
        loader: patches of drawn units.
        randomness: secret; tests inject their own.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        engine: GradientEngine,
        trained: Mapping[str, nn.Parameter],
        loader: PatientLoader,
        randomness: Randomness,
    ) -> None:
        self.mechanism = mechanism
        self.trained = dict(trained)
        self.optimizer = post_processing.make_optimizer(mechanism.plan.optimizer, self.trained)
        self.average: dict[str, torch.Tensor] | None = None
        self._engine = engine
        self._loader = loader
        self._randomness = randomness

    def run_block(
        self,
        permit: Permit,
        site: str,
        cases_by_unit: Mapping[str, Sequence[str]],
        *,
        first_step: int,
        steps: int,
        clip_norm: float,
    ) -> BlockOutcome:
        """Take ``steps`` steps with one clip norm; the ledger has paid for them (``permit``)."""
        began = time.monotonic()
        mechanism, units = self.mechanism, sorted(cases_by_unit)
        block = range(first_step, first_step + steps)
        drawn = [mechanism.draw(units, site, step, self._randomness) for step in block]
        requests = [
            UnitRequest(tuple(cases_by_unit[unit]), self._randomness.patch_key(site, step, unit))
            for step, group in zip(block, drawn, strict=True)
            for unit in group
        ]
        patches = self._loader.stream(requests)
        rule = mechanism.clip_rule(clip_norm)
        outcome = BlockOutcome(None, 0.0, 0.0)
        for step, group in zip(block, drawn, strict=True):
            summed = self._engine.clipped_sum(islice(patches, len(group)), rule)
            outcome.losses += summed.losses
            outcome.non_finite += summed.non_finite
            update = mechanism.release(summed, permit, site, step, self._randomness)
            del summed
            self._apply(update, step)
            _note_count(outcome, update, mechanism.expected_units(site))
        next(patches, None)  # lets the loader finish its pass, so that its workers stay for the next block
        outcome.seconds = time.monotonic() - began
        return outcome

    def _apply(self, update: NoisyUpdate, step: int) -> None:
        settings = self.mechanism.plan.optimizer
        post_processing.keep_largest_(update.gradient, settings.keep_fraction)
        for name, parameter in self.trained.items():
            parameter.grad = post_processing.laid_out_like(update.gradient[name], parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = post_processing.learning_rate_at(settings, step, self.mechanism.plan.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if settings.ema_decay and self.average is not None:
            decay = post_processing.average_decay(settings.ema_decay, step)
            averages = [self.average[name] for name in self.trained]
            with torch.no_grad():
                torch._foreach_lerp_(averages, list(self.trained.values()), 1 - decay)


def _note_count(outcome: BlockOutcome, update: NoisyUpdate, expected_units: float) -> None:
    outcome.expected_units += expected_units
    if update.noisy_count is not None:
        outcome.noisy_count = (outcome.noisy_count or 0.0) + update.noisy_count
        outcome.count_noise_std = math.hypot(outcome.count_noise_std, update.count_noise_std)
