"""The audit of several steps: watching changes nothing, and the adversary's statistic is the one that theory names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from audited_model import OTHERS, SITE, make_engine
from injected_randomness import InjectedRandomness
from small_model import make_mechanism

from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.audit import bounds, canary
from nnunet_adpfl.privacy.audit.step_audit import Adversary, Step, WatchedEngine, WatchedMechanism, statistics
from nnunet_adpfl.privacy.clipping import ClipRule
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, GradientEngine, UnitPatches
from nnunet_adpfl.privacy.mechanism import Permit

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

Q, Z, STEPS = 0.5, 0.7, 3
CANARY = "canary"


class Remembering:
    """The engine's clipped gradient of each unit, computed once: the weights stay as they are here."""

    def __init__(self, engine: GradientEngine) -> None:
        self._engine = engine
        self._known: dict[tuple[int, ...], ClippedSum] = {}

    def clipped_sum(self, units: Iterable[UnitPatches], rule: ClipRule) -> ClippedSum:
        drawn = list(units)
        key = tuple(id(unit) for unit in drawn)
        if key not in self._known:
            self._known[key] = self._engine.clipped_sum(iter(drawn), rule)
        found = self._known[key]
        return ClippedSum({name: part.clone() for name, part in found.total.items()}, found.centred_count)


class Attack:
    """Steps drawn, summed and released as the training does it, on weights that stay."""

    def __init__(self, noise_multiplier: float = Z) -> None:
        plain = make_mechanism(sampling_rate=Q, noise_multiplier=noise_multiplier, epsilon=1e6)
        self.rule, self.z = plain.clip_rule(1.0), plain.noise_levels(0, 1)[0][0]
        self.engine, trained = make_engine()
        wanted = canary.wanted_gradient(trained, canary.HUGE, np.random.default_rng(1))
        patches = UnitPatches(OTHERS[0].data, wanted)
        change = canary.difference(self.engine, [], self.engine.clipped_sum(iter(()), self.rule), patches, self.rule)
        self.adversary = Adversary(change)
        self.watched = WatchedEngine(Remembering(self.engine), self.adversary)
        self.mechanism = WatchedMechanism.of(plain, self.adversary)
        self.plain = plain
        self.units = {f"patient_{index}": patch for index, patch in enumerate(OTHERS)}
        self.canary = patches

    def run(self, with_canary: bool, randomness: InjectedRandomness) -> list[Step]:
        units = {**self.units, CANARY: self.canary} if with_canary else self.units
        self.adversary.begin()
        for step in range(STEPS):
            drawn = self.mechanism.draw(sorted(units), SITE, step, randomness)
            summed = self.watched.clipped_sum((units[name] for name in drawn), self.rule)
            self.mechanism.release(summed, Permit({step: self.z}), SITE, step, randomness)
        return self.adversary.steps

    def notes(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        seeds = itertools.count()
        worlds = [[self.run(world, InjectedRandomness(next(seeds))) for _ in range(number)] for world in (False, True)]
        return np.array(worlds[0]), np.array(worlds[1])


def test_watching_changes_no_bit_of_a_release() -> None:
    attack = Attack()
    for drawn in ([], OTHERS, [*OTHERS, attack.canary], [attack.canary]):
        plain = attack.engine.clipped_sum(iter(drawn), attack.rule)
        watched = attack.watched.clipped_sum(iter(drawn), attack.rule)
        first = attack.plain.release(plain, Permit({0: attack.z}), SITE, 0, InjectedRandomness(4))
        second = attack.mechanism.release(watched, Permit({0: attack.z}), SITE, 0, InjectedRandomness(4))
        assert first.noisy_count == second.noisy_count
        assert all(torch.equal(first.gradient[name], second.gradient[name]) for name in first.gradient)


@pytest.mark.statistical
def test_the_statistic_is_the_likelihood_ratio_of_the_subsampled_gaussian() -> None:
    """Compared with one simulated from the definition, with the joint z: gradient and count together."""
    attack, generator, number = Attack(), np.random.default_rng(9), 100_000
    found = statistics(*attack.notes(400), Q)
    for world in (0, 1):
        drawn = (generator.random((number, STEPS)) < Q) * world
        shift = attack.z * generator.standard_normal((number, STEPS)) + drawn
        ratio = (shift - 0.5) / attack.z**2
        theory = np.log(1 - Q + Q * np.exp(ratio)).sum(axis=1)
        error = theory.std() / math.sqrt(400)
        assert found[world].mean() == pytest.approx(theory.mean(), abs=4 * error)
        assert found[world].std() == pytest.approx(theory.std(), rel=0.15)


@pytest.mark.statistical
def test_lower_bound_of_the_steps_is_below_their_epsilon_and_half_the_noise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def low(out: np.ndarray, inside: np.ndarray) -> float:
        return bounds.subsampled_epsilon(bounds.error_rates(out, inside, 1e-3), Q, STEPS, 1e-3)

    claimed = accounting.epsilon([accounting.poisson_gaussian(Q, Z, STEPS)], 1e-3)
    notes = Attack().notes(250)
    found = low(*statistics(*notes, Q))
    assert 0 < found < claimed
    assert low(*statistics(*notes, Q, share=0.5)) > 1.5 * found  # the positive control, made of the same releases
    add = mechanisms.add_gaussian_
    monkeypatch.setattr(mechanisms, "add_gaussian_", lambda tensor, deviation, *rest: add(tensor, deviation / 2, *rest))
    assert low(*statistics(*Attack().notes(250), Q)) > 1.5 * found


@pytest.mark.statistical
def test_a_training_without_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanisms, "add_gaussian_", lambda *_: None)
    claimed = accounting.epsilon([accounting.poisson_gaussian(Q, 4.0, STEPS)], 1e-3)
    rates = bounds.error_rates(*statistics(*Attack(4.0).notes(300), Q), 1e-3)
    assert bounds.subsampled_epsilon(rates, Q, STEPS, 1e-3) > claimed


def test_ratio_of_a_huge_shift_does_not_overflow() -> None:
    attack = Attack(0.2)
    notes = np.array([[attack.run(world, InjectedRandomness(0))] * 2 for world in (False, True)])
    for share in (1.0, 0.5, 0.0):
        assert np.isfinite(statistics(notes[0], notes[1], Q, share)).all()
