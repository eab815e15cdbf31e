"""`adpfl audit`: the shipped network, engine, mechanism and training attacked by an adversary that sees every release.

Nothing is released by an audit, so no odometer is touched: its ledger lies in a temporary folder and is thrown away.
In every figure of an audit the other units cancel: the adversary subtracts their sum, what is left is noise and canary.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.experiments import audit_networks
from nnunet_adpfl.experiments.audit_networks import FOLD, SITE
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.audit import canary as canaries
from nnunet_adpfl.privacy.audit.bounds import Sample
from nnunet_adpfl.privacy.audit.release_audit import ReleaseAudit, audit_release
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import Mechanism, Permit
from nnunet_adpfl.privacy.noise import Randomness, SecretRandomness
from nnunet_adpfl.privacy.plan import NoiseDecay, PrivacyPlan, check_positive
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers.private_model import PrivateModel

CONFIDENCE = 0.999
DELTA = 1e-5
LEAST_RELEASES, MOST_RELEASES = 1_000, 20_000
_CANARY_SEED = 0  # directions of the canaries are no secret


@dataclass(frozen=True)
class Panel:
    """One histogram of an audit's figure: statistics in both worlds, what the claim says they are, the threshold."""

    title: str
    out: Sample
    inside: Sample
    threshold: float
    mu: float | None  # shift of unit normals by the claim; None where the statistic is not normal


@dataclass(frozen=True)
class AuditResult:
    """``report``: the JSON of the command; ``panels``: its figure."""

    report: dict[str, Any]
    panels: list[Panel]

    @property
    def consistent(self) -> bool:
        return bool(self.report["verdict"] == "consistent")


def quick(
    *,
    noise_multiplier: float = 1.0,
    delta: float = DELTA,
    releases: int | None = None,
    dims: Sequence[int] = (2, 3),
    randomness: Callable[[], Randomness] = SecretRandomness,
) -> AuditResult:
    """Audit one step on small real nnU-Net networks with random patches; no data set is needed.

    Args:
        releases: in each world and network; default: enough to see half the noise missing.
        randomness: tests only; real audits use the operating system's entropy.
    """
    number = _checked_number(noise_multiplier, delta, releases)
    failure = (1 - CONFIDENCE) / len(dims)
    plan = audit_networks.privacy_plan(noise_multiplier, delta)
    found, panels = [], []
    for dimensions in dims:
        note(f"audit of a {dimensions}D network: {number} releases in each world")
        planned = audit_networks.trainer(dimensions)
        model = audit_networks.build(planned, plan)
        units = audit_networks.random_units(planned)
        mechanism = mechanisms.make(plan, FOLD)
        audited, claimed, z = audit_model(mechanism, SITE, model, units, number, failure, randomness(), delta)
        found.append({"network": "PlainConvUNet", "dims": dimensions, **_sizes(model), **audited.figures})
        found[-1]["violations"] = audited.violations
        panels.append(Panel(f"{dimensions}D, one step", *audited.statistics, audited.rates.threshold, 1 / z))
    report = {"steps": 1, "epsilon_claimed": claimed, "epsilon_lower_bound": _largest(found, "epsilon_lower_bound")}
    return AuditResult({**report, **summary(found, delta, z, number), "networks": found}, panels)


def audit_model(
    mechanism: Mechanism,
    site: str,
    model: PrivateModel,
    units: Sequence[UnitPatches],
    number: int,
    failure: float,
    randomness: Randomness,
    delta: float,
) -> tuple[ReleaseAudit, float, float]:
    """The audit of one clipped sum of these units on this model, its claimed epsilon, and z of its event."""
    events, permit = authorised(mechanism, 1)
    claimed = accounting.epsilon(events, delta)
    clip_norm, z = mechanism.plan.clipping.clip_norm, permit.noise_multipliers[0]
    rule = mechanism.clip_rule(clip_norm)
    without = model.engine.clipped_sum(iter(units), rule)
    changes = canaries.differences(
        model.engine, units, without, model.trained, rule, clip_norm, np.random.default_rng(_CANARY_SEED)
    )
    audited = audit_release(
        mechanism, site, without, changes, noise_multiplier=z, claimed_epsilon=claimed, delta=delta, number=number,
        failure=failure, randomness=randomness,
    )  # fmt: skip
    return audited, claimed, z


def authorised(mechanism: Mechanism, steps: int) -> tuple[list[dict[str, Any]], Permit]:
    """Events and permit of ``steps`` steps as a run gets them, from a ledger that is thrown away: no odometer."""
    plan = mechanism.plan
    first = {
        "composition": "declared", "unit": plan.unit, "adjacency": plan.adjacency, "delta": plan.delta,
        "plan_hash": plan.digest(), "units_digest": "none", "declared_steps": steps,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.start(Path(folder) / ledgers.FILE_NAME, "audit", SITE, [], first)
        permit = mechanism.authorise(ledger, 0, steps, round_index=0, attempt=0)
        return [dict(event) for event in ledger.events()], permit


def with_noise(plan: PrivacyPlan, noise_multiplier: float | None) -> PrivacyPlan:
    """The plan with another constant noise: audits the same code where less noise makes the attack sharper."""
    if noise_multiplier is None:
        return plan
    check_positive(noise_multiplier=noise_multiplier)
    no_target = 1e9  # the audit measures epsilon, it does not keep to one
    return plan.model_copy(
        update={"noise_multiplier": noise_multiplier, "epsilon": no_target, "noise_decay": NoiseDecay()}
    )


def one_step(plan: PrivacyPlan, noise_multiplier: float) -> PrivacyPlan:
    """One step in which everyone takes part: what a release is once the canary was drawn."""
    changes = {"sampling_rate": 1.0, "steps": 1, "reserve_steps": 0, "fingerprint": "public", "fingerprint_release": None}
    return with_noise(plan.model_copy(update=changes), noise_multiplier)


def default_releases(noise_multiplier: float) -> int:
    """Enough for a lower bound of 0.4 of the truth: the standard error of a rate against a shift of 1/z."""
    return min(MOST_RELEASES, math.ceil(2_000 * max(1.0, noise_multiplier**2)))


def summary(found: Sequence[dict[str, Any]], delta: float, noise_multiplier: float, number: int) -> dict[str, Any]:
    """The keys that every audit has; ``found`` are its parts."""
    violations = [sentence for part in found for sentence in part["violations"]]
    return {
        "confidence": CONFIDENCE,
        "verdict": "violated" if violations else "consistent",
        "violations": violations,
        "delta": delta,
        "noise_multiplier": noise_multiplier,
        "releases": number,
        "mu_claimed": 1 / noise_multiplier,
        "mu_lower_bound": _largest([part for part in found if "mu_lower_bound" in part], "mu_lower_bound"),
        "sufficient_power": all(part["power"]["sufficient"] for part in found),
    }


def _largest(found: Sequence[dict[str, Any]], key: str) -> float:
    return max(float(part[key]) for part in found)


def _sizes(model: PrivateModel) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in model.trained.values()), "tensors": len(model.trained)}


def _checked_number(noise_multiplier: float, delta: float, releases: int | None) -> int:
    check_positive(noise_multiplier=noise_multiplier)
    if not 0 < delta < 0.25:
        raise InputError(f"--delta must lie between 0 and 1/(number of units), here below 0.25, not {delta}")
    number = default_releases(noise_multiplier) if releases is None else releases
    if number < LEAST_RELEASES:
        raise InputError(f"--releases {number} is too few to show anything: take {LEAST_RELEASES} or more")
    return number
