"""Rule 7: the cryptographic generator is the cipher that it says, and no generator takes a seed."""

from __future__ import annotations

import inspect
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from injected_randomness import InjectedRandomness
from small_model import make_mechanism, start_ledger

from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.noise import CHACHA_ROUNDS, SecretRandomness, add_gaussian_, noisy_number

# RFC 7539, appendix A.1, test vector 1: ChaCha20, key, nonce and counter all zero
KEYSTREAM = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)
NUMBER = 400_000
LIMIT = 5.5


def test_rule_07_secure_noise_comes_from_chacha20() -> None:
    from randomgen import ChaCha

    found = np.asarray(ChaCha(key=0, counter=0, rounds=CHACHA_ROUNDS).random_raw(8), dtype="<u8").tobytes()
    assert found == KEYSTREAM
    generator = SecretRandomness("secure").noise("a", 0)
    state = generator.bit_generator.state
    assert state["bit_generator"].endswith("ChaCha")
    assert state["state"]["rounds"] == 20


def test_rule_07_every_call_has_a_new_key_of_256_bits() -> None:
    secret = SecretRandomness("secure")
    keys = {tuple(int(word) for word in secret.noise("a", 0).bit_generator.state["state"]["keysetup"]) for _ in range(40)}
    draws = {tuple(secret.draws("a", 0).random(4)) for _ in range(40)}
    assert len(keys) == len(draws) == 40
    assert {len(key) for key in keys} == {8}  # words of 32 bits
    for word in range(8):
        assert max(key[word] for key in keys) > 2**26  # every part of the key is filled


@pytest.mark.parametrize("source", ["os_seeded", "secure"])
def test_rule_07_a_source_takes_no_seed_and_cannot_be_stored(source: str) -> None:
    assert list(inspect.signature(SecretRandomness).parameters) == ["source"]
    with pytest.raises(TypeError):
        SecretRandomness(source, seed=1)  # type: ignore[call-arg,arg-type]
    with pytest.raises(TypeError, match="never stored"):
        pickle.dumps(SecretRandomness(source))  # type: ignore[arg-type]


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rule_07_the_sum_of_gaussians_has_the_same_deviation(terms: int, dtype: torch.dtype) -> None:
    tensor = torch.full((NUMBER,), 3.0, dtype=dtype)
    add_gaussian_(tensor, 2.5, InjectedRandomness(1).noise("a", terms), terms)
    noise = (tensor.double() - 3.0) / 2.5
    assert abs(float(noise.std()) - 1) < LIMIT / math.sqrt(2 * NUMBER)
    assert abs(float(noise.mean())) < LIMIT / math.sqrt(NUMBER)
    assert abs(float((noise**4).mean()) - 3) < LIMIT * math.sqrt(96 / NUMBER)


def test_rule_07_the_plan_decides_how_many_gaussians_are_added(tmp_path: Path) -> None:
    drawn: dict[int, int] = {}

    class Counting(InjectedRandomness):
        def noise(self, site: str, step: int) -> np.random.Generator:
            generator = super().noise(site, step)

            class Spy(np.random.Generator):
                def standard_normal(self, size=None, dtype=np.float64, out=None):  # type: ignore[no-untyped-def]
                    if size is not None:
                        drawn[terms] = drawn.get(terms, 0) + int(np.prod(size))
                    return super().standard_normal(size, dtype, out)

            return Spy(generator.bit_generator)

    for terms in (1, 4):
        mechanism = make_mechanism(noise_terms=terms)
        folder = tmp_path / str(terms)
        permit = mechanism.authorise(start_ledger(folder, mechanism.plan), 0, 1, round_index=0, attempt=0)
        mechanism.release(ClippedSum({"w": torch.zeros(1000)}), permit, "a", 0, Counting(3))
    assert drawn == {1: 1000 + 1, 4: 4000 + 1}  # and one for the count


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("deviation", [0.6, 2.159, 40.0])
def test_rule_07_what_leaves_lies_on_a_public_grid(deviation: float, terms: int) -> None:
    """The last bits of a sum tell which numbers were added: one step told two data sets apart by them."""
    step = 2.0 ** (math.floor(math.log2(deviation)) - 20)
    for sums in (torch.zeros(5000), torch.full((5000,), 1 / 3), torch.full((5000,), 0.1, dtype=torch.float64)):
        add_gaussian_(sums, deviation, InjectedRandomness(4).noise("a", 0), terms)
        exact = sums.double() if sums.dtype == torch.float64 else sums.double()[sums.abs() < 2**24 * step]
        assert len(exact) > 4990
        assert torch.equal(exact, (exact / step).round() * step)
    count = noisy_number(3.5, deviation, InjectedRandomness(4).noise("a", 1))
    assert count == round(count / step) * step


def test_rule_07_small_outputs_are_reached_from_every_sum() -> None:
    """What gave it away: near zero, sums of float noise alone lay on a coarser grid than those with somebody in them."""
    step, number = 2.0**-19, 400_000
    hit = []
    for total in (0.0, 0.3141592653589793):
        tensor = torch.full((number,), total, dtype=torch.float64)
        add_gaussian_(tensor, 2.0, InjectedRandomness(9).noise("a", int(total > 0)), 4)
        near = (tensor[tensor.abs() < 200 * step] / step).round().long()
        odd = float((near % 2 != 0).double().mean())
        hit.append((len(near), odd))
    for count, odd in hit:
        assert abs(odd - 0.5) < LIMIT / math.sqrt(4 * count)


def test_rule_07_noise_reaches_tensors_of_any_memory_format() -> None:
    plain = torch.zeros(3, 4, 5, 6, 7)
    other = plain.clone(memory_format=torch.channels_last_3d)
    for tensor in (plain, other):
        add_gaussian_(tensor, 1.0, InjectedRandomness(2).noise("a", 0))
    assert torch.equal(plain, other)
    assert bool((plain != 0).all())
    several = torch.zeros(2**18 + 7)
    add_gaussian_(several, 1.0, InjectedRandomness(2).noise("a", 0))
    assert len(several.unique()) > 0.8 * len(several)
    assert abs(float(several[-(2**17) :].std()) - 1) < LIMIT / math.sqrt(2**18)


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf])
def test_rule_07_noise_of_no_size_is_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="standard deviation above 0"):
        add_gaussian_(torch.zeros(3), deviation, InjectedRandomness(2).noise("a", 0))
