"""Makes the privacy plan: nnU-Net's plan says how to train on these images, this one what it may cost in privacy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_adpfl import folds
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import accounting, mechanism
from nnunet_adpfl.privacy.plan import FingerprintRelease, PrivacyPlan, Rounds, parse
from nnunet_adpfl.trainers.prepared_fold import plans_digest

DEFAULT_EPSILON = 8.0
DEFAULT_STEPS = 200
DEFAULT_SAMPLING_RATE = 0.25
DEFAULT_LOCAL_STEPS = Rounds().local_steps
RESERVE_SHARE = 0.1  # of the steps, but at least two rounds: enough for a few interrupted rounds


@dataclass(frozen=True)
class PrivacyChoices:
    """What a user may choose; None leaves a field to its default.

    Attributes:
        epsilon, delta: the promise; delta defaults to the power of ten at or below 1/(10 N).
        steps: of each site, over the whole training.
        sampling_rate: probability of each unit to be drawn in a step.
        sections: section of the privacy plan -> field -> value, or field -> value, for everything else.
    """

    epsilon: float | None = None
    delta: float | None = None
    steps: int | None = None
    reserve_steps: int | None = None
    sampling_rate: float | None = None
    patches_per_unit: int | None = None
    validation: str | None = None
    seed: int | None = None
    sections: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: Path | None = None


def make_privacy_plan(
    plans: dict[str, Any],
    cohort: Cohort,
    splits: Sequence[folds.Split],
    fingerprint: str,
    choices: PrivacyChoices,
    release: FingerprintRelease | None = None,
) -> PrivacyPlan:
    """The privacy plan of one configuration, noise calibrated for its steps and reserve.

    Args:
        plans: nnU-Net's plan; its digest is part of the privacy plan.
        fingerprint: how that plan was made: ``pooled``, ``dp`` or ``public``.
        release: the noisy fingerprint that it was made from, where it is ``dp``; the noise is calibrated to both.

    Raises InputError naming the field that is out of range.
    """
    units = units_of_folds(cohort, splits)
    digests = {"cohort_digest": cohort.digest(), "plans_digest": plans_digest(plans)}
    content = _chosen(cohort, units, fingerprint, choices, release)
    return mechanism.calibrated(parse({**content, **digests}, "privacy plan"))


def check_choices(
    cohort: Cohort, fingerprint: str, choices: PrivacyChoices, release: FingerprintRelease | None = None
) -> None:
    """InputError for choices that no privacy plan of this cohort can have; for before the long work of planning."""
    units = {folds.ALL: {site: len(cohort.units(site)) for site in cohort.sites}}
    unknown = {"cohort_digest": "", "plans_digest": ""}
    plan = parse({**_chosen(cohort, units, fingerprint, choices, release), **unknown}, "privacy plan")
    measure = accounting.epsilon_rdp if plan.is_data_driven else accounting.epsilon
    alone = measure(mechanism.fingerprint_events(plan), plan.delta)
    if release is not None and alone >= plan.epsilon:
        raise InputError(
            f"--fingerprint-noise {release.noise_multiplier:g} alone costs epsilon {alone:.3g} and leaves nothing of {plan.epsilon:g} "
            "for the training: take more noise, or a larger --epsilon"
        )


def _chosen(
    cohort: Cohort,
    units: Mapping[str, Mapping[str, int]],
    fingerprint: str,
    choices: PrivacyChoices,
    release: FingerprintRelease | None,
) -> dict[str, Any]:
    """Content of the privacy plan but for what it belongs to."""
    steps = choices.steps if choices.steps is not None else DEFAULT_STEPS
    sections = {name: dict(values) if isinstance(values, Mapping) else values for name, values in choices.sections.items()}
    local_steps = sections.get("rounds", {}).get("local_steps", DEFAULT_LOCAL_STEPS)
    content: dict[str, Any] = {
        "unit": cohort.unit_kind,
        "epsilon": _or_default(choices.epsilon, DEFAULT_EPSILON),
        "delta": _or_default(choices.delta, default_delta(max(sum(sites.values()) for sites in units.values()))),
        "training_units": units,
        "sampling_rate": _or_default(choices.sampling_rate, DEFAULT_SAMPLING_RATE),
        "steps": steps,
        "reserve_steps": _or_default(choices.reserve_steps, _default_reserve(steps, local_steps)),
        "fingerprint": fingerprint,
        "fingerprint_release": None if release is None else release.model_dump(),
        **sections,
    }
    for name in ("patches_per_unit", "validation", "seed"):
        if getattr(choices, name) is not None:
            content[name] = getattr(choices, name)
    if choices.initial_weights is not None:
        content["initial_weights"] = declared_public(choices.initial_weights)
    return content


def units_of_folds(cohort: Cohort, splits: Sequence[folds.Split]) -> dict[str, dict[str, int]]:
    """Fold -> site -> declared number of training units; a site without any in some fold is refused."""
    units = {}
    for name in [*map(str, range(len(splits))), folds.ALL]:
        fold = folds.make_fold(splits, cohort, name)
        units[name] = folds.training_units(cohort, fold)
        without = sorted(set(cohort.sites) - set(units[name]))
        if without:
            raise InputError(
                f"site {without[0]} has no training {cohort.unit_kind} in fold {name}; leave it out of the cohort or merge "
                "it with another site"
            )
    return units


def _or_default(value: Any, default: Any) -> Any:
    return default if value is None else value


def default_delta(units: int) -> float:
    """The power of ten at or below 1/(10 N)."""
    return float(10.0 ** math.floor(math.log10(1 / (10 * units))))


def _default_reserve(steps: int, local_steps: Any) -> int:
    """``local_steps`` may be a user's typing error here; the plan's own check names it."""
    local_steps = local_steps if isinstance(local_steps, int) and local_steps > 0 else DEFAULT_LOCAL_STEPS
    return max(math.ceil(RESERVE_SHARE * steps), 2 * local_steps)


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
