"""Reads what a run left behind: manifest, privacy plan, rounds, local logs, ledgers, held-out cases. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folders, folds, json_files
from nnunet_adpfl.cohort import Cohort, names_a_file
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.folds import Fold
from nnunet_adpfl.privacy import hash_chain
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.plan import PrivacyPlan

MANIFEST_FILE_NAME = "run.json"
ROUNDS_FILE_NAME = "rounds.jsonl"
LOCAL_LOG_FILE_NAME = "local_log.jsonl"
ALL_SITES = "all-sites"  # the name that a central run has in its ledger
_LARGEST = 10**12  # of what a record may hold
_KEYS = ("kind", "dataset", "trainer", "plans", "configuration", "fold")


@dataclass(frozen=True)
class RunRecords:
    """A run folder of this plugin.

    Attributes:
        path: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIG/fold_K``, or wherever the run was put.
        manifest: content of run.json.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def preprocessed(self) -> Path:
        return folders.base_folder("nnUNet_preprocessed") / str(self.manifest["dataset"])

    @property
    def raw(self) -> Path | None:
        """The raw data set, None where nnUNet_raw is not set (evaluation does without it)."""
        try:
            return folders.base_folder("nnUNet_raw") / str(self.manifest["dataset"])
        except InputError:
            return None

    @property
    def cohort(self) -> Cohort:
        return cohorts.load(self.preprocessed)

    @property
    def fold(self) -> Fold:
        cohort = self.cohort
        return folds.make_fold(folds.load_splits(self.preprocessed, cohort), cohort, self.manifest["fold"])

    def held_out_cases(self) -> list[str]:
        """Validation cases of the fold.

        Raises InputError for the fold ``all``, which trained on every case, for a fold without validation cases, and where
        the splits are no longer those that the run was made with: it may have trained on today's validation cases.
        """
        if self.manifest["fold"] == folds.ALL:
            raise InputError(
                f"{self.path} trained on all cases (fold all), so none is held out and no score would be honest: "
                "evaluate a numbered fold"
            )
        fold = self.fold
        self._check_splits_are_unchanged(fold)
        cases = sorted(fold.val)
        if not cases:
            raise InputError(f"fold {self.manifest['fold']} has no validation case, so there is nothing to evaluate")
        return cases

    def _check_splits_are_unchanged(self, fold: Fold) -> None:
        cohort, train = self.cohort, set(fold.train)
        for path in sorted({*self.path.glob(f"sites/*/{ledgers.FILE_NAME}"), *self.path.glob(ledgers.FILE_NAME)}):
            if first := next(iter(hash_chain.read(path).lines), None):
                site = None if first["site"] == ALL_SITES else str(first["site"])
                if ledgers.units_digest(sorted(cohort.cases_by_unit(site, train))) != first["units_digest"]:
                    raise InputError(
                        f"{self.path}: {folds.FILE_NAME} was changed after this run, which may have trained on what it holds out "
                        "now: restore the file"
                    )

    @property
    def privacy_plan(self) -> PrivacyPlan:
        return privacy_plans.load(self.path / privacy_plans.FROZEN_FILE_NAME)

    def rounds(self) -> list[dict[str, Any]]:
        """Records of finished rounds, oldest first; empty before the first one."""
        return _checked(self.path / ROUNDS_FILE_NAME)

    def local_logs(self) -> dict[str, list[dict[str, Any]]]:
        """Site -> its records of losses; a central run has one, named `ALL_SITES`. A repeated round counts once."""
        found = {path.parent.name: path for path in sorted(self.path.glob(f"sites/*/{LOCAL_LOG_FILE_NAME}"))}
        if (self.path / LOCAL_LOG_FILE_NAME).is_file():
            found[ALL_SITES] = self.path / LOCAL_LOG_FILE_NAME
        return {site: _last_of_each_round(_checked(path)) for site, path in found.items()}


def load(run: Path) -> RunRecords:
    """InputError when the folder is not a run of this plugin."""
    path = run / MANIFEST_FILE_NAME
    try:
        manifest = json_files.load(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run} is not a run folder of nnunet_adpfl: it holds no {MANIFEST_FILE_NAME}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    missing = [key for key in _KEYS if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise InputError(f"{path} is damaged: it has no {missing[0]}")
    if not names_a_file(str(manifest["dataset"])):
        raise InputError(f"{path} is damaged: dataset is {manifest['dataset']!r:.80}, which names no folder; restore it")
    return RunRecords(run, {"versions": {}, **manifest, "fold": str(manifest["fold"])})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file; a last line that a crash tore is left out, a missing file is empty."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        try:
            value = json_files.parse(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def _checked(path: Path) -> list[dict[str, Any]]:
    """Records of rounds whose numbers can be drawn; InputError naming the file and field of one that cannot."""
    records = read_lines(path)
    for record in records:
        for name in ("round", "clip_norm", "mean_loss"):
            value = record.get(name)
            kinds = (int,) if name == "round" else (int, float, type(None))
            if type(value) not in kinds or (value is not None and not -_LARGEST < value < _LARGEST):
                raise InputError(f"{path} is damaged: {name} is {value!r:.80}; restore it")
    return records


def _last_of_each_round(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    latest = {int(record["round"]): record for record in records if "round" in record}
    return [latest[number] for number in sorted(latest)]
