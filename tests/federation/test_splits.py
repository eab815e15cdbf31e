"""Splits: grouped by unit, stratified by site, kept where they exist."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.splits import (
    chosen_splits,
    kind_of,
    leave_one_site_out,
    make_splits,
    new_splits,
    save_splits,
)
from nnunet_adpfl.folds import check_splits, left_out_sites, make_fold, training_units


def cohort_of(units_at: dict[str, int], cases_per_unit: int = 1) -> Cohort:
    return Cohort(
        "patient",
        {
            f"{site}_{unit}_{case}": CohortEntry(f"{site}_{unit}", site)
            for site, number in units_at.items()
            for unit in range(number)
            for case in range(1 + unit % cases_per_unit)
        },
    )


site_sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(2, 23), min_size=1).filter(lambda s: sum(s.values()) >= 5)


@given(site_sizes, st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_every_case_validates_once_and_no_unit_is_on_both_sides(sizes: dict[str, int], cases: int, seed: int) -> None:
    cohort = cohort_of(sizes, cases)
    splits = make_splits(cohort, seed=seed, small_sites="other")
    check_splits(splits, cohort, "splits")  # the reader's own check: units on one side, known cases
    assert Counter(case for split in splits for case in split["val"]) == Counter(dict.fromkeys(cohort.cases, 1))
    assert all(set(split["train"]) | set(split["val"]) == set(cohort.cases) for split in splits)


@given(site_sizes, st.integers(0, 2**32 - 1))
def test_folds_hold_their_share_of_every_site(sizes: dict[str, int], seed: int) -> None:
    cohort = cohort_of(sizes)
    splits = make_splits(cohort, seed=seed, small_sites="other")
    for site in sizes:
        numbers = [sum(cohort.cases[case].site == site for case in split["val"]) for split in splits]
        assert max(numbers) - min(numbers) <= 1
    totals = [len(split["val"]) for split in splits]
    assert max(totals) - min(totals) <= 1
    for fold in range(5):
        assert set(training_units(cohort, make_fold(splits, cohort, fold))) == set(sizes)


@given(site_sizes.filter(lambda sizes: len(sizes) > 1), st.integers(1, 3))
def test_each_site_is_left_out_once(sizes: dict[str, int], cases: int) -> None:
    cohort = cohort_of(sizes, cases)
    splits = leave_one_site_out(cohort)
    check_splits(splits, cohort, "splits")
    assert len(splits) == len(sizes)
    for number, site in enumerate(sorted(sizes)):
        fold = make_fold(splits, cohort, number)
        assert {cohort.cases[case].site for case in fold.val} == {site}
        assert training_units(cohort, fold) == {other: size for other, size in sorted(sizes.items()) if other != site}
        assert left_out_sites(cohort, fold) == {site}
        assert fold.train | fold.val == set(cohort.cases)


def test_a_site_is_left_out_only_as_a_whole() -> None:
    cohort = cohort_of({"a": 5, "b": 5})
    for fold in (*range(5), "all"):
        assert left_out_sites(cohort, make_fold(make_splits(cohort), cohort, fold)) == set()
    halved = [{"train": ["a_0_0"], "val": ["b_0_0", "a_1_0"]}]  # some of b's cases are nowhere
    assert left_out_sites(cohort, make_fold(halved, cohort, 0)) == set()


def test_splits_of_another_cohort_do_not_say_what_kind_is_wanted(tmp_path: Path) -> None:
    cohort, larger = cohort_of({"a": 5, "b": 5}), cohort_of({"a": 6, "b": 5})
    assert kind_of(tmp_path, cohort) == "patients"
    save_splits(tmp_path, leave_one_site_out(larger), made_here=True)
    assert (kind_of(tmp_path, larger), kind_of(tmp_path, cohort)) == ("sites", "patients")
    save_splits(tmp_path, make_splits(cohort), made_here=True)
    assert kind_of(tmp_path, cohort) == "patients"


def test_one_site_cannot_be_left_out() -> None:
    with pytest.raises(InputError, match="--folds sites leaves out"):
        leave_one_site_out(cohort_of({"a": 9}))


def test_folds_are_of_patients_or_of_sites() -> None:
    both = cohort_of({"a": 1, "b": 1})
    assert new_splits(both, "sites", n_folds=5, seed=0, small_sites="refuse") == leave_one_site_out(both)
    with pytest.raises(InputError, match="folds 'fifths' is unknown; use patients or sites"):
        new_splits(both, "fifths", n_folds=5, seed=0, small_sites="refuse")


def test_the_seed_decides() -> None:
    cohort = cohort_of({"a": 20, "b": 20})
    assert make_splits(cohort, seed=1) == make_splits(cohort, seed=1)
    assert make_splits(cohort, seed=1) != make_splits(cohort, seed=2)


def test_small_sites_are_refused_with_their_number() -> None:
    with pytest.raises(InputError, match=r"site b has 4 patients, fewer than the 5 folds.*--small-sites other"):
        make_splits(cohort_of({"a": 9, "b": 4}))
    with pytest.raises(InputError, match="site b has 1 patient: it cannot both train and validate"):
        make_splits(cohort_of({"a": 9, "b": 1}), small_sites="other")
    with pytest.raises(InputError, match="4 patients, fewer than the 5 folds"):
        make_splits(cohort_of({"a": 2, "b": 2}), small_sites="other")


@pytest.mark.parametrize(("option", "message"), [({"small_sites": "drop"}, "small-sites"), ({"n_folds": 1}, "2 or more")])
def test_bad_options(option: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_splits(cohort_of({"a": 9}), **option)


def test_splits_of_the_user_are_kept_and_our_own_replaced_only_on_request(tmp_path: Path) -> None:
    cohort = cohort_of({"a": 10})
    first, second = make_splits(cohort, seed=1), make_splits(cohort, seed=2)
    save_splits(tmp_path, first, made_here=True)
    assert chosen_splits(second, cohort, [tmp_path], replace_own=False) == first
    assert chosen_splits(second, cohort, [tmp_path], replace_own=True) == second

    edited = [{"train": split["val"], "val": split["train"]} for split in first]
    (tmp_path / "splits_final.json").write_text(json.dumps(edited))
    assert chosen_splits(second, cohort, [tmp_path], replace_own=True) == edited


def test_splits_that_do_not_cover_the_cohort_or_divide_a_unit_are_refused(tmp_path: Path) -> None:
    cohort = cohort_of({"a": 10}, cases_per_unit=2)
    made = make_splits(cohort)
    save_splits(tmp_path, [{"train": ["a_0_0"], "val": ["a_2_0"]}], made_here=False)
    with pytest.raises(InputError, match="does not cover"):
        chosen_splits(made, cohort, [tmp_path], replace_own=True)
    save_splits(tmp_path, [{"train": ["a_1_0"], "val": ["a_1_1"]}], made_here=False)
    with pytest.raises(InputError, match="patient a_1 is in both training and validation"):
        chosen_splits(made, cohort, [tmp_path], replace_own=True)
