"""Workbooks and delimited tables: values as they are written, and one line for what cannot be read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from tiny_challenges import write_workbook

from nnunet_adpfl.dataset_conversion import tables
from nnunet_adpfl.dataset_conversion.sites_table import SiteRow, read_sites_table
from nnunet_adpfl.errors import InputError


def test_a_workbook_reads_like_a_table(tmp_path: Path) -> None:
    rows = [["case_1", 5.0, None], [None, None, None], [" case_2 ", "B", None]]
    path = write_workbook(tmp_path / "t.xlsx", ["Case ", "Site\u00a0"], rows)
    header, lines = tables.read_table(path)
    assert header == ["case", "site"]
    assert [values for _, values in lines] == [["case_1", "5"], ["case_2", "B"]]


def test_columns_of_the_published_workbook(tmp_path: Path) -> None:
    header = ["BraTS Subject ID", "Site", "Site Subject ID", "Train/Test/Validation ", "Glioma type "]
    rows = [["BraTS-GLI-00005-100", "UCSF", 12, "Train", "GBM"], ["N/A", "Duke", None, None, None]]
    path = write_workbook(tmp_path / "t.xlsx", header, rows)
    assert read_sites_table(path, ("brats subject id",)) == [SiteRow("BraTS-GLI-00005-100", "UCSF", None)]


def test_partition_numbers_with_and_without_a_zero(tmp_path: Path) -> None:
    for text in ("Subject_ID,Partition_ID\nA,01\nB,2\n", "Partition_ID,Subject_ID\n1,A\n02,B\n"):
        (tmp_path / "p.csv").write_text(text)
        assert read_sites_table(tmp_path / "p.csv") == [SiteRow("A", "1", None), SiteRow("B", "2", None)]


def test_a_workbook_that_is_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(tables.MOST_UNPACKED + 1))
    assert (tmp_path / "bomb.xlsx").stat().st_size < 2**20
    with pytest.raises(InputError, match="unpacks to more than 256 MB"):
        tables.read_table(tmp_path / "bomb.xlsx")


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_workbook_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.xlsx").write_bytes(content)
    with pytest.raises(InputError, match=r"t.xlsx is not a workbook that can be read .* save its first sheet as CSV"):
        tables.read_table(tmp_path / "t.xlsx")


def test_a_workbook_without_a_sheet_that_is_read_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("hello.txt", "no workbook")
    with pytest.raises(InputError, match="save its first sheet as CSV"):
        tables.read_table(tmp_path / "t.xlsx")


def test_a_huge_text_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("case,site\n" + "a,b\n" * 100)
    monkeypatch.setattr(tables, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="has more than"):
        tables.read_table(tmp_path / "t.csv")
