"""The workbook that comes with BraTS 2024: one row for every scan, in the columns of the real one."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import openpyxl

TABLE_FILE = "BraTS-PTG supplementary demographic information and metadata.xlsx"
COLUMNS = (  # the blanks at the end of two are real
    "BraTS Subject ID",
    "Site",
    "Site Subject ID",
    "Annotator 1",
    "Approver 1",
    "Train/Test/Validation ",
    "Magnetic Field Strength",
    "Manufacturer",
    "Patient's Age",
    "Patient's Sex",
    "Glioma type ",
)
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


@dataclass(frozen=True)
class Row:
    """Values in the order of ``COLUMNS``."""

    scan: str
    site: str
    site_number: int
    annotator: str | None
    approver: str
    part: str
    field_tesla: float
    manufacturer: str
    age: float
    sex: str
    diagnosis: str


def write_workbook(path: Path, rows: Sequence[Row]) -> None:
    """Write a workbook whose bytes depend on ``rows`` alone: a usual one has the time of day in a dozen places."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(COLUMNS)
    for row in rows:
        sheet.append(astuple(row))
    with_times = io.BytesIO()
    book.save(with_times)
    with zipfile.ZipFile(with_times) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "docProps/core.xml":
                content = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"1980-01-01T00:00:00Z", content)
            target.writestr(zipfile.ZipInfo(name, LONG_AGO), content, zipfile.ZIP_DEFLATED)
