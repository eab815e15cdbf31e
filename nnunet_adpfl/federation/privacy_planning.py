"""Makes the privacy plan: nnU-Net's plan says how to train on these images, this one what it may cost in privacy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_adpfl import folds
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.federation.preprocessing import resolved
from nnunet_adpfl.privacy import accounting, mechanism
from nnunet_adpfl.privacy.choices import DEFAULT_EPSILON, Choice, Request, default_delta, explained_fields
from nnunet_adpfl.privacy.plan import FingerprintRelease, PrivacyPlan, Rounds, parse
from nnunet_adpfl.privacy.planned_images import PlannedImages, planned_images
from nnunet_adpfl.privacy.planner import plan_training
from nnunet_adpfl.trainers.prepared_fold import plans_digest

DEFAULT_LOCAL_STEPS = Rounds().local_steps
_OF_PERCENTILE = {"clip_norm", "clip_norm_min", "clip_norm_max", "quantile", "count_noise_ratio", "max_log_step_noise"}


@dataclass(frozen=True)
class PrivacyChoices:
    """What a user may choose; None leaves a field to the planner, or to its default.

    Attributes:
        epsilon, delta: the promise; delta defaults to the power of ten at or below 1/(10 N).
        compute: the most patches to process over the training of all sites together; None: each training unit is drawn 50 times.
        steps: of each site, over the whole training.
        sampling_rate: probability of each unit to be drawn in a step.
        sections: section of the privacy plan -> field -> value, or field -> value, for everything else.
    """

    epsilon: float | None = None
    delta: float | None = None
    compute: int | None = None
    steps: int | None = None
    reserve_steps: int | None = None
    sampling_rate: float | None = None
    patches_per_unit: int | None = None
    validation: str | None = None
    seed: int | None = None
    sections: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: Path | None = None


@dataclass(frozen=True)
class PlannedPrivacy:
    """A privacy plan, and why its fields are as they are (``section.field`` -> choice)."""

    plan: PrivacyPlan
    choices: dict[str, Choice]


def plan_privacy(
    plans: dict[str, Any],
    cohort: Cohort,
    splits: Sequence[folds.Split],
    fingerprint: str,
    choices: PrivacyChoices,
    release: FingerprintRelease | None = None,
    *,
    configuration: str | None = None,
) -> PlannedPrivacy:
    """The privacy plan of one configuration, noise calibrated for its steps and reserve.

    Args:
        plans: nnU-Net's plan; its digest is part of the privacy plan.
        fingerprint: how that plan was made: ``pooled``, ``dp`` or ``public``.
        release: the noisy fingerprint that it was made from, where it is ``dp``; the noise is calibrated to both.
        configuration: whose images and patches the planner goes by; None: it knows nothing of them.

    Raises InputError naming the field that is out of range.
    """
    units = units_of_folds(cohort, splits)
    images = None if configuration is None else planned_images(plans, resolved(plans, configuration))
    content, reasons = _chosen(cohort, units, fingerprint, choices, release, images)
    digests = {"cohort_digest": cohort.digest(), "plans_digest": plans_digest(plans)}
    plan = mechanism.calibrated(parse({**content, **digests}, "privacy plan"))
    accountant = "the Renyi filter" if plan.is_data_driven else "privacy loss distributions"
    why = f"the least that keeps steps and reserve within epsilon and delta, by {accountant}"
    noise = _given_noise(plan) if content.get("noise_multiplier") is not None else Choice(plan.noise_multiplier or 0.0, why)
    all_reasons = {**reasons, "noise_multiplier": noise}
    return PlannedPrivacy(plan, {name: all_reasons[name] for name in explained_fields(plan.clipping.method)})


def check_choices(
    cohort: Cohort, fingerprint: str, choices: PrivacyChoices, release: FingerprintRelease | None = None
) -> None:
    """InputError for choices that no privacy plan of this cohort can have; for before the long work of planning."""
    units = {folds.ALL: {site: len(cohort.units(site)) for site in cohort.sites}}
    _chosen(cohort, units, fingerprint, choices, release)


def _chosen(
    cohort: Cohort,
    units: Mapping[str, Mapping[str, int]],
    fingerprint: str,
    choices: PrivacyChoices,
    release: FingerprintRelease | None,
    images: PlannedImages | None = None,
) -> tuple[dict[str, Any], dict[str, Choice]]:
    """Content of the privacy plan but for what it belongs to, and why it is so."""
    if choices.compute is not None and choices.compute < 1:
        raise InputError(f"--compute {choices.compute} must be 1 patch or more")
    most = max(sum(sites.values()) for sites in units.values())
    promise = {
        "epsilon": _promised(choices.epsilon, DEFAULT_EPSILON, "the default promise"),
        "delta": _promised(choices.delta, default_delta(most), f"a tenth of 1/N or less, for N = {most}"),
    }
    content: dict[str, Any] = {
        "unit": cohort.unit_kind,
        **{name: choice.value for name, choice in promise.items()},
        "training_units": units,
        "fingerprint": fingerprint,
        "fingerprint_release": None if release is None else release.model_dump(),
        **{name: dict(values) if isinstance(values, Mapping) else values for name, values in choices.sections.items()},
    }
    for name in ("sampling_rate", "steps", "reserve_steps", "patches_per_unit", "validation", "seed"):
        if getattr(choices, name) is not None:
            content[name] = getattr(choices, name)
    if choices.initial_weights is not None:
        content["initial_weights"] = declared_public(choices.initial_weights)
    reasons = plan_training(_request(content, _checked(content), choices, images))
    for name, choice in reasons.items():
        section, _, field_name = name.rpartition(".")
        (content.setdefault(section, {}) if section else content).setdefault(field_name, choice.value)
    return content, {**promise, **reasons}


def _given_noise(plan: PrivacyPlan) -> Choice:
    """InputError where it is too little for the plan's own epsilon; nobody should find that out when training starts."""
    try:
        mechanism.make(plan, folds.ALL)
    except PrivacyRefusedError as error:
        raise InputError(str(error)) from None
    return Choice(plan.noise_multiplier or 0.0, "given", given=True)


def _promised(given: float | None, default: float, why: str) -> Choice:
    return Choice(default, why) if given is None else Choice(given, "given", given=True)


def _checked(content: Mapping[str, Any]) -> PrivacyPlan:
    """The content as a plan, stand-ins where it is open: InputError for what the user gave and no plan can have."""
    open_fields = {"sampling_rate": 1.0, "steps": 1, "reserve_steps": 0, "cohort_digest": "", "plans_digest": ""}
    plan = parse({**open_fields, **content}, "privacy plan")
    measure = accounting.epsilon_rdp if plan.is_data_driven else accounting.epsilon
    alone, release = measure(mechanism.fingerprint_events(plan), plan.delta), plan.fingerprint_release
    if release is not None and alone >= plan.epsilon:
        raise InputError(
            f"--fingerprint-noise {release.noise_multiplier:g} alone costs epsilon {alone:.3g} and leaves nothing of {plan.epsilon:g} "
            "for the training: take more noise, or a larger --epsilon"
        )
    return plan


def _request(
    content: Mapping[str, Any], plan: PrivacyPlan, choices: PrivacyChoices, images: PlannedImages | None
) -> Request:
    """What the planner has to know; fields that the user left open are None."""
    clipping, optimizer = content.get("clipping", {}), content.get("optimizer", {})
    percentile = "percentile" if _OF_PERCENTILE & set(clipping) else None  # its settings are not given for nothing
    return Request(
        units=plan.fewest_units,
        epsilon=plan.epsilon,
        delta=plan.delta,
        images=images,
        compute=choices.compute,
        spent=mechanism.fingerprint_events(plan),
        local_steps=plan.rounds.local_steps,
        folds=[tuple(sites.values()) for sites in plan.training_units.values()],
        strategy=plan.rounds.strategy,
        weighting=content.get("rounds", {}).get("weights"),
        count_noise_ratio=plan.clipping.count_noise_ratio,
        steps=content.get("steps"),
        reserve_steps=content.get("reserve_steps"),
        sampling_rate=content.get("sampling_rate"),
        patches_per_unit=content.get("patches_per_unit"),
        oversample_foreground=content.get("oversample_foreground"),
        mirroring=content.get("mirroring"),
        augmentation=content.get("augmentation"),
        noise_decay=content.get("noise_decay", {}).get("final_ratio"),
        clipping_method=clipping.get("method", percentile),
        clipping_quantile=clipping.get("quantile"),
        optimizer=optimizer.get("name"),
        noise_multiplier=content.get("noise_multiplier"),
        learning_rate=optimizer.get("learning_rate"),
        momentum=plan.optimizer.momentum,
        ema_decay=optimizer.get("ema_decay"),
        tail_share=plan.optimizer.tail_share,
    )


def units_of_folds(cohort: Cohort, splits: Sequence[folds.Split]) -> dict[str, dict[str, int]]:
    """Fold -> site -> declared number of training units; a site that neither trains nor is left out as a whole is refused."""
    units = {}
    for name in [*map(str, range(len(splits))), folds.ALL]:
        fold = folds.make_fold(splits, cohort, name)
        units[name] = folds.training_units(cohort, fold)
        without = sorted(set(cohort.sites) - set(units[name]) - folds.left_out_sites(cohort, fold))
        if without:
            raise InputError(
                f"site {without[0]} has no training {cohort.unit_kind} in fold {name}; leave it out of the cohort or merge "
                "it with another site"
            )
    return units


def declared_public(path: Path) -> dict[str, str]:
    """Section ``initial_weights`` of a privacy plan that declares this file public (rule 16)."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"--initial-weights {path} cannot be read ({error.strerror})") from None
    return {"kind": "public", "file": str(path.resolve()), "sha256": digest}


def describe(plan: PrivacyPlan) -> dict[str, Any]:
    """The figures of a plan that a user wants to see at once."""
    content: dict[str, Any] = json.loads(plan.model_dump_json())
    keys = ("unit", "epsilon", "delta", "sampling_rate", "steps", "reserve_steps", "noise_multiplier", "patches_per_unit")
    return {**{key: content[key] for key in keys}, "units": content["training_units"], "hash": plan.digest()}
