"""Rule 2: Poisson sampling over units, afresh every step; no cap, no redraw, no shuffle; the draws are secret."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from small_model import UNITS, make_mechanism

from nnunet_adpfl.privacy.noise import SecretRandomness
from nnunet_adpfl.privacy.sampling import poisson_draw

REPEATS = 4000
LIMIT = 5.5  # standard deviations; two-sided error below 4e-8 for each of the few statistics


def sizes(rate: float, units: list[str], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([len(poisson_draw(units, rate, generator)) for _ in range(REPEATS)])


def test_rule_02_size_is_binomial_in_mean_and_variance() -> None:
    found = sizes(0.25, UNITS, 1)
    n, q = len(UNITS), 0.25
    variance = n * q * (1 - q)
    assert abs(found.mean() - n * q) < LIMIT * math.sqrt(variance / REPEATS)
    assert abs(found.var(ddof=1) / variance - 1) < LIMIT * math.sqrt(2 / REPEATS) * 1.05


def test_rule_02_empty_draws_happen_as_often_as_they_must() -> None:
    empty = int((sizes(0.1, UNITS[:10], 2) == 0).sum())
    p = 0.9**10
    assert abs(empty - REPEATS * p) < LIMIT * math.sqrt(REPEATS * p * (1 - p))


def test_rule_02_no_cap_on_the_draw() -> None:
    assert sizes(0.5, UNITS[:8], 3).max() == 8
    assert poisson_draw(UNITS, 1.0, np.random.default_rng(0)) == UNITS


def test_rule_02_units_are_drawn_independently_in_one_step_and_over_steps() -> None:
    generator = np.random.default_rng(4)
    draws = [set(poisson_draw(UNITS[:6], 0.3, generator)) for _ in range(REPEATS)]
    table = np.array([[unit in draw for unit in UNITS[:6]] for draw in draws])
    correlation = np.corrcoef(table.T) - np.eye(6)
    assert np.abs(correlation).max() < LIMIT / math.sqrt(REPEATS)
    lagged = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]
    assert abs(lagged) < LIMIT / math.sqrt(REPEATS * 6)


def test_rule_02_draws_do_not_depend_on_the_run_seed_and_never_repeat() -> None:
    mechanism = make_mechanism(seed=0)
    many = [f"u{i}" for i in range(256)]
    draws = [tuple(mechanism.draw(many, "a", 0, SecretRandomness())) for _ in range(4)]
    one = SecretRandomness()
    draws += [tuple(mechanism.draw(many, "a", 0, one)) for _ in range(4)]
    assert len(set(draws)) == len(draws)


def test_rule_02_secret_randomness_cannot_be_stored() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(SecretRandomness())
