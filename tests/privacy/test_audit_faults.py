"""The audit of one release finds nothing wrong with the shipped mechanism and finds every fault that is put into it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from audited_model import ClipAfterSum, FreeCount, PlainCount, SameNoise, audited, changes, make_engine, one_step

from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.audit.canary import ALL_TENSORS, BELOW_CLIP
from nnunet_adpfl.privacy.audit.release_audit import ReleaseAudit
from nnunet_adpfl.privacy.gradients import loop
from nnunet_adpfl.privacy.noise import add_gaussian_

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("method", ["percentile", "fixed", "auto_s"])
def test_the_shipped_mechanism_is_consistent_with_its_claim(method: str) -> None:
    found = audited(one_step(method=method))
    assert found.violations == []
    assert 0.4 < found.figures["mu_lower_bound"] <= 1
    assert found.figures["power"]["sufficient"]
    assert found.figures["sensitivity"] == pytest.approx(1, abs=1e-6)
    assert found.figures["mu_estimate"]["low"] < 1 < found.figures["mu_estimate"]["high"]


def test_every_canary_is_clipped_to_the_sensitivity_and_one_of_them_is_counted() -> None:
    engine, trained = make_engine()
    _, found = changes(engine, trained, one_step().clip_rule(1.0))
    assert set(found) == {ALL_TENSORS, BELOW_CLIP, *trained}
    for name, change in found.items():
        assert change.norm == pytest.approx(1 - 1e-4 if name == BELOW_CLIP else 1, abs=1e-5)
        assert change.count == (0.5 if name == BELOW_CLIP else -0.5)
        touched = {tensor for tensor, part in change.gradient.items() if float(part.abs().max()) > 1e-5}
        assert touched == ({name} if name in trained else set(trained))


def test_statistics_are_those_of_the_claim() -> None:
    out, inside = audited(one_step(2.0), number=1500).statistics
    for sample, mean in ((out, 0.0), (inside, 0.5)):
        assert sample.mean() == pytest.approx(mean, abs=0.09)
        assert sample.std() == pytest.approx(1, abs=0.07)


def test_half_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(monkeypatch, lambda _, deviation: deviation / 2)
    found = audited()
    assert _says(found, "the adversary shows epsilon")
    assert _says(found, "times the claimed noise")


def test_two_percent_less_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(monkeypatch, lambda _, deviation: 0.98 * deviation)
    assert _says(audited(number=2000), "times the claimed noise")


def test_one_tensor_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias of one number: in a random direction over all tensors its part is small, and still it is found and used."""
    _noise(monkeypatch, lambda tensor, deviation: 1e-9 if tensor.numel() == 1 else deviation)
    found = audited()
    assert _says(found, "2.bias has")
    assert found.figures["epsilon_lower_bound"] > 2 * 4


def test_a_layer_left_out_of_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = loop._norm
    monkeypatch.setattr(loop, "_norm", lambda gradients: norm(gradients[:-1]))
    found = audited()
    assert _says(found, "a canary (2.bias) changes the release")
    assert _says(found, "the adversary shows epsilon")


def test_clip_after_the_sum() -> None:
    found = audited(engine=ClipAfterSum())
    assert _says(found, "changes the release")


def test_a_count_that_is_not_paid_for() -> None:
    mechanism = one_step()
    found = audited(FreeCount(**vars(mechanism)))
    assert _says(found, "centred count has 0.01")
    assert _says(found, "the adversary shows epsilon")


def test_a_count_that_is_not_centred() -> None:
    found = audited(engine=PlainCount())
    assert _says(found, f"a canary ({BELOW_CLIP}) changes the release")


def test_the_same_noise_in_every_step() -> None:
    found = audited(randomness=SameNoise(3))
    assert _says(found, "noise of consecutive releases is correlated")
    assert _says(found, "the adversary shows epsilon")


def test_the_same_noise_in_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(tensor: torch.Tensor, deviation: float, generator: np.random.Generator, *rest: Any) -> None:
        state = generator.bit_generator.state
        add_gaussian_(tensor, deviation, generator, *rest)
        generator.bit_generator.state = state

    monkeypatch.setattr(mechanisms, "add_gaussian_", same)
    assert _says(audited(), "noise of neighbouring tensors is correlated")


def test_a_sum_that_is_scaled_up_before_its_release() -> None:
    class Louder(mechanisms.Mechanism):
        def release(self, summed: Any, *rest: Any) -> Any:
            for part in summed.total.values():
                part *= 2
            return super().release(summed, *rest)

    found = audited(Louder(**vars(one_step())))
    assert _says(found, "the canary moves") or _says(found, "the adversary shows epsilon")


def test_a_wrong_claim() -> None:
    """The event says twice the noise that the release has."""
    mechanism = one_step()
    doubled = dataclasses.replace(mechanism, base_noise_multiplier=2.0)

    class Cheaper(mechanisms.Mechanism):
        def release(self, summed: Any, permit: Any, site: str, step: int, randomness: Any) -> Any:
            return super().release(summed, mechanisms.Permit({step: permit.use(step) / 2}), site, step, randomness)

    assert _says(audited(Cheaper(**vars(doubled)), number=2000), "the adversary shows epsilon")


def _noise(monkeypatch: pytest.MonkeyPatch, deviation_of: Any) -> None:
    def faulty(tensor: torch.Tensor, deviation: float, generator: np.random.Generator, *rest: Any) -> None:
        add_gaussian_(tensor, deviation_of(tensor, deviation), generator, *rest)

    monkeypatch.setattr(mechanisms, "add_gaussian_", faulty)


def _says(found: ReleaseAudit, words: str) -> bool:
    return any(words in sentence for sentence in found.violations)
