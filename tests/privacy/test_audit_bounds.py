"""The statistics of the audit: known answers, and that the lower bound is below the truth as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.audit import bounds
from nnunet_adpfl.privacy.audit.bounds import ErrorRates


@given(trials=st.integers(1, 5000), share=st.floats(0, 1), failure=st.floats(1e-6, 0.3))
def test_upper_bound_is_the_exact_one_of_clopper_and_pearson(trials: int, share: float, failure: float) -> None:
    errors = int(share * trials)
    found = float(bounds.clopper_pearson_upper(errors, trials, failure))
    if errors == trials:
        assert found == 1
    else:
        assert found == pytest.approx(stats.beta.ppf(1 - failure, errors + 1, trials - errors), rel=1e-9)
        assert stats.binom.cdf(errors, trials, found) == pytest.approx(failure, rel=1e-4)


def test_upper_bound_without_errors_is_in_closed_form() -> None:
    assert float(bounds.clopper_pearson_upper(0, 100, 0.05)) == pytest.approx(1 - 0.05 ** (1 / 100))


@given(mu=st.floats(0.01, 8), threshold=st.floats(-2, 8))
def test_exact_rates_of_a_gaussian_give_back_its_mu(mu: float, threshold: float) -> None:
    rates = ErrorRates(threshold, float(stats.norm.sf(threshold)), float(stats.norm.cdf(threshold - mu)))
    if 1e-12 < rates.false_positive < 1 - 1e-9 and 1e-12 < rates.false_negative < 1 - 1e-9:
        assert rates.mu == pytest.approx(mu, abs=1e-5)


@pytest.mark.parametrize("rates", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.9, 0.9)])
def test_guessing_shows_nothing(rates: tuple[float, float]) -> None:
    assert ErrorRates(0.0, *rates).mu == 0
    assert bounds.assumption_free_epsilon(ErrorRates(0.0, *rates), 1e-5) == 0 or 0 in rates


@given(mu=st.floats(0.02, 15), log_delta=st.floats(-18, -2))
def test_epsilon_and_delta_of_gaussian_dp_are_inverse(mu: float, log_delta: float) -> None:
    delta = math.exp(log_delta)
    epsilon = bounds.gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert 2 * stats.norm.cdf(mu / 2) - 1 <= delta
    else:
        assert bounds.gaussian_delta(epsilon, mu) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 2.0, 4.0])
def test_epsilon_of_gaussian_dp_is_the_accountants(noise_multiplier: float) -> None:
    claimed = accounting.epsilon([accounting.poisson_gaussian(1.0, noise_multiplier, 1)], 1e-5)
    assert bounds.gaussian_epsilon(1 / noise_multiplier, 1e-5) == pytest.approx(claimed, abs=2e-3)


def test_assumption_free_bound_in_closed_form() -> None:
    assert bounds.assumption_free_epsilon(ErrorRates(0, 0.1, 0.3), 1e-2) == pytest.approx(math.log((1 - 0.01 - 0.3) / 0.1))
    assert bounds.assumption_free_epsilon(ErrorRates(0, 0.3, 0.1), 1e-2) == pytest.approx(math.log((1 - 0.01 - 0.3) / 0.1))


def test_bound_of_a_subsampled_mechanism_where_everyone_is_drawn_is_that_of_the_gaussian() -> None:
    rates = ErrorRates(0.5, float(stats.norm.sf(0.5)), float(stats.norm.cdf(-0.5)))
    assert bounds.subsampled_epsilon(rates, 1.0, 1, 1e-4) == pytest.approx(bounds.gaussian_epsilon(1.0, 1e-4), rel=0.01)


def test_bound_of_a_subsampled_mechanism_is_below_its_epsilon_and_above_the_assumption_free_one() -> None:
    q, z, delta = 0.5, 0.6, 1e-4
    generator, n = np.random.default_rng(0), 100_000
    out, inside = z * generator.standard_normal(n), z * generator.standard_normal(n) + (generator.random(n) < q)
    rates = bounds.error_rates(out, inside, 1e-3)
    claimed = accounting.epsilon([accounting.poisson_gaussian(q, z, 1)], delta)
    found = bounds.subsampled_epsilon(rates, q, 1, delta)
    assert bounds.assumption_free_epsilon(rates, delta) < found < claimed
    assert found > 0.8 * claimed


def test_nothing_shown_is_epsilon_zero() -> None:
    assert bounds.subsampled_epsilon(ErrorRates(0, 0.6, 0.5), 0.25, 10, 1e-4) == 0
    assert bounds.gaussian_epsilon(0.0, 1e-4) == 0


@pytest.mark.statistical
@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_lower_bound_is_above_the_truth_no_more_often_than_it_says(mu: float) -> None:
    """Failure 20 %; 150 simulated audits; the seed is fixed, the margin is that of the binomial at 1e-3."""
    generator, failure, audits = np.random.default_rng(7), 0.2, 150
    wrong = 0
    for _ in range(audits):
        rates = bounds.error_rates(generator.standard_normal(400), mu + generator.standard_normal(400), failure)
        wrong += rates.mu > mu
    assert wrong <= stats.binom.isf(1e-3, audits, failure)


@pytest.mark.statistical
def test_a_thousand_releases_show_at_least_four_tenths_of_the_truth() -> None:
    generator = np.random.default_rng(11)
    for _ in range(20):
        rates = bounds.error_rates(generator.standard_normal(1000), 1 + generator.standard_normal(1000), 1e-3)
        assert 0.4 < rates.mu < 1


def test_thresholds_are_chosen_without_a_look_at_the_second_half() -> None:
    generator = np.random.default_rng(2)
    out, inside = generator.standard_normal(1000), 1 + generator.standard_normal(1000)
    chosen = bounds.error_rates(out, inside, 1e-3).threshold
    out[500:], inside[500:] = 50.0, -50.0
    assert bounds.error_rates(out, inside, 1e-3).threshold == chosen


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_statistics_show_nothing_or_everything(value: float) -> None:
    rates = bounds.error_rates(np.zeros(1000), np.full(1000, value), 1e-3)
    assert rates.mu == 0 if value == 0 else rates.mu > 4


def test_estimate_of_the_shift_holds_the_truth() -> None:
    generator = np.random.default_rng(3)
    mu, low, high = bounds.mean_shift(generator.standard_normal(5000), 2 + generator.standard_normal(5000), 1e-3)
    assert low < 2 < high
    assert mu == pytest.approx(2, abs=0.1)
    assert bounds.mean_shift(np.zeros(10), np.zeros(10), 1e-3) == (0, 0, 0)
