"""The table that says which case is from which site: columns case, site and, optionally, patient (CSV or .xlsx)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl.cohort import names_a_folder
from nnunet_adpfl.dataset_conversion.tables import read_table
from nnunet_adpfl.errors import InputError

# As they are called in the tables that the data sets publish, in lower case.
CASE_COLUMNS = ("case", "case_id", "case_ids", "image", "image_id", "subject_id", "brats subject id")
SITE_COLUMNS = (
    "site", "site_id", "site_ids", "partition_id", "site no (represents the originating institution)", "center", "centre",
    "institution", "hospital",
)  # fmt: skip
PATIENT_COLUMNS = ("patient", "patient_id", "lesion", "lesion_id", "unit")
NO_NAME = ("", "n/a", "na", "nan", "none")
HAM10000_SITE = "dataset"  # means the site beside HAM10000's own columns; elsewhere it would be the name of the data set
FILE_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg")
SHOWN = 3


@dataclass(frozen=True)
class SiteRow:
    """One line of the table; ``patient`` is None where the table has no such column, ``kind`` what that column names."""

    case: str
    site: str
    patient: str | None
    kind: str = "patient"


def read_sites_table(path: Path | str, case_columns: Sequence[str] = ()) -> list[SiteRow]:
    """Read a table separated by comma, tab or semicolon (quotes, BOM and blanks round the values are fine), or a workbook.

    Args:
        case_columns: names of the case column that this data set's own tables use, before the usual ones. Rows without
            a case there (empty, N/A) belong to other data sets and are left out.

    Raises InputError, naming the file and the line, when a column or a value is missing.
    """
    header, lines = read_table(path)
    own_at = _column(header, case_columns, path, needed=False)
    case_at = own_at if own_at is not None else _column(header, CASE_COLUMNS, path, needed=True)
    site_columns = (HAM10000_SITE, *SITE_COLUMNS) if is_ham10000_table(header) else SITE_COLUMNS
    site_at = _column(header, site_columns, path, needed=True)
    patient_at = _column(header, PATIENT_COLUMNS, path, needed=False)
    by_number = site_at is not None and header[site_at] == "partition_id"
    kind = "lesion" if patient_at is not None and header[patient_at].startswith("lesion") else "patient"
    rows = []
    for number, values in lines:
        if own_at is not None and (_is_nameless(values, own_at) or _is_nameless(values, site_at)):
            continue
        case = _without_ending(_value(values, case_at, "case", number, path))
        site = checked_site(_value(values, site_at, "site", number, path), path)
        patient = None if patient_at is None else _value(values, patient_at, header[patient_at], number, path)
        rows.append(SiteRow(case, _as_number(site) if by_number else site, patient, kind))
    if not rows:
        raise InputError(f"{path} has no rows below its header: list every case with its site")
    _check_spelling({row.patient for row in rows if row.patient is not None}, kind, path)
    return rows


def is_ham10000_table(header: Collection[str]) -> bool:
    return {"lesion_id", "image_id", HAM10000_SITE} <= set(header)


def _is_nameless(values: Sequence[str], at: int | None) -> bool:
    return at is not None and (values[at : at + 1] or [""])[0].lower() in NO_NAME


def _check_spelling(patients: Collection[str], kind: str, path: Path | str) -> None:
    """InputError for ids that are one and the same to a reader: a patient in two spellings would be two units."""
    plain: dict[str, str] = {}
    for patient in sorted(patients):
        key = patient.casefold()
        other = plain.setdefault(key.lstrip("0") or key, patient)
        if other != patient:
            raise InputError(f"{path} has {kind}s {other!r} and {patient!r}: if they are one, spell them alike; else rename one")


def _as_number(site: str) -> str:
    """FeTS numbers its partitions '01' in one file and '1' in another."""
    return str(int(site)) if site.isdecimal() else site


def check_known(rows: Sequence[SiteRow], cases: Collection[str], source: Path | str) -> None:
    """InputError for rows about other cases, or repeated ones: in a table made for this very data set, typing errors."""
    known, counts = set(cases), Counter(row.case for row in rows)
    _refuse([case for case, count in counts.items() if count > 1], f"{source} lists cases more than once", "keep one row per case")
    unknown = [case for case in counts if case not in known]
    _refuse(unknown, f"{source} lists cases that the data set does not have", "remove these rows or correct the names")


def checked_site(site: str, path: Path | str) -> str:
    """``site`` itself, when it can name a folder; results are kept in one folder per site."""
    if not names_a_folder(site):
        raise InputError(f"{path}: site {site!r} cannot name a folder: use letters, digits, blanks, '-' and '_'")
    return site


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
    if value.lower() in NO_NAME:
        raise InputError(f"{path}, line {number}: the {column} is {value or 'empty'}: give its name, or leave the row out")
    return value


def _without_ending(case: str) -> str:
    for ending in FILE_ENDINGS:
        case = case.removesuffix(ending)
    return case


def _refuse(names: list[str], problem: str, remedy: str) -> None:
    if names:
        shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        raise InputError(f"{problem} ({len(names)}: {shown}): {remedy}")
