"""The sites table: every way of writing it that occurs, and a line that says what is wrong with it otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned
from nnunet_adpfl.dataset_conversion.sites_table import SiteRow, check_known, read_sites_table
from nnunet_adpfl.errors import InputError

EXPECTED = [SiteRow("a_1", "north west", "p1"), SiteRow("a_2", "south", "p2")]


@pytest.mark.parametrize(
    "data",
    [
        b"case,site,patient\na_1,north west,p1\na_2,south,p2\n",
        b"case\tsite\tpatient\na_1\tnorth west\tp1\na_2\tsouth\tp2\n",
        b"case;site;patient\r\na_1;north west;p1\r\na_2;south;p2\r\n",
        b'"case","site","patient"\n"a_1","north west","p1"\n"a_2","south","p2"',
        b"\xef\xbb\xbfcase,site,patient\na_1,north west,p1\na_2,south,p2\n",
        "case,site,patient\na_1,north west,p1\na_2,south,p2\n".encode("utf-16"),
        b" Case , SITE_ID ,patient_id, comment\n\n a_1.nii.gz , north west ,p1,x\n a_2.png , south , p2\n,,,\n",
        b'patient,age,site,image_id\np1,5,north west,a_1\np2,"6,5",south,a_2\n',
    ],
    ids=["comma", "tab", "semicolon", "quotes", "bom", "utf-16", "blanks and endings", "other order"],
)
def test_every_way_to_write_it_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sites.csv"
    path.write_bytes(data)
    assert read_sites_table(path) == EXPECTED


def test_no_patient_column(tmp_path: Path) -> None:
    path = tmp_path / "sites.csv"
    path.write_text("case,site\na,Zürich\n", encoding="latin-1")
    assert read_sites_table(path) == [SiteRow("a", "Zürich", None)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty"]),
        ("\n\n", ["is empty"]),
        ("case,site\n", ["no rows below its header"]),
        ("site,patient\nx,p\n", ["no column 'case'", "site, patient"]),
        ("case,patient\na,p\n", ["no column 'site'"]),
        ("case,site,site\na,x,y\n", ["two columns 'site'"]),
        ("case,site\na,\n", ["line 2", "site is empty"]),
        ("case,site\na,x\n,y\n", ["line 3", "case is empty"]),
        ("case,site,patient\na,x\n", ["line 2", "patient is empty"]),
        ("case,site\na,x,y\n", ["line 2", "3 values for 2 columns"]),
        ('case,site\n"a,x\n', ["not a table that can be read", "save it as CSV"]),
        ("case,site\na,../up\n", ["cannot name a folder"]),
        ("case,site\na,.hidden\n", ["cannot name a folder"]),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "sites.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        read_sites_table(path)
    for part in (str(path), *parts):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_sites_table(path)


def _cohort(rows: list[SiteRow], unit_kind: str) -> Cohort:
    """Of the cases a and b, as `adpfl cohort --sites` reads a table."""
    check_known(rows, ["a", "b"], "sites.csv")
    return assigned({"a": "a", "b": "b"}, unit_kind, rows, SitesChoice(), "sites.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x", None)], r"lacks cases of the data set \(1: b\)"),
        ([("a", "x", None), ("b", "x", None), ("c", "x", None)], r"does not have \(1: c\)"),
        ([("a", "x", None), ("b", "x", None), ("a", "y", None)], r"more than once \(1: a\)"),
        ([("a", "x", "p"), ("b", "y", "p")], r"patient p at two sites \(x and y\)"),
    ],
)
def test_rows_must_fit_the_cases(rows: list[tuple[str, str, str | None]], message: str) -> None:
    given = [SiteRow(*row) for row in rows]
    with pytest.raises(InputError, match=message):
        _cohort(given, "patient")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,site,patient\na,x,N/A\nb,x,p\n", "line 2: the patient is N/A"),
        ("case,site\na,n/a\n", "line 2: the site is n/a"),
        ("case,site,patient\na,x,P1\nb,x,p1\n", "has patients 'P1' and 'p1'"),
        ("case,site,patient\na,x,007\nb,x,7\n", "has patients '007' and '7'"),
    ],
)
def test_rule_01_ids_that_may_be_one_person_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sites.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_sites_table(tmp_path / "sites.csv")


def test_rule_01_lesions_are_not_called_patients(tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("image,center,lesion_id,dataset\na,x,L1,D\nb,x,L1,D\n")
    rows = read_sites_table(tmp_path / "sites.csv")
    assert rows == [SiteRow("a", "x", "L1", "lesion"), SiteRow("b", "x", "L1", "lesion")]
    cohort = assigned({"a": "a", "b": "b"}, "case", rows, SitesChoice(), "t.csv")
    assert (cohort.unit_kind, cohort.units(), cohort.sites) == ("lesion", ["L1"], ["x"])


def test_cases_without_patients_are_units_of_their_own() -> None:
    cohort = _cohort([SiteRow("a", "x", None), SiteRow("b", "x", None)], "case")
    assert (cohort.units(), cohort.unit_kind) == (["a", "b"], "case")
    cohort = _cohort([SiteRow("a", "x", "p"), SiteRow("b", "x", "p")], "patient")
    assert cohort.cases_by_unit() == {"p": ["a", "b"]}
