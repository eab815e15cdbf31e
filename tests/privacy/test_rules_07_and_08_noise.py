"""Rules 7 and 8: Gaussian noise of the accounted size, independent everywhere; adaptive clipping paid for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from injected_randomness import InjectedRandomness
from small_model import make_mechanism, start_ledger

from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.clipping import NormClip, gradient_noise_multiplier, updated_clip_norm
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.mechanism import NoisyUpdate
from nnunet_adpfl.privacy.noise import Randomness, SecretRandomness

COORDINATES = 200_000
LIMIT = 5.5  # standard deviations: error below 4e-8 for each statistic


def release(
    folder: Path, method: str, randomness: Randomness, *, site: str = "a", step: int = 0
) -> tuple[NoisyUpdate, mechanisms.Mechanism]:
    mechanism = make_mechanism(clipping={"method": method})
    plan = mechanism.plan
    folder.mkdir(parents=True, exist_ok=True)
    permit = mechanism.authorise(start_ledger(folder, plan, site=site), step, 1, round_index=0, attempt=0)
    summed = ClippedSum({"w": torch.zeros(COORDINATES), "v": torch.zeros(COORDINATES)})
    return mechanism.release(summed, permit, site, step, randomness), mechanism


@pytest.mark.parametrize("method", ["fixed", "auto_s", "percentile"])
def test_rule_07_standard_deviation_is_the_accounted_one(method: str, tmp_path: Path) -> None:
    update, mechanism = release(tmp_path, method, InjectedRandomness(11))
    z = mechanism.noise_multiplier_at(0)
    expected = gradient_noise_multiplier(z, 2.5 * z) if method == "percentile" else z
    for value in update.gradient.values():
        noise = value.double() * mechanism.expected_units("a")
        assert abs(float(noise.std()) / expected - 1) < LIMIT / math.sqrt(2 * COORDINATES)
        assert abs(float(noise.mean())) < LIMIT * expected / math.sqrt(COORDINATES)


def test_rule_07_shape_is_gaussian(tmp_path: Path) -> None:
    update, mechanism = release(tmp_path, "fixed", InjectedRandomness(12))
    noise = (update.gradient["w"].double() * mechanism.expected_units("a") / mechanism.noise_multiplier_at(0)).numpy()
    for moment, expected, deviation in ((3, 0.0, math.sqrt(15)), (4, 3.0, math.sqrt(96))):
        assert abs((noise**moment).mean() - expected) < LIMIT * deviation / math.sqrt(COORDINATES)


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(np.corrcoef(first.numpy(), second.numpy())[0, 1])


def test_rule_07_independent_across_tensors_steps_sites_and_restarts(tmp_path: Path) -> None:
    secret = SecretRandomness()
    found = [
        release(tmp_path / "1", "fixed", secret)[0].gradient,
        release(tmp_path / "2", "fixed", secret, step=1)[0].gradient,
        release(tmp_path / "3", "fixed", secret, site="b")[0].gradient,
        release(tmp_path / "4", "fixed", SecretRandomness())[0].gradient,
    ]
    tensors = [gradient[name] for gradient in found for name in ("w", "v")]
    for index, first in enumerate(tensors):
        for second in tensors[index + 1 :]:
            assert abs(correlation(first, second)) < LIMIT / math.sqrt(COORDINATES)


def test_rule_07_secret_generators_are_keyed_with_128_bits_or_more() -> None:
    states = {tuple(SecretRandomness().noise("a", 0).bit_generator.state["state"]["key"]) for _ in range(50)}
    assert len(states) == 50
    assert max(max(state) for state in states) > 2**60  # two words of 64 bits, filled


def test_rule_08_the_centred_count_is_noised_and_paid_for(tmp_path: Path) -> None:
    mechanism = make_mechanism()
    plan = mechanism.plan
    z = mechanism.noise_multiplier_at(0)
    ledger = start_ledger(tmp_path, plan)
    permit = mechanism.authorise(ledger, 0, 20, round_index=0, attempt=0)
    counts, gradient_std = [], 0.0
    for step in range(20):
        summed = ClippedSum({"w": torch.zeros(COORDINATES)}, centred_count=3.5)
        update = mechanism.release(summed, permit, "a", step, InjectedRandomness(5))
        assert update.noisy_count is not None
        counts.append(update.noisy_count)
        gradient_std = float(update.gradient["w"].double().std()) * mechanism.expected_units("a")
        assert update.count_noise_std >= 2 * z
    joint = (gradient_std**-2 + (2 * update.count_noise_std) ** -2) ** -0.5
    assert joint == pytest.approx(z, rel=0.01)
    assert len(set(counts)) == 20
    assert np.std(counts, ddof=1) == pytest.approx(update.count_noise_std, rel=0.6)


def test_rule_08_too_little_noise_on_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match="count noise"):
        gradient_noise_multiplier(1.0, 1.99)


def test_rule_08_the_bit_is_below_the_clip_norm() -> None:
    rule = NormClip(2.0)
    assert rule.is_below(2.0)
    assert not rule.is_below(2.0001)


def moved(clip_norm: float, share_below: float, *, std: float = 0.1, units: float = 1000.0) -> float:
    noisy = (share_below - 0.5) * units
    return updated_clip_norm(
        clip_norm, noisy, std, units, quantile=0.5, max_log_step_noise=0.1, limits=(1e-2, 1e2)
    )  # fmt: skip


def test_rule_08_clip_norm_moves_towards_the_quantile_and_stays_in_public_limits() -> None:
    assert moved(1.0, 0.9) < 1.0 < moved(1.0, 0.1)
    assert moved(1.0, 0.5) == pytest.approx(1.0)
    assert moved(1.0, 1.0) == pytest.approx(math.exp(-0.5))
    assert moved(0.0101, 1.0) == 1e-2
    assert moved(99.0, 0.0) == 1e2


def test_rule_08_noise_alone_moves_log_c_by_no_more_than_declared() -> None:
    # 21 patients at q 0.25: 5.25 expected a step, five steps, count noise of z = 3
    expected_units, std = 5 * 5.25, math.sqrt(5) * 2.5 * 3
    generator = np.random.default_rng(0)
    logs = [
        math.log(
            updated_clip_norm(
                1.0, std * generator.standard_normal(), std, expected_units, quantile=0.5, max_log_step_noise=0.1,
                limits=(1e-3, 1e3),
            )
        )
        for _ in range(2000)
    ]  # fmt: skip
    assert np.std(logs) < 0.1


def test_rule_08_one_clip_norm_for_the_federation_from_all_sites() -> None:
    mechanism = make_mechanism()
    small = mechanism.adapted_clip_norm(1.0, 2.0, 6.0, 5.0)
    joint = mechanism.adapted_clip_norm(1.0, 2.0 + 20.0, math.hypot(6.0, 6.0), 5.0 + 50.0)
    assert joint < small < 1.0
