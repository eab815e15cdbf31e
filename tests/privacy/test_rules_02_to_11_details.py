"""Details of rules 2 to 11 that a fault could hide in: divisor, entropy, count, levels, what the ledger says of a step."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from injected_randomness import InjectedRandomness
from small_model import UNITS, make_engine, make_mechanism, make_plan, resume_ledger, start_ledger, unit

from nnunet_adpfl import atomic_files
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain, summary
from nnunet_adpfl.privacy.accounting import poisson_gaussian
from nnunet_adpfl.privacy.clipping import AutoClip, NoClip, NormClip
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.noise import SecretRandomness
from nnunet_adpfl.privacy.sampling import poisson_draw
from nnunet_adpfl.privacy.schedule import NoiseSchedule


def test_rule_02_every_size_of_a_draw_comes_as_often_as_it_must() -> None:
    generator, repeats, q = np.random.default_rng(5), 20_000, 0.3
    found = np.bincount([len(poisson_draw(UNITS[:4], q, generator)) for _ in range(repeats)], minlength=5)
    for size, count in enumerate(found):
        share = math.comb(4, size) * q**size * (1 - q) ** (4 - size)
        assert abs(count - repeats * share) < 5.5 * math.sqrt(repeats * share * (1 - share)), size


def noisy(folder: Path, drawn: int) -> torch.Tensor:
    """The released update of the same sum, whatever the number of units it came from."""
    mechanism = make_mechanism()
    folder.mkdir()
    permit = mechanism.authorise(start_ledger(folder, mechanism.plan), 0, 1, round_index=0, attempt=0)
    summed = ClippedSum({"w": torch.ones(50)}, losses=[0.5] * drawn)
    return mechanism.release(summed, permit, "a", 0, InjectedRandomness(2)).gradient["w"]


def test_rule_04_divisor_of_a_private_release_ignores_the_drawn_size(tmp_path: Path) -> None:
    found = [noisy(tmp_path / str(drawn), drawn) for drawn in (0, 1, 9, 40)]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_rule_04_divisor_of_each_site_is_its_own_declared_number() -> None:
    mechanism = make_mechanism()
    assert mechanism.expected_units("a") == 0.25 * 40
    assert mechanism.expected_units("b") == 0.25 * 20
    assert mechanism.expected_units("all-sites") == 0.25 * 60


class Infinite(torch.autograd.Function):
    """A finite value with a gradient that is not."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


def test_rule_05_a_finite_loss_with_a_gradient_that_is_not_adds_nothing() -> None:
    _, trained = make_engine()
    weight = trained["0.weight"]

    def loss(output: Any, _: Any) -> torch.Tensor:
        rest = sum((parameter * 0).sum() for parameter in trained.values())
        return Infinite.apply(weight.sum()) + rest + 0 * output.sum()

    engine = LoopEngine(torch.nn.Conv2d(1, 3, 3), loss, trained)
    summed = engine.clipped_sum([unit(1)], NormClip(1.0))
    assert summed.non_finite == 1
    assert all((value == 0).all() for value in summed.total.values())
    assert not summed.losses


@pytest.mark.parametrize("purpose", ["draws", "noise"])
def test_rule_07_generators_use_every_bit_of_at_least_16_bytes_of_entropy(
    purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 32-bit seed would be found by trying all of them."""
    flipped = -1
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        entropy = bytearray(range(size))
        if 0 <= flipped < 8 * size:
            entropy[flipped // 8] ^= 1 << flipped % 8
        return bytes(entropy)

    def sample() -> tuple[float, ...]:
        return tuple(getattr(randomness, purpose)("a", 0).standard_normal(4))

    randomness = SecretRandomness()
    monkeypatch.setattr(os, "urandom", urandom)
    base = sample()
    assert sample() == base  # nothing but this entropy is in it
    assert asked[0] >= 16
    found = set()
    for flipped in range(8 * asked[0]):  # noqa: B007  (read by urandom)
        found.add(sample())
    assert len(found | {base}) == 8 * asked[0] + 1


def test_rule_07_real_generators_never_meet() -> None:
    secret = SecretRandomness()
    streams = [getattr(secret, purpose)("a", 0).random(3) for purpose in ("draws", "noise") for _ in range(50)]
    assert len({tuple(stream) for stream in streams}) == 100


def test_rule_08_each_unit_adds_half_or_minus_half_to_the_count() -> None:
    engine, _ = make_engine()
    units = [unit(seed) for seed in range(4)]
    assert engine.clipped_sum(units, NormClip(1e6)).centred_count == 2.0
    assert engine.clipped_sum(units, NormClip(1e-6)).centred_count == -2.0
    assert engine.clipped_sum([], NormClip(1.0)).centred_count == 0.0
    norms = sorted(float(torch.sqrt(sum((t**2).sum() for t in engine.clipped_sum([u], NoClip()).total.values()))) for u in units)
    assert engine.clipped_sum(units, NormClip((norms[2] + norms[3]) / 2)).centred_count == 1.0


@pytest.mark.parametrize("method", ["fixed", "auto_s"])
def test_rule_08_without_adaptive_clipping_no_count_is_released(method: str, tmp_path: Path) -> None:
    mechanism = make_mechanism(clipping={"method": method})
    permit = mechanism.authorise(start_ledger(tmp_path, mechanism.plan), 0, 1, round_index=0, attempt=0)
    summed = ClippedSum({"w": torch.zeros(3)}, centred_count=4.5)
    assert mechanism.release(summed, permit, "a", 0, InjectedRandomness(0)).noisy_count is None
    assert mechanism.adapted_clip_norm(1.0, 40.0, 1.0, 10.0) == 1.0


def test_rule_03_factor_times_norm_is_never_above_one() -> None:
    for norm in (0.0, 1e-30, 1e-3, 1.0, 1e3, 1e29):
        for rule in (NormClip(1e-3), NormClip(1.0), NormClip(1e3), AutoClip(0.01)):
            assert rule.factor(norm) * norm <= 1 + 1e-12
            assert math.isfinite(rule.factor(norm))


def test_rule_09_the_ledger_names_the_rate_and_the_noise_of_the_steps(tmp_path: Path) -> None:
    mechanism = make_mechanism(noise_decay={"plateaus": 4, "final_ratio": 0.5}, noise_multiplier=5.0)
    mechanism.authorise(start_ledger(tmp_path, mechanism.plan), 3, 4, round_index=0, attempt=0)
    lines = [line for line in hash_chain.read(tmp_path / "ledger.jsonl").lines if line["event"] == "poisson_gaussian"]
    levels = [mechanism.noise_multiplier_at(step) for step in range(3, 7)]
    assert [(line["noise_multiplier"], line["steps"]) for line in lines] == [(levels[0], 2), (levels[2], 2)]
    generator = np.random.default_rng(3)
    many = [f"unit_{number}" for number in range(2000)]

    class One(InjectedRandomness):
        def draws(self, site: str, step: int) -> np.random.Generator:
            return generator

    share = np.mean([len(mechanism.draw(many, "a", 0, One(0))) for _ in range(50)]) / len(many)
    assert {line["sampling_rate"] for line in lines} == {0.25}
    assert abs(share - 0.25) < 5.5 * math.sqrt(0.25 * 0.75 / (50 * len(many)))


def seal(folder: Path, event: dict[str, Any]) -> Path:
    """Append a line to a good ledger, its chain intact."""
    ledger = start_ledger(folder, make_plan())
    path = folder / "ledger.jsonl"
    fields = {**event, "run": "run", "site": "a", "round": 0, "attempt": 0, "date": "2026-01-01"}
    hash_chain.append(path, hash_chain.sealed(fields, ledger.head))
    return path


def test_rule_09_a_ledger_with_an_unknown_event_is_refused_by_every_reader(tmp_path: Path) -> None:
    path = seal(tmp_path, {"event": "laplace", "scale": 1.0})
    with pytest.raises(PrivacyRefusedError, match="unknown event 'laplace'"):
        summary.summarise(path)
    odometer = tmp_path / "odometer.jsonl"
    odometer.unlink()
    with pytest.raises(PrivacyRefusedError):
        resume_ledger(tmp_path)


@pytest.mark.parametrize("change", [{"noise_multiplier": -1.0}, {"sampling_rate": 0.0}, {"steps": True}, {"steps": 0}])
def test_rule_09_a_ledger_with_impossible_figures_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = seal(tmp_path, {**poisson_gaussian(0.25, 2.0, 5), **change})
    with pytest.raises(PrivacyRefusedError, match="impossible figures"):
        summary.summarise(path)


def test_rule_09_epsilon_moves_the_right_way() -> None:
    base = accounting.epsilon([poisson_gaussian(0.1, 2.0, 50)], 1e-5)
    assert accounting.epsilon([poisson_gaussian(0.2, 2.0, 50)], 1e-5) > base
    assert accounting.epsilon([poisson_gaussian(0.1, 2.0, 100)], 1e-5) > base
    assert accounting.epsilon([poisson_gaussian(0.1, 3.0, 50)], 1e-5) < base
    assert accounting.epsilon([poisson_gaussian(0.1, 2.0, 50)], 1e-4) < base
    two = [poisson_gaussian(0.1, 2.0, 20), poisson_gaussian(0.1, 2.0, 30)]
    assert accounting.epsilon(two, 1e-5) == pytest.approx(base, abs=1e-6)
    assert accounting.epsilon([], 1e-5) == 0.0


def test_rule_10_at_most_twenty_declared_levels_of_noise() -> None:
    with pytest.raises(InputError, match="plateaus"):
        make_plan(noise_decay={"plateaus": 21, "final_ratio": 0.5})
    schedule = NoiseSchedule(100, 20, 0.3)
    levels = schedule.levels(2.0)
    assert len(levels) == len({level for level, _ in levels}) == 20
    assert sum(steps for _, steps in levels) == 100
    assert levels == sorted(levels, reverse=True)
    assert levels[-1][0] == pytest.approx(0.6, abs=1e-5)


def test_rule_10_levels_are_never_below_what_was_declared() -> None:
    schedule = NoiseSchedule(20, 4, 0.5)
    for base in np.random.default_rng(0).uniform(0.3, 30, 500):
        for step in (0, 7, 19):
            assert 0 <= schedule.noise_multiplier_at(step, base) - base * schedule.ratio_at(step) <= 1.001e-6


def test_rule_11_a_permit_is_for_its_own_level_of_noise(tmp_path: Path) -> None:
    mechanism = make_mechanism(noise_decay={"plateaus": 4, "final_ratio": 0.5}, noise_multiplier=5.0)
    permit = mechanism.authorise(start_ledger(tmp_path, mechanism.plan), 0, 5, round_index=0, attempt=0)
    with pytest.raises(PrivacyRefusedError, match="not paid"):
        mechanism.release(ClippedSum({"w": torch.zeros(2)}), permit, "a", 19, InjectedRandomness(0))


def test_rule_11_the_odometer_is_written_before_the_ledger_and_both_before_the_permit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism = make_mechanism()
    ledger = start_ledger(tmp_path, mechanism.plan)
    written: list[str] = []
    original = atomic_files.append_line

    def append_line(path: Path, line: str) -> None:
        written.append(Path(path).name)
        original(path, line)

    monkeypatch.setattr(atomic_files, "append_line", append_line)
    mechanism.authorise(ledger, 0, 5, round_index=0, attempt=0)
    assert written == ["odometer.jsonl", "ledger.jsonl"]


def test_rule_11_lines_reach_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    mechanism = make_mechanism()
    ledger = start_ledger(tmp_path, mechanism.plan)
    synced.clear()
    mechanism.authorise(ledger, 0, 5, round_index=0, attempt=0)
    assert synced == [(tmp_path / name).stat().st_ino for name in ("odometer.jsonl", "ledger.jsonl")]


def test_rule_11_an_odometer_that_is_one_line_short_is_noticed(tmp_path: Path) -> None:
    mechanism = make_mechanism()
    mechanism.authorise(start_ledger(tmp_path, mechanism.plan), 0, 5, round_index=0, attempt=0)
    odometer = tmp_path / "odometer.jsonl"
    odometer.write_text("".join(odometer.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PrivacyRefusedError, match="differs from what was recorded"):
        resume_ledger(tmp_path)


def test_rule_11_noise_that_was_declared_is_kept_by_the_calibration() -> None:
    assert make_mechanism(noise_multiplier=9.0).base_noise_multiplier == 9.0
    assert len(UNITS) == 40
