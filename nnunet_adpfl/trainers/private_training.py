"""The training loop of one group of units: every step drawn, clipped, noised and only then applied to the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from nnunet_adpfl.privacy.gradients.interface import PROJECTED, GradientEngine
from nnunet_adpfl.privacy.mechanism import ALL_SITES, Mechanism, NoisyUpdate, Permit
from nnunet_adpfl.privacy.noise import Randomness
from nnunet_adpfl.trainers import masks as declared_masks
from nnunet_adpfl.trainers import post_processing
from nnunet_adpfl.trainers.corrected_adam import CorrectedAdam
from nnunet_adpfl.trainers.masks import Masks
from nnunet_adpfl.trainers.patient_loader import PatientLoader, UnitRequest
from nnunet_adpfl.trainers.public_subspace import PublicSubspace


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
        masks: where the privacy plan trains only some coordinates in a step; its engines are used then.
        subspace: where the privacy plan trains in a subspace; the engine's sums are coefficients in it then.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        engine: GradientEngine,
        trained: Mapping[str, nn.Parameter],
        loader: PatientLoader,
        randomness: Randomness,
        masks: Masks | None = None,
        subspace: PublicSubspace | None = None,
    ) -> None:
        self.mechanism = mechanism
        self.trained = dict(trained)
        self.optimizer = post_processing.make_optimizer(mechanism.plan.optimizer, self.trained)
        self.average: dict[str, torch.Tensor] | None = None
        self._engine = engine
        self._masks = masks
        self._subspace = subspace
        self._loader = loader
        self._randomness = randomness

    def prepare(self, first_step: int) -> None:
        """What a block needs and no patient has a part in; before it is paid for, because it can fail."""
        if self._subspace is not None:
            self._subspace.prepare(first_step)

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
        anchor = self._proximal_anchor(site)
        self.prepare(first_step)
        rule = mechanism.clip_rule(clip_norm)
        outcome = BlockOutcome(None, 0.0, 0.0)
        for step, group in zip(block, drawn, strict=True):
            engine = self._masks.engine_at(step) if self._masks else self._engine
            summed = engine.clipped_sum(islice(patches, len(group)), rule)
            outcome.losses += summed.losses
            outcome.non_finite += summed.non_finite
            update = mechanism.release(summed, permit, site, step, self._randomness)
            del summed
            self._apply(update, step, anchor)
            _note_count(outcome, update, mechanism.expected_units(site))
        next(patches, None)  # lets the loader finish its pass, so that its workers stay for the next block
        outcome.seconds = time.monotonic() - began
        return outcome

    def _apply(self, update: NoisyUpdate, step: int, anchor: Mapping[str, torch.Tensor]) -> None:
        plan = self.mechanism.plan
        settings = plan.optimizer
        gradients = update.gradient if self._subspace is None else self._subspace.spread(update.gradient[PROJECTED])
        post_processing.keep_largest_(gradients, settings.keep_fraction)
        kept = self._masks.coordinates_at(step) if self._masks else dict.fromkeys(self.trained)
        before = {name: self.trained[name].detach().clone() for name, indices in kept.items() if indices is not None}
        for name, gradient in gradients.items():
            parameter = self.trained[name]
            parameter.grad = post_processing.laid_out_like(declared_masks.spread(gradient, parameter, kept[name]), parameter)
            if name in anchor:
                parameter.grad.add_(parameter.detach() - anchor[name], alpha=plan.rounds.proximal_mu)
        for group in self.optimizer.param_groups:
            group["lr"] = post_processing.learning_rate_at(settings, step, plan.steps)
        if isinstance(self.optimizer, CorrectedAdam):
            self.optimizer.noise_variance = update.gradient_noise_std**2
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in before.items():
            declared_masks.put_back_(self.trained[name], value, kept[name])
        self._take_into_average(step)

    def _take_into_average(self, step: int) -> None:
        if self.average is None:
            return
        decay = post_processing.average_decay(self.mechanism.plan.optimizer, step, 1, self.mechanism.plan.steps)
        averages = [self.average[name] for name in self.trained]
        with torch.no_grad():
            torch._foreach_lerp_(averages, list(self.trained.values()), 1 - decay)

    def _proximal_anchor(self, site: str) -> dict[str, torch.Tensor]:
        """The weights that a round begins with, where the plan pulls towards them (FedProx, Li et al. 2020, eq. 2)."""
        if self.mechanism.plan.rounds.strategy != "fedprox" or site == ALL_SITES:
            return {}
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}


def _note_count(outcome: BlockOutcome, update: NoisyUpdate, expected_units: float) -> None:
    outcome.expected_units += expected_units
    if update.noisy_count is not None:
        outcome.noisy_count = (outcome.noisy_count or 0.0) + update.noisy_count
        outcome.count_noise_std = math.hypot(outcome.count_noise_std, update.count_noise_std)
