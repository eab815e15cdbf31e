"""The table that says which case is from which site: CSV with the columns case, site and, optionally, patient."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl.cohort import Cohort, CohortEntry, names_a_folder
from nnunet_adpfl.errors import InputError

CASE_COLUMNS = ("case", "case_id", "image", "image_id")
SITE_COLUMNS = ("site", "site_id", "dataset")
PATIENT_COLUMNS = ("patient", "patient_id", "unit", "lesion_id")
FILE_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg")
SHOWN = 3


@dataclass(frozen=True)
class SiteRow:
    """One line of the table; ``patient`` is None where the table has no such column."""

    case: str
    site: str
    patient: str | None


def read_sites_table(path: Path | str) -> list[SiteRow]:
    """Read a table separated by comma, tab or semicolon (quotes, BOM and blanks round the values are fine).

    Raises InputError, naming the file and the line, when a column or a value is missing.
    """
    header, lines = read_table(path)
    case_at = _column(header, CASE_COLUMNS, path, needed=True)
    site_at = _column(header, SITE_COLUMNS, path, needed=True)
    patient_at = _column(header, PATIENT_COLUMNS, path, needed=False)
    rows = []
    for number, values in lines:
        case = _without_ending(_value(values, case_at, "case", number, path))
        site = checked_site(_value(values, site_at, "site", number, path), path)
        patient = None if patient_at is None else _value(values, patient_at, header[patient_at], number, path)
        rows.append(SiteRow(case, site, patient))
    if not rows:
        raise InputError(f"{path} has no rows below its header: list every case with its site")
    return rows


def cohort_from_rows(rows: Sequence[SiteRow], cases: Collection[str], unit_kind: str, source: Path | str = "the sites table") -> Cohort:
    """The cohort of exactly ``cases``; where the table has no patients, every case is a unit of its own.

    Args:
        unit_kind: what a unit is (``patient``, ``lesion`` or ``case``): the caller knows, the table does not.
        source: the table's file, for messages.

    Raises InputError when cases are unknown, missing or repeated, or a unit is at two sites.
    """
    counts = Counter(row.case for row in rows)
    known = set(cases)
    repeated, unknown = [case for case, count in counts.items() if count > 1], [case for case in counts if case not in known]
    _refuse(repeated, f"{source} lists cases more than once", "keep one row per case")
    _refuse(unknown, f"{source} lists cases that the data set does not have", "remove these rows or correct the names")
    _refuse([case for case in known if case not in counts], f"{source} lacks cases of the data set", "add a row for each")
    site_of: dict[str, str] = {}
    for row in rows:
        unit = row.case if row.patient is None else row.patient
        if site_of.setdefault(unit, row.site) != row.site:
            sites = f"{site_of[unit]} and {row.site}"
            raise InputError(f"{source} has {unit_kind} {unit} at two sites ({sites}): give each {unit_kind} to one site")
    return Cohort(unit_kind, {row.case: CohortEntry(row.case if row.patient is None else row.patient, row.site) for row in rows})


def read_table(path: Path | str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header in lower case and rows (line number, values) of a delimited text file; blank rows are left out.

    Raises InputError when the file is missing, empty, no text, or a row has more values than the header.
    """
    text = _text(Path(path))
    delimiter = max(",\t;", key=text.split("\n", 1)[0].count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is not a table that can be read ({error}): save it as CSV") from None
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise InputError(f"{path} is empty: give a table with the columns case, site and, if known, patient")
    header = [name.lower() for name in rows[0][1]]
    for number, row in rows[1:]:
        if any(row[len(header) :]):
            raise InputError(f"{path}, line {number}: {len(row)} values for {len(header)} columns")
    return header, rows[1:]


def checked_site(site: str, path: Path | str) -> str:
    """``site`` itself, when it can name a folder; results are kept in one folder per site."""
    if not names_a_folder(site):
        raise InputError(f"{path}: site {site!r} cannot name a folder: use letters, digits, blanks, '-' and '_'")
    return site


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a CSV file with the columns case and site") from None
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # spreadsheets on Windows


def _column(header: list[str], names: Sequence[str], path: Path | str, *, needed: bool) -> int | None:
    for name in names:
        if header.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}: keep one")
        if name in header:
            return header.index(name)
    if needed:
        raise InputError(f"{path} has no column {names[0]!r} (columns: {', '.join(header)}): add it (or name it {' or '.join(names[1:])})")
    return None


def _value(values: list[str], at: int | None, column: str, number: int, path: Path | str) -> str:
    value = values[at] if at is not None and at < len(values) else ""
    if not value:
        raise InputError(f"{path}, line {number}: the {column} is empty")
    return value


def _without_ending(case: str) -> str:
    for ending in FILE_ENDINGS:
        case = case.removesuffix(ending)
    return case


def _refuse(names: list[str], problem: str, remedy: str) -> None:
    if names:
        shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        raise InputError(f"{problem} ({len(names)}: {shown}): {remedy}")
