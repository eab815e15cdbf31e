"""Simulated sites: every unit at one site, no site empty, reproducible, and as skewed as asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.partition import Skew, parse_skew, simulate_sites

skews = st.one_of(
    st.just(Skew("equal")),
    st.builds(Skew, st.sampled_from(["quantity", "dirichlet"]), st.floats(1e-3, 1e6)),
)


def names(number: int) -> list[str]:
    return [f"p{index:04d}" for index in range(number)]


@given(st.integers(2, 80), st.integers(1, 40), skews, st.integers(0, 2**32 - 1), st.integers(1, 100))
def test_every_unit_has_a_site_and_no_site_is_empty(number: int, sites: int, skew: Skew, seed: int, values: int) -> None:
    sites = min(sites, number // 2)
    foreground = {unit: float(index % values) for index, unit in enumerate(names(number))}
    found = simulate_sites(names(number), sites, skew, seed, foreground)
    counts = Counter(found.values())
    assert set(found) == set(names(number))
    assert len(counts) == sites
    assert min(counts.values()) >= 2
    assert found == simulate_sites(names(number)[::-1], sites, skew, seed, foreground)
    if skew.kind == "equal":
        assert max(counts.values()) - min(counts.values()) <= 1


def test_seeds_differ() -> None:
    assert simulate_sites(names(30), 3, Skew("equal"), 1) != simulate_sites(names(30), 3, Skew("equal"), 2)


def test_quantity_skew_grows_as_its_number_falls() -> None:
    def spread(concentration: float) -> float:
        sizes = [
            list(Counter(simulate_sites(names(400), 4, Skew("quantity", concentration), seed).values()).values())
            for seed in range(20)
        ]
        return float(np.mean([np.std(each) for each in sizes]))

    assert spread(0.3) > 2 * spread(10) > 4 * spread(1000)


def test_dirichlet_skew_gives_sites_different_amounts_of_foreground() -> None:
    foreground = {unit: float(index) for index, unit in enumerate(names(500))}

    def spread(skew: Skew) -> float:
        differences = []
        for seed in range(10):
            found = simulate_sites(names(500), 4, skew, seed, foreground)
            means = [np.mean([foreground[unit] for unit in found if found[unit] == site]) for site in set(found.values())]
            differences.append(np.std(means))
        return float(np.mean(differences))

    assert spread(Skew("dirichlet", 0.3)) > 4 * spread(Skew("equal"))
    assert spread(Skew("dirichlet", 1e6)) < spread(Skew("equal"))  # stratified: even more alike than by chance


def test_site_names_sort_as_numbers_do() -> None:
    assert sorted(set(simulate_sites(names(40), 12, Skew("equal"), 0).values()))[:2] == ["site-01", "site-02"]


@pytest.mark.parametrize("text", ["unequal", "equal:1", "quantity", "quantity:", "quantity:x", "dirichlet:0", "dirichlet:-1",
                                  "dirichlet:nan", "quantity:inf", "dirichlet:1e9", ""])  # fmt: skip
def test_bad_skew(text: str) -> None:
    with pytest.raises(InputError, match="--skew"):
        parse_skew(text)


def test_good_skew() -> None:
    assert parse_skew("equal").kind == "equal"
    assert parse_skew("dirichlet:0.5") == Skew("dirichlet", 0.5)


@pytest.mark.parametrize(("sites", "message"), [(0, "1 or more"), (6, "at least 12 units")])
def test_impossible_numbers_of_sites(sites: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_sites(names(11), sites, Skew("equal"), 0)
