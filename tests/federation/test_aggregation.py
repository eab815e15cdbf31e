"""Averaging of site updates: declared shares, float64, one order, nothing that does not fit; and the messages' hash."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.aggregation import Average, averaged, declared_shares
from nnunet_adpfl.federation.messages import SiteUpdate, Weights, weights_hash

WANTED: Weights = {"w": np.zeros((2, 3), dtype=np.float32), "v": np.zeros(4, dtype=np.float32)}


def update(site: str, value: float = 1.0, **changes: Any) -> SiteUpdate:
    fields: dict[str, Any] = {
        "site": site, "run": "run", "round": 0, "attempt": 0, "steps": 5, "noisy_count": 1.5, "count_noise_std": 3.0,
        "expected_units": 10.0, "ledger_head": "0" * 64,
        "weights": {name: np.full_like(like, value) for name, like in WANTED.items()},
    }  # fmt: skip
    return SiteUpdate(**{**fields, **changes})


def average_of(*updates: SiteUpdate, shares: dict[str, float] | None = None) -> Average:
    average = Average(shares or {each.site: 1 / len(updates) for each in updates}, WANTED)
    for each in updates:
        average.add(each)
    return average


def test_rule_04_shares_come_from_declared_numbers() -> None:
    assert declared_shares({"b": 30, "a": 10}, "declared") == {"a": 0.25, "b": 0.75}
    assert declared_shares({"b": 30, "a": 10}, "equal") == {"a": 0.5, "b": 0.5}
    assert declared_shares({"b": 30, "a": 10}, "precision") == {"a": 0.1, "b": 0.9}
    assert list(declared_shares({"b": 1, "a": 1}, "declared")) == ["a", "b"]


def test_mean_is_weighted() -> None:
    mean = average_of(update("a", 1.0), update("b", 5.0), shares={"a": 0.25, "b": 0.75}).result()
    assert set(mean) == set(WANTED)
    for name, value in mean.items():
        assert value.dtype == WANTED[name].dtype
        assert (value == 4.0).all()


def test_sum_is_kept_in_float64() -> None:
    """In float32, 1 + 2^-25 + 2^-25 would stay 1 whatever follows."""
    small = 2.0**-25
    updates = [update("a", 1.0), *(update(f"b{k:02d}", small) for k in range(16))]
    mean = average_of(*updates, shares={each.site: 1.0 for each in updates}).result()["w"]
    assert (mean == np.float32(1 + 16 * small)).all()
    assert (mean > 1).all()


@pytest.mark.parametrize("order", [("b", "a"), ("a", "a"), ("a", "c")])
def test_another_order_a_repeated_or_an_unknown_site_is_refused(order: tuple[str, str]) -> None:
    average = Average({"a": 0.5, "b": 0.5}, WANTED)
    average.add(update(order[0]))
    with pytest.raises(InputError, match="unknown or out of order"):
        average.add(update(order[1]))


def test_a_missing_site_is_never_made_up_for() -> None:
    average = Average({"a": 0.5, "b": 0.5}, WANTED)
    average.add(update("a"))
    with pytest.raises(InputError, match="no update of site b"):
        average.result()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"w": WANTED["w"]}, "first difference: v"),
        ({**WANTED, "extra": WANTED["v"]}, "first difference: extra"),
        ({**WANTED, "v": np.zeros(5, dtype=np.float32)}, "v has not the shape"),
        ({**WANTED, "v": np.zeros(4, dtype=np.float64)}, "v has not the shape"),
        ({**WANTED, "v": np.array([0, 1, math.nan, 0], dtype=np.float32)}, "not finite"),
        ({**WANTED, "v": np.array([0, 1, math.inf, 0], dtype=np.float32)}, "not finite"),
    ],
)
def test_rule_15_updates_that_do_not_fit_are_refused_and_add_nothing(weights: Weights, reason: str) -> None:
    average = Average({"a": 0.5, "b": 0.5}, WANTED)
    average.add(update("a", 2.0))
    with pytest.raises(InputError, match=reason) as error:
        average.add(update("b", weights=weights))
    assert "\n" not in str(error.value)
    average.add(update("b", 4.0))
    assert all((value == 3.0).all() for value in average.result().values())


@pytest.mark.parametrize(
    "changes",
    [
        {"noisy_count": math.nan},
        {"noisy_count": math.inf},
        {"count_noise_std": math.nan},
        {"expected_units": math.nan},
        {"expected_units": 0.0},
        {"expected_units": -1.0},
    ],
)
def test_rule_15_counts_that_would_spoil_the_clip_norm_are_refused(changes: dict[str, float]) -> None:
    average = Average({"a": 1.0}, WANTED)
    with pytest.raises(InputError, match="site a"):
        average.add(update("a", **changes))


def test_rule_08_counts_of_all_sites_add_up_with_their_noise() -> None:
    average = average_of(update("a"), update("b", noisy_count=-0.5, count_noise_std=4.0, expected_units=5.0))
    assert average.noisy_count == 1.0
    assert average.count_noise_std == 5.0
    assert average.expected_units == 15.0


def test_rule_08_without_adaptive_clipping_there_is_no_count() -> None:
    assert average_of(update("a", noisy_count=None, count_noise_std=0.0)).noisy_count is None


def test_moving_average_of_global_weights() -> None:
    mean = averaged({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, 0.75)
    assert mean["w"].dtype == np.float32
    assert mean["w"] == pytest.approx([1.5])
    assert averaged({"w": np.float32([1.0])}, {"w": np.float32([3.0])}, 0.0)["w"] == 3.0


def test_hash_tells_names_types_shapes_and_bytes_apart_and_nothing_else() -> None:
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
    same = {"b": base["b"].copy(), "a": np.arange(12, dtype=np.float32)[::2] * 0 + base["a"]}
    assert weights_hash(base) == weights_hash(same)
    others: list[Weights] = [
        {**base, "a": base["a"] + 1e-6},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "b": np.zeros(2, dtype=np.int32)},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    hashes = {weights_hash(other) for other in others}
    assert len(hashes | {weights_hash(base)}) == len(others) + 1


def test_updates_hold_nothing_but_what_passed_clip_and_noise() -> None:
    names = set(vars(update("a")))
    assert names == {
        "site", "run", "round", "attempt", "steps", "weights", "noisy_count", "count_noise_std", "expected_units",
        "ledger_head", "task_digest",
    }  # fmt: skip
