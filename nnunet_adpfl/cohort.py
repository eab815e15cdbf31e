"""The cohort: which case belongs to which unit of privacy (patient or lesion) and to which site.

File ``cohort.json``::

    {"format": 1, "unit": "patient", "cases": {"case_001": {"unit": "p17", "site": "site-a"}, ...}}

The copy in ``nnUNet_preprocessed/DATASET`` is the one that trainers read; its digest is in the privacy plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.errors import InputError

FILE_NAME = "cohort.json"
UNIT_KINDS = ("patient", "lesion", "case")


@dataclass(frozen=True)
class CohortEntry:
    """Unit of privacy and site of one case."""

    unit: str
    site: str


@dataclass(frozen=True)
class Cohort:
    """All cases of a data set with unit and site. A unit belongs to exactly one site (checked on construction).

    Attributes:
        unit_kind: what a unit is: ``patient``, ``lesion`` (no patient ids exist) or ``case``.
        cases: case identifier -> entry.
    """

    unit_kind: str
    cases: Mapping[str, CohortEntry] = field(repr=False)  # a log line must not list patients

    def __post_init__(self) -> None:
        if self.unit_kind not in UNIT_KINDS:
            raise InputError(f"cohort: unit {self.unit_kind!r} is unknown; use one of {', '.join(UNIT_KINDS)}")
        if not self.cases:
            raise InputError("cohort: it holds no case")
        site_of_unit: dict[str, str] = {}
        for case, entry in self.cases.items():
            if not names_a_file(case):
                raise InputError(f"cohort: case {case!r} cannot name a file: use letters, digits, '-', '_' and '.'")
            if not entry.unit or not entry.site:
                raise InputError(f"cohort: case {case} has an empty unit or site")
            if not names_a_folder(entry.site):
                raise InputError(
                    f"cohort: site {entry.site!r} cannot name a folder: use letters, digits, blanks, '-' and '_'"
                )
            if site_of_unit.setdefault(entry.unit, entry.site) != entry.site:
                raise InputError(
                    f"cohort: {self.unit_kind} {entry.unit} is at two sites ({site_of_unit[entry.unit]} and {entry.site}); "
                    "give each unit to one site"
                )
        object.__setattr__(self, "cases", MappingProxyType(dict(sorted(self.cases.items()))))

    @property
    def sites(self) -> list[str]:
        return sorted({entry.site for entry in self.cases.values()})

    def units(self, site: str | None = None) -> list[str]:
        """Units in sorted order, of one site or of all."""
        return sorted({entry.unit for entry in self.cases.values() if site is None or entry.site == site})

    def cases_of(self, unit: str) -> list[str]:
        return [case for case, entry in self.cases.items() if entry.unit == unit]

    def cases_by_unit(self, site: str | None = None, within: set[str] | None = None) -> dict[str, list[str]]:
        """Unit -> its cases, for one site or all, restricted to the cases in ``within`` when given."""
        grouped: dict[str, list[str]] = {}
        for case, entry in self.cases.items():
            if (site is None or entry.site == site) and (within is None or case in within):
                grouped.setdefault(entry.unit, []).append(case)
        return dict(sorted(grouped.items()))

    def to_json(self) -> dict[str, object]:
        cases = {case: {"unit": entry.unit, "site": entry.site} for case, entry in self.cases.items()}
        return {"format": 1, "unit": self.unit_kind, "cases": cases}

    def digest(self) -> str:
        """sha256 of the content (not of the file's formatting)."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> Path:
        path = folder / FILE_NAME
        atomic_files.write_json(path, self.to_json())
        return path


def names_a_folder(site: str) -> bool:
    """Whether a site's name can be the name of its folder; what it spent lies there."""
    return names_a_file(site) and not (len(site) > 80 or set(site) & set(':*?"<>|'))


def names_a_file(case: str) -> bool:
    """Whether files may be named after a case; a name with a folder in it would be written elsewhere."""
    return case.isprintable() and 0 < len(case.encode()) <= 200 and not set(case) & set("/\\") and not case.startswith(".")


def _text(value: object) -> str:
    """A number is a name too; anything else is not."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"{type(value).__name__} where a name should be")
    return str(value)


def load(folder: Path) -> Cohort:
    """Read ``cohort.json`` from a data set folder.

    Raises InputError when it is missing or malformed.
    """
    path = folder / FILE_NAME
    try:
        content = json_files.load(path)
        entries = {case: CohortEntry(_text(value["unit"]), _text(value["site"])) for case, value in content["cases"].items()}
        return Cohort(str(content["unit"]), entries)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `adpfl cohort DATASET --sites FILE.csv`, then `adpfl plan`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): write it again with `adpfl cohort`") from None
