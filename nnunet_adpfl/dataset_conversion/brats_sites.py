"""Which institution a case of BraTS or FeTS is from: the tables that were published, and what they have in common.

FeTS 2022, BraTS 2021 and BraTS 2023 have the same 1,251 patients under the same five digits: a table of one serves the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from nnunet_adpfl import progress
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.dataset_conversion import sites_table, tables
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned, at_one_site
from nnunet_adpfl.dataset_conversion.sites_table import SiteRow
from nnunet_adpfl.dataset_conversion.source_files import walk
from nnunet_adpfl.errors import InputError

# Set -> its own table, looked for in the source folder.
_OWN_TABLES: Mapping[str, re.Pattern[str]] = {
    "brats2020": re.compile(r"name_mapping\.csv", re.IGNORECASE),
    "brats2021": re.compile(r"BraTS21-17_Mapping\.(csv|xlsx)", re.IGNORECASE),
    "brats2023": re.compile(r"BraTS2023_2017_GLI_Mapping\.(xlsx|csv)", re.IGNORECASE),
    "brats2024": re.compile(r"BraTS-PTG supplementary demographic information and metadata\.(xlsx|csv)", re.IGNORECASE),
    "fets2022": re.compile(r"partitioning_1\.csv", re.IGNORECASE),
}
_CASE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "brats2020": ("brats2020", "brats_2020_subject_id"),
    "brats2021": ("brats2021",),
    "brats2023": ("brats2023", "brats2021"),
    "brats2024": ("brats subject id",),
    "fets2022": ("subject_id", "brats2021"),
}
_EARLIER_NAMES = ("brats_2019_subject_id", "brats_2018_subject_id", "brats_2017_subject_id")
_SAME_PATIENTS = re.compile(r"(?:FeTS2022_|BraTS2021_|BraTS-GLI-)(\d{5})(?:-\d{3})?", re.IGNORECASE)
UNKNOWN = "unknown"


def cohort(converter: str, source: Path, unit_of: Mapping[str, str], choice: SitesChoice) -> Cohort:
    """Sites from the user's table, else from the set's own where it lies in ``source``, else one site.

    Raises InputError for a table that cannot be used, or that lacks cases.
    """
    table = choice.table or _own_table(converter, source)
    if table is None:
        return at_one_site(unit_of, "patient", choice)
    if choice.table is None:
        progress.note(f"sites are those of {table}")
    header = tables.read_table(table)[0]
    published = not {"case", "case_id", "image"} & set(header)  # a table of the user's own has no patient at two sites
    if "brats_2020_subject_id" in header and not set(header) & set(sites_table.SITE_COLUMNS):
        rows = _by_earlier_names(table)
        if choice.unassigned_site is None and not choice.drop_unassigned:
            choice = replace(choice, unassigned_site=UNKNOWN)  # new in 2020: the table tells no origin
    else:
        rows = sites_table.read_sites_table(table, _CASE_COLUMNS[converter])
    return assigned(unit_of, "patient", rows, choice, table, key=_key(converter), majority=published)


def _own_table(converter: str, source: Path) -> Path | None:
    return next((path for path in walk(source, quiet=True) if _OWN_TABLES[converter].fullmatch(path.name)), None)


def _key(converter: str) -> Callable[[str], str]:
    if converter in ("brats2021", "brats2023", "fets2022"):
        return _common_number
    return str.casefold


def _common_number(case: str) -> str:
    """The five digits that a patient has in all three sets; other names as they are."""
    match = _SAME_PATIENTS.fullmatch(case)
    return match.group(1) if match else case.casefold()


def _by_earlier_names(table: Path) -> list[SiteRow]:
    """BraTS 2020's ``name_mapping.csv`` has no site, but names of earlier years, which hold it: BraTS19_CBICA_AAB_1."""
    header, lines = tables.read_table(table)
    rows = []
    for line, values in lines:
        value = dict(zip(header, values, strict=False))
        case = value.get("brats_2020_subject_id", "")
        if not case:
            raise InputError(f"{table}, line {line}: BraTS_2020_subject_ID is empty")
        earlier = next((value[name] for name in _EARLIER_NAMES if value.get(name, "").count("_") >= 2), None)
        if earlier is not None:
            rows.append(SiteRow(case, sites_table.checked_site(earlier.split("_")[1], table), None))
    if not rows:
        raise InputError(f"{table} has no name of an earlier year, from which the site could be told: give --sites TABLE")
    return rows
