"""Everything that a run reads before its first step, checked: plans, privacy plan, cohort, splits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folds, json_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.folds import Fold
from nnunet_adpfl.nnunet_compat.training import check_supported
from nnunet_adpfl.privacy import mechanism
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.plan import PrivacyPlan

TRAINERS = ("nnUNetTrainerNP", "nnUNetTrainerDP", "nnUNetTrainerADP")


@dataclass(frozen=True)
class PreparedFold:
    """One fold of one configuration, ready to train.

    Attributes:
        preprocessed: nnUNet_preprocessed/DATASET.
        plans: nnU-Net's plan.
        plan: the privacy plan as this trainer uses it, noise calibrated.
        cohort: case -> unit, site.
        fold: training and validation cases.
    """

    preprocessed: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    plan: PrivacyPlan
    cohort: Cohort
    fold: Fold

    @property
    def sites(self) -> list[str]:
        """Sites that have units to train with."""
        return sorted(self.plan.units_at(self.fold.name))

    @property
    def left_out_sites(self) -> list[str]:
        """Sites of the cohort that only validate (leave-one-site-out)."""
        return sorted(folds.left_out_sites(self.cohort, self.fold))

    def cases_by_unit(self, site: str | None = None) -> dict[str, list[str]]:
        """Training unit -> its cases, of one site or of all."""
        return self.cohort.cases_by_unit(site, set(self.fold.train))

    def public_cases_by_unit(self) -> dict[str, list[str]]:
        """Validation unit -> its cases, where the privacy plan declares validation public.

        Raises PrivacyRefusedError where it does not, or where such a unit trains as well (fold ``all``).
        """
        if self.plan.validation != "public":
            raise PrivacyRefusedError("privacy plan: validation units are private, so training may not look at them")
        public = self.cohort.cases_by_unit(None, set(self.fold.val))
        if both := sorted(set(public) & set(self.cases_by_unit())):
            raise PrivacyRefusedError(
                f"adaptation.signal public_loss: {self.plan.unit} {both[0]} also trains in fold {self.fold.name}, so its loss "
                "is not public; use update_agreement"
            )
        return public

    def check_models_for_all(self, plan: PrivacyPlan) -> None:
        """InputError where each site would have a model of its own, and a site that only validates none."""
        if plan.rounds.strategy == "local" and self.left_out_sites:
            raise InputError(
                f"fold {self.fold.name} leaves out site {self.left_out_sites[0]}, and rounds.strategy local trains a model for each site "
                "alone: none is for that site; take another strategy or a fold of `adpfl plan --folds patients`"
            )

    def with_plan(self, plan: PrivacyPlan) -> PreparedFold:
        """The same fold with another privacy plan, noise calibrated; it must belong to the data like the first one.

        Raises PrivacyRefusedError or InputError where it does not.
        """
        _check_belongs(plan, self.plans, self.cohort, self.fold, self.preprocessed)
        self.check_models_for_all(plan)
        changed = dataclasses.replace(self, plan=mechanism.calibrated(plan))
        if plan.is_data_driven and plan.adaptation.signal == "public_loss":
            changed.public_cases_by_unit()  # refused before the run begins
        return changed

    @property
    def data_folder(self) -> Path:
        return self.preprocessed / str(self.plans["configurations"][self.configuration]["data_identifier"])


def load(
    preprocessed: Path,
    plans_name: str,
    configuration: str,
    fold: str | int,
    trainer: str,
    *,
    local_steps: int | None = None,
    strategy: str | None = None,
) -> PreparedFold:
    """Read and check all of it.

    Raises InputError or PrivacyRefusedError: unknown plans, configuration or fold; a privacy plan that is missing or was
    made for another cohort, plan or number of units; a unit on both sides of a fold.
    """
    plans = json_files.load_object(preprocessed / f"{plans_name}.json", "run `adpfl plan` for this data set")
    dataset_json = json_files.load_object(preprocessed / "dataset.json", "run `adpfl plan` for this data set")
    check_supported(plans, configuration)
    declared = privacy_plans.load(preprocessed / privacy_plans.file_name(plans_name, configuration))
    cohort = cohorts.load(preprocessed)
    chosen = folds.make_fold(folds.load_splits(preprocessed, cohort), cohort, fold)
    _check_belongs(declared, plans, cohort, chosen, preprocessed)
    prepared = PreparedFold(preprocessed, plans, dataset_json, configuration, declared, cohort, chosen)
    return prepared.with_plan(variant(declared, trainer, local_steps, strategy))


def variant(
    plan: PrivacyPlan, trainer: str, local_steps: int | None = None, strategy: str | None = None
) -> PrivacyPlan:
    """The privacy plan as a trainer uses it: DP clips at a fixed norm with constant noise that is used as it is, NP does neither.

    NP has a learning rate of its own, because its gradients are not divided by the clip norm.
    """
    check_trainer(trainer)
    content = plan.model_dump(mode="json")
    if trainer != "nnUNetTrainerNP":
        content["update_filter"] = {}
    if trainer != "nnUNetTrainerADP":
        content["projection"] = {}
    if trainer == "nnUNetTrainerDP":
        content |= {"noise_decay": {}, "adaptation": {}, "noise_multiplier": None}
        content["clipping"]["method"] = "fixed"
    elif trainer == "nnUNetTrainerNP":
        content |= {"noise_decay": {}, "adaptation": {}, "noise_multiplier": None, "clipping": {"method": "none"}}
        content["optimizer"]["learning_rate"] = plan.optimizer.learning_rate_non_private
    if local_steps is not None:
        content["rounds"]["local_steps"] = local_steps
    if strategy is not None:
        content["rounds"]["strategy"] = strategy
    return privacy_plans.parse(content, "privacy plan")


def check_trainer(trainer: str) -> None:
    if trainer not in TRAINERS:
        raise InputError(f"trainer {trainer!r} is unknown; use one of {', '.join(TRAINERS)}")


def plans_digest(plans: dict[str, Any]) -> str:
    """sha256 of an nnU-Net plan's content."""
    content = {key: value for key, value in plans.items() if key != "continue_training"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_belongs(plan: PrivacyPlan, plans: dict[str, Any], cohort: Cohort, fold: Fold, folder: Path) -> None:
    if cohort.digest() != plan.cohort_digest:
        raise PrivacyRefusedError(
            f"{folder / cohorts.FILE_NAME} is not the cohort that the privacy plan was made for: run `adpfl plan` again"
        )
    if plans_digest(plans) != plan.plans_digest:
        raise PrivacyRefusedError(
            f"{plans['plans_name']}.json was changed after the privacy plan was made from it: run `adpfl plan` again"
        )
    declared, found = plan.units_at(fold.name), folds.training_units(cohort, fold)
    without = sorted((set(declared) | set(cohort.sites)) - set(found) - folds.left_out_sites(cohort, fold))
    if without:
        raise InputError(f"site {without[0]} has no training {plan.unit} in fold {fold.name}; leave it out of the cohort")
    if declared != found:
        raise PrivacyRefusedError(
            f"the splits have {found} training units in fold {fold.name}, the privacy plan declares {declared}: run "
            "`adpfl plan` again"
        )
    if plan.unit != cohort.unit_kind:
        raise PrivacyRefusedError(f"the privacy plan protects a {plan.unit}, the cohort knows {cohort.unit_kind}s")
