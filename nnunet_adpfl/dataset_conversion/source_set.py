"""What a converter finds in a downloaded data set: cases with their files, labels, units and sites. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl.cohort import Cohort


class BrokenCaseError(Exception):
    """One case of the source cannot be used; the text says why. All broken cases of a set are reported together."""


@dataclass(frozen=True)
class Options:
    """How a data set is converted.

    Attributes:
        linked: link files that are taken as they are, instead of copying them.
        plain_labels: the source's classes as nnU-Net's, instead of the regions that the challenge evaluates.
    """

    linked: bool = False
    plain_labels: bool = False


@dataclass(frozen=True)
class SourceCase:
    """Files of one case; a file that is missing on disk makes the case broken.

    Attributes:
        images: one file with all channels, or one file a channel in nnU-Net's order.
        label: None for a case that is only predicted (imagesTs).
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        return self.images if self.label is None else (*self.images, self.label)


# (case, folder for images, folder for labels): checks a case and writes it; BrokenCaseError where it is unusable.
# Called from several threads.
ConvertCase = Callable[[SourceCase, Path, Path], None]


@dataclass(frozen=True)
class SourceSet:
    """A data set as found.

    Attributes:
        converter: name of the set for `adpfl convert`; part of the signature of what is written.
        name: its name in nnU-Net unless the user gives another.
        dataset_json: nnU-Net's dataset.json without ``numTraining``.
        cases: cases to train with; names without repetition.
        cohort: units and sites of exactly these cases, or None (written later by ``adpfl cohort``).
        convert_case: writes one case.
        test_cases: cases for imagesTs, in the challenge's own test or validation set.
        splits: the challenge's own folds (train and val of each), or None.
        linked: files are linked where nothing in them changes.
    """

    converter: str
    name: str
    dataset_json: Mapping[str, Any]
    cases: tuple[SourceCase, ...]
    cohort: Cohort | None
    convert_case: ConvertCase
    test_cases: tuple[SourceCase, ...] = ()
    splits: tuple[Mapping[str, tuple[str, ...]], ...] | None = None
    linked: bool = False
