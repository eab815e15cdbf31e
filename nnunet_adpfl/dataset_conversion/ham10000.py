"""HAM10000 (dermoscopy, 10,015 images of 7,470 lesions from four sites) -> nnU-Net raw data set.

The set names no patients, so the lesion is the unit of privacy. What lies where differs from copy to copy (Dataverse,
Kaggle, nested zip files): images, masks and the metadata table are found by name, anywhere below the source folder.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_adpfl import progress
from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.dataset_conversion import photo_case, raw_dataset, sites_table
from nnunet_adpfl.dataset_conversion.raw_dataset import RawDataset, SourceCase, WrittenDataset
from nnunet_adpfl.dataset_conversion.synthetic.generated_set import NOTICE_FILE
from nnunet_adpfl.errors import InputError

NAME = "HAM10000"
LABELS = {"background": 0, "lesion": 1}
LICENCE = "CC BY-NC 4.0"
REFERENCE = "Tschandl, Rosendahl, Kittler (2018), doi:10.7910/DVN/DBW86T"
_SOURCE = "the Harvard Dataverse, doi:10.7910/DVN/DBW86T"
_IMAGE = re.compile(r"(ISIC_\d+)\.jpe?g", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d+)_segmentation\.png", re.IGNORECASE)
_METADATA = re.compile(r"HAM10000_metadata(\.(tab|csv|tsv|txt))?", re.IGNORECASE)
_NOT_OURS = re.compile(r"ISIC2018_Task3_Test.*|__MACOSX", re.IGNORECASE)  # images without masks that come with the set
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


def convert(
    source: Path, number: int, *, sites: Path | None = None, name: str | None = None, overwrite: bool = False
) -> WrittenDataset:
    """Convert a HAM10000 folder; images become PNG without loss, masks become labels 0 and 1.

    Args:
        sites: table case -> site[, patient] to use instead of the column ``dataset``. A patient column makes the
            patient the unit; a patient's lesions must then be his alone.
        name: data set name; default HAM10000.

    Raises InputError for a folder, table or case that cannot be used; nothing is written then.
    """
    name = name or NAME
    raw_dataset.target_folder(number, name)  # refuse a bad number or name before any file is read
    files = _find(source)
    table, rows = _read_metadata(files.metadata, source)
    cases = _cases(files, source)
    _refuse([case for case in cases if case not in rows], f"{table} has no row for images that are there")
    left_out = len(rows.keys() - cases.keys())
    if left_out:
        progress.note(f"{left_out} rows of {table.name} have neither image nor mask in {source} and are left out")
    known = {case: row for case, row in rows.items() if case in cases}
    cohort = _cohort_from_metadata(known, table) if sites is None else _cohort_from_table(known, sites)
    dataset_json = {
        "channel_names": photo_case.CHANNEL_NAMES,
        "labels": LABELS,
        "file_ending": photo_case.ENDING,
        "name": NAME,
        **_origin(source),
    }
    return raw_dataset.write(
        RawDataset(number, name, "ham10000", dataset_json, tuple(cases.values()), cohort, _convert_case),
        overwrite=overwrite,
    )


def _origin(source: Path) -> dict[str, str]:
    """Licence and reference, or the notice of a made-up set (`adpfl synth`), which is under nobody's licence."""
    notice = source / NOTICE_FILE
    if notice.is_file():
        return {"description": " ".join(notice.read_text(encoding="utf-8").split())}
    return {"licence": LICENCE, "reference": REFERENCE}


def _convert_case(case: SourceCase, images: Path, labels: Path) -> None:
    photo, mask = photo_case.read_photo(case.image), photo_case.read_mask(case.label)
    photo_case.check_same_size(photo, mask)
    photo_case.write(photo, mask, case.name, images, labels)


def _find(source: Path) -> _Files:
    if not source.is_dir():
        raise InputError(f"{source} is no folder: give the one with HAM10000_images_part_1, the masks and the metadata")
    files = _Files()
    for path in _walk(source):
        if match := _IMAGE.fullmatch(path.name):
            _add(files.images, match.group(1).upper(), path)
        elif match := _MASK.fullmatch(path.name):
            _add(files.masks, match.group(1).upper(), path)
        elif _METADATA.fullmatch(path.name):
            files.metadata.append(path)
    if not files.images or not files.masks:
        lacking = "images (ISIC_0024306.jpg ...)" if not files.images else "masks (ISIC_0024306_segmentation.png ...)"
        raise InputError(f"{source} holds no {lacking}: unpack HAM10000 from {_SOURCE}, there")
    return files


def _walk(source: Path) -> Iterator[Path]:
    """All files, links to folders followed once; order is the same everywhere."""
    seen: set[str] = set()
    for folder, names, files in os.walk(source, followlinks=True):
        seen.add(os.path.realpath(folder))
        below = sorted(name for name in names if os.path.realpath(os.path.join(folder, name)) not in seen)
        skipped = [name for name in below if _NOT_OURS.fullmatch(name)]
        if skipped:
            progress.note(f"left out, not part of the labelled set: {', '.join(skipped)}")
        names[:] = [name for name in below if name not in skipped]
        yield from (Path(folder) / name for name in sorted(files))


def _add(found: dict[str, Path], case: str, path: Path) -> None:
    """Some copies hold all files twice, in two spellings of the folder's name: fine while they are the same."""
    earlier = found.setdefault(case, path)
    if earlier != path and not filecmp.cmp(earlier, path, shallow=False):
        raise InputError(f"{case} is there twice and differs ({earlier} and {path}): remove one")


def _cases(files: _Files, source: Path) -> dict[str, SourceCase]:
    """Every id that has an image or a mask; where one of the two is missing, the case is broken and reported so."""
    return {
        case: SourceCase(
            case,
            files.images.get(case, source / f"{case}.jpg"),
            files.masks.get(case, source / f"{case}_segmentation.png"),
        )
        for case in sorted({*files.images, *files.masks})
    }


def _read_metadata(candidates: list[Path], source: Path) -> tuple[Path, dict[str, _Row]]:
    """The table's file and its rows by image. Of several tables, the first that knows the sites is taken."""
    if not candidates:
        raise InputError(f"{source} holds no HAM10000_metadata (.tab or .csv): take it from {_SOURCE}")
    headers = {path: sites_table.read_table(path)[0] for path in candidates}
    path = next((path for path in candidates if "dataset" in headers[path]), candidates[0])
    if len(candidates) > 1:
        progress.note(f"of {len(candidates)} metadata tables, {path} is used")
    header, lines = sites_table.read_table(path)
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


def _cohort_from_metadata(rows: Mapping[str, _Row], table: Path) -> Cohort:
    """Sites are the values of ``dataset``; a lesion that has two goes whole to the one of most of its images."""
    if not any(row.site for row in rows.values()):
        raise InputError(
            f"{table} has no column 'dataset', which names the sites (Kaggle's copy lacks it): take it from {_SOURCE}, "
            "or give --sites FILE.csv with the columns case and site"
        )
    _refuse(
        [case for case, row in rows.items() if not row.site], f"{table} names no site for images (column 'dataset')"
    )
    sites_of: dict[str, list[str]] = {}
    for row in rows.values():
        sites_of.setdefault(row.lesion, []).append(sites_table.checked_site(row.site, table))
    shared = sorted(lesion for lesion, sites in sites_of.items() if len(set(sites)) > 1)
    if shared:
        progress.note(
            f"{len(shared)} lesions have images from two sites ({_some(shared)}): each goes whole to the site of most of "
            "its images, the first where they are equal"
        )
    site_of = {lesion: Counter(sites).most_common(1)[0][0] for lesion, sites in sites_of.items()}
    return Cohort("lesion", {case: CohortEntry(row.lesion, site_of[row.lesion]) for case, row in rows.items()})


def _cohort_from_table(rows: Mapping[str, _Row], sites: Path) -> Cohort:
    """Sites from the user's table, which may also know the patients."""
    given = sites_table.read_sites_table(sites)
    lesion_of = {case: row.lesion for case, row in rows.items()}
    complete = [replace(row, patient=row.patient or lesion_of.get(row.case)) for row in given]
    unit_of = {row.case: row.patient for row in complete}
    cohort = sites_table.cohort_from_rows(complete, rows, "lesion" if unit_of == lesion_of else "patient", sites)
    unit_of_lesion: dict[str, str] = {}
    for case, entry in cohort.cases.items():
        if unit_of_lesion.setdefault(lesion_of[case], entry.unit) != entry.unit:
            raise InputError(
                f"{sites} gives lesion {lesion_of[case]} to two patients ({unit_of_lesion[lesion_of[case]]} and {entry.unit}): "
                "give each lesion to one patient"
            )
    return cohort


def _refuse(cases: Collection[str], problem: str) -> None:
    if cases:
        raise InputError(f"{problem} ({len(cases)}: {_some(sorted(cases))}): take the table from {_SOURCE}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
