"""HAM10000 (dermoscopy, 10,015 images of 7,470 lesions from four sites) -> nnU-Net raw data set.

The set names no patients, so the lesion is the unit of privacy. What lies where differs from copy to copy (Dataverse,
Kaggle, nested zip files): images, masks and the metadata table are found by name, anywhere below the source folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_adpfl import progress
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.dataset_conversion import photo_case, sites_table, tables
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned
from nnunet_adpfl.dataset_conversion.source_files import add_once, generated_notice, walk
from nnunet_adpfl.dataset_conversion.source_set import Options, SourceCase, SourceSet
from nnunet_adpfl.errors import InputError

NAME = "HAM10000"
LICENCE = "CC BY-NC 4.0"
REFERENCE = "Tschandl, Rosendahl, Kittler (2018), doi:10.7910/DVN/DBW86T"
_SOURCE = "the Harvard Dataverse, doi:10.7910/DVN/DBW86T"
_IMAGE = re.compile(r"(ISIC_\d+)\.jpe?g", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d+)_segmentation\.png", re.IGNORECASE)
_METADATA = re.compile(r"HAM10000_metadata(\.(tab|csv|tsv|txt))?", re.IGNORECASE)
_NOT_OURS = re.compile(r"ISIC2018_Task3_Test.*|__MACOSX|\..+", re.IGNORECASE)  # images without masks that come with the set
_SHOWN = 3


@dataclass
class _Files:
    """What lies below the source folder: image or case id -> file."""

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    metadata: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """One image in the metadata table; ``site`` is empty where the copy has no column ``dataset``."""

    lesion: str
    site: str


def find(converter: str, source: Path, choice: SitesChoice, options: Options) -> SourceSet:
    """A HAM10000 folder; images become PNG without loss, masks become labels 0 and 1.

    Sites are those of the column ``dataset``, or of the user's table (case -> site[, patient]). A patient column there
    makes the patient the unit; a patient's lesions must then be his alone.

    Raises InputError for a folder or table that cannot be used.
    """
    photo_case.refuse_options(converter, options)
    files = _find(source)
    table, rows = _read_metadata(files.metadata, source)
    cases = _cases(files, source)
    _refuse([case for case in cases if case not in rows], f"{table} has no row for images that are there")
    left_out = len(rows.keys() - cases.keys())
    if left_out:
        progress.note(f"{left_out} rows of {table.name} have neither image nor mask in {source} and are left out")
    known = {case: row for case, row in rows.items() if case in cases}
    cohort = _cohort(known, table, choice)
    kept = tuple(case for name, case in cases.items() if name in cohort.cases)
    return SourceSet(converter, NAME, {**photo_case.DESCRIPTION, "name": NAME, **_origin(source)}, kept, cohort, photo_case.convert_case)


def _origin(source: Path) -> dict[str, str]:
    """Licence and reference, unless the set was made up and is under nobody's licence."""
    return generated_notice(source) or {"licence": LICENCE, "reference": REFERENCE}


def _find(source: Path) -> _Files:
    files = _Files()
    for path in walk(source, _NOT_OURS):
        if match := _IMAGE.fullmatch(path.name):
            add_once(files.images, match.group(1).upper(), path)
        elif match := _MASK.fullmatch(path.name):
            add_once(files.masks, match.group(1).upper(), path)
        elif _METADATA.fullmatch(path.name):
            files.metadata.append(path)
    if not files.images or not files.masks:
        lacking = "images (ISIC_0024306.jpg ...)" if not files.images else "masks (ISIC_0024306_segmentation.png ...)"
        raise InputError(f"{source} holds no {lacking}: unpack HAM10000 from {_SOURCE}, there")
    return files


def _cases(files: _Files, source: Path) -> dict[str, SourceCase]:
    """Every id that has an image or a mask; where one of the two is missing, the case is broken and reported so."""
    return {
        case: SourceCase(
            case,
            (files.images.get(case, source / f"{case}.jpg"),),
            files.masks.get(case, source / f"{case}_segmentation.png"),
        )
        for case in sorted({*files.images, *files.masks})
    }


def _read_metadata(candidates: list[Path], source: Path) -> tuple[Path, dict[str, _Row]]:
    """The table's file and its rows by image. Of several tables, the first that knows the sites is taken."""
    if not candidates:
        raise InputError(f"{source} holds no HAM10000_metadata (.tab or .csv): take it from {_SOURCE}")
    headers = {path: tables.read_table(path)[0] for path in candidates}
    path = next((path for path in candidates if "dataset" in headers[path]), candidates[0])
    if len(candidates) > 1:
        progress.note(f"of {len(candidates)} metadata tables, {path} is used")
    header, lines = tables.read_table(path)
    for column in ("lesion_id", "image_id"):
        if column not in header:
            raise InputError(f"{path} has no column {column!r} (columns: {', '.join(header)}): take it from {_SOURCE}")
    rows: dict[str, _Row] = {}
    repeated = []
    for line, values in lines:
        value = dict(zip(header, values, strict=False))
        case, lesion = value.get("image_id", ""), value.get("lesion_id", "")
        if not case or not lesion:
            raise InputError(f"{path}, line {line}: lesion_id or image_id is empty; take the table from {_SOURCE}")
        if case in rows:
            repeated.append(case)
        rows[case] = _Row(lesion, value.get("dataset", ""))
    _refuse(repeated, f"{path} lists images more than once")
    return path, rows


def _cohort(rows: Mapping[str, _Row], table: Path, choice: SitesChoice) -> Cohort:
    lesion_of = {case: row.lesion for case, row in rows.items()}
    if choice.table is not None:
        published = sites_table.is_ham10000_table(tables.read_table(choice.table)[0])  # has nine lesions at two sites
        rows_of_table = sites_table.read_sites_table(choice.table)
        return assigned(lesion_of, "lesion", rows_of_table, choice, choice.table, majority=published)
    if not any(row.site for row in rows.values()):
        raise InputError(
            f"{table} has no column 'dataset', which names the sites (Kaggle's copy lacks it): take it from {_SOURCE}, "
            "or give --sites FILE.csv with the columns case and site"
        )
    _refuse(
        [case for case, row in rows.items() if not row.site], f"{table} names no site for images (column 'dataset')"
    )
    given = [sites_table.SiteRow(case, sites_table.checked_site(row.site, table), None) for case, row in rows.items()]
    return assigned(lesion_of, "lesion", given, choice, table, majority=True)


def _refuse(cases: Collection[str], problem: str) -> None:
    if cases:
        raise InputError(f"{problem} ({len(cases)}: {_some(sorted(cases))}): take the table from {_SOURCE}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
