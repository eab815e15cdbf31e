"""Tables that come with data sets: delimited text in any of its spellings, and Excel workbooks (.xlsx)."""

from __future__ import annotations

import codecs
import csv
import io
import zipfile
from pathlib import Path
from typing import Any

from nnunet_adpfl.errors import InputError

MOST_BYTES = 64 * 2**20
MOST_UNPACKED = 256 * 2**20  # a workbook is a zip file: one of a few kB may unpack to terabytes
MOST_CELLS = 5_000_000
_ZIP = b"PK\x03\x04"
Lines = list[tuple[int, list[str]]]


def read_table(path: Path | str) -> tuple[list[str], Lines]:
    """Header in lower case and rows (line number, values) of a table; blanks round values and blank rows are left out.

    Text may be separated by comma, tab or semicolon; of a workbook, the first sheet is read.

    Raises InputError when the file is missing, empty, no table, or a row has more values than the header.
    """
    content = _content(Path(path))
    rows = _workbook(content, path) if content.startswith(_ZIP) else _delimited(_text(content), path)
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise InputError(f"{path} is empty: give a table with the columns case, site and, if known, patient")
    header = [name.lower() for name in rows[0][1]]
    for number, row in rows[1:]:
        if any(row[len(header) :]):
            raise InputError(f"{path}, line {number}: {len(row)} values for {len(header)} columns")
    return header, rows[1:]


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} has more than {MOST_BYTES // 2**20} MB: give a table with the columns case and site")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a table with the columns case and site") from None


def _delimited(text: str, path: Path | str) -> Lines:
    delimiter = max(",\t;", key=text.split("\n", 1)[0].count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is not a table that can be read ({error}): save it as CSV") from None


def _text(content: bytes) -> str:
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # spreadsheets on Windows


def _workbook(content: bytes, path: Path | str) -> Lines:
    import openpyxl  # noqa: PLC0415  (slow to import, rarely needed)

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_UNPACKED:
                raise InputError(f"{path} unpacks to more than {MOST_UNPACKED // 2**20} MB: save its first sheet as CSV")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some programs write wrong ones
        rows, cells = [], 0
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            cells += len(row)
            if cells > MOST_CELLS:
                raise InputError(f"{path} has more than {MOST_CELLS} cells: save what is needed of it as CSV")
            rows.append((number, _without_empty_end([_cell(value) for value in row])))
        return rows
    except InputError:
        raise
    except Exception as error:  # whatever openpyxl meets in a damaged file; it has no error class of its own for that
        raise InputError(f"{path} is not a workbook that can be read ({error!r:.120}): save its first sheet as CSV") from None


def _cell(value: Any) -> str:
    """Numbers as they are written: Excel stores 5 as 5.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return "" if value is None else str(value).strip()


def _without_empty_end(values: list[str]) -> list[str]:
    while values and not values[-1]:
        values.pop()
    return values
