"""Every unit at one site, or one line that says which is not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned, at_one_site
from nnunet_adpfl.dataset_conversion.sites_table import SiteRow
from nnunet_adpfl.errors import InputError

UNITS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}


def rows(*text: str) -> list[SiteRow]:
    return [SiteRow(*(part or None for part in row.split(","))) for row in text]  # type: ignore[arg-type]


def test_a_unit_is_found_by_any_of_its_cases() -> None:
    cohort = assigned(UNITS, "patient", rows("a2,x,", "b1,y,", "c1,x,"), SitesChoice(), "t.csv")
    assert cohort.cases_by_unit("x") == {"a": ["a1", "a2"], "c": ["c1"]}


def test_rule_14_two_sites_are_refused_or_settled_by_majority() -> None:
    given_rows = rows("a1,x,", "a2,y,", "b1,y,", "c1,y,")
    with pytest.raises(InputError, match=r"t.csv has patient a at two sites \(x and y\)"):
        assigned(UNITS, "patient", given_rows, SitesChoice(), "t.csv")
    cohort = assigned(UNITS, "patient", given_rows, SitesChoice(), "t.csv", majority=True)
    assert cohort.units("x") == ["a"], "equal votes: the first"


def test_rows_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match=r"lists a1 twice, differently \(x and y\)"):
        assigned(UNITS, "patient", rows("a1,x,", "a1,y,"), SitesChoice(), "t.csv", majority=True)


def test_rule_01_patients_may_join_units_and_never_part_them() -> None:
    cohort = assigned(UNITS, "lesion", rows("a1,x,p", "a2,x,p", "b1,x,p", "c1,y,q"), SitesChoice(), "t.csv")
    assert (cohort.unit_kind, cohort.cases_by_unit()) == ("patient", {"p": ["a1", "a2", "b1"], "q": ["c1"]})
    with pytest.raises(InputError, match=r"gives lesion a to two patients \(p and q\)"):
        assigned(UNITS, "lesion", rows("a1,x,p", "a2,x,q", "b1,x,p", "c1,y,q"), SitesChoice(), "t.csv")
    known = assigned(UNITS, "lesion", rows("a1,x,p", "b1,x,p", "c1,x,q"), SitesChoice(), "t.csv")
    assert known.cases["a2"].unit == "p", "the table names one image of a lesion: it names the lesion"


def test_rule_01_patients_are_promised_only_where_all_are_known() -> None:
    some = rows("a1,x,p", "a2,x,p", "b1,x,q")
    cohort = assigned(UNITS, "lesion", some, SitesChoice(unassigned_site="rest"), "t.csv")
    assert (cohort.unit_kind, cohort.units()) == ("lesion", ["c", "p", "q"])
    assert assigned(UNITS, "lesion", some, SitesChoice(drop_unassigned=True), "t.csv").unit_kind == "patient"


def test_a_table_about_other_cases_is_no_table() -> None:
    with pytest.raises(InputError, match=r"names none of the cases \(they are a1, a2, b1, ...; it has z\)"):
        assigned(UNITS, "patient", rows("z,x,"), SitesChoice(unassigned_site="rest"), "t.csv")
    assert assigned(UNITS, "patient", rows("A1,x,", "B1,x,", "C1,x,"), SitesChoice(), "t.csv").sites == ["x"], "spelling aside"


def test_a_pool_that_stays_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="have only 1 together"):
        assigned(UNITS, "patient", rows("a1,x,", "b1,x,", "c1,y,"), SitesChoice(smallest_site=2), "t.csv")


def test_choices_without_a_table() -> None:
    for choice in (SitesChoice(drop_unassigned=True), SitesChoice(unassigned_site="x"), SitesChoice(smallest_site=2)):
        with pytest.raises(InputError, match="need to know the sites: give --sites TABLE"):
            at_one_site(UNITS, "patient", choice)


def test_choices_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match="--drop-unassigned or --unassigned-site, not both"):
        SitesChoice(drop_unassigned=True, unassigned_site="x")
    with pytest.raises(InputError, match="--smallest-site 0"):
        SitesChoice(smallest_site=0)


def test_without_sites_units_stay_known() -> None:
    cohort = at_one_site(UNITS, "patient", SitesChoice())
    assert (cohort.sites, cohort.units()) == (["all"], ["a", "b", "c"])


def _expected_site(unit: str, unit_of: dict[str, str], table: list[SiteRow], drop: bool) -> str | None:
    votes = [row.site for row in table if unit_of[row.case] == unit]
    return Counter(votes).most_common(1)[0][0] if votes else (None if drop else "rest")


@given(
    units=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    sites=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    known=st.sets(st.integers(0, 39)),
    smallest=st.integers(1, 4),
    drop=st.booleans(),
)
def test_whatever_the_table_no_unit_is_at_two_sites_and_none_is_lost(
    units: list[int], sites: list[int], known: set[int], smallest: int, drop: bool
) -> None:
    unit_of = {f"case{index}": f"unit{unit}" for index, unit in enumerate(units)}
    table = [SiteRow(f"case{index}", f"site{sites[index]}", None) for index in range(len(units)) if index in known]
    choice = SitesChoice(drop_unassigned=drop, unassigned_site=None if drop else "rest", smallest_site=smallest)
    with_site = {unit_of[row.case] for row in table}
    sizes = Counter(site for unit in set(unit_of.values()) for site in [_expected_site(unit, unit_of, table, drop)] if site)
    pooled = sum(size for site, size in sizes.items() if size < smallest)
    if not with_site or 0 < pooled < smallest:
        with pytest.raises(InputError):
            assigned(unit_of, "patient", table, choice, "t.csv", majority=True)
        return
    cohort = assigned(unit_of, "patient", table, choice, "t.csv", majority=True)
    expected = {case for case, unit in unit_of.items() if not drop or unit in with_site}
    assert set(cohort.cases) == expected
    assert {case: entry.unit for case, entry in cohort.cases.items()} == {case: unit_of[case] for case in expected}
    assert sum(len(cohort.units(site)) for site in cohort.sites) == len(cohort.units())
    assert all(len(cohort.units(site)) >= smallest for site in cohort.sites)
