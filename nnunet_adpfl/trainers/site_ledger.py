"""Opens the ledger of a run for one group of units, and ties it to the odometers of the sites they come from."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import odometer as odometers
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import Mechanism, Permit, fingerprint_events
from nnunet_adpfl.privacy.odometer import Odometer
from nnunet_adpfl.privacy.plan import FingerprintRelease, PrivacyPlan
from nnunet_adpfl.trainers.private_training import BlockOutcome

LOCAL_LOG_FILE_NAME = "local_log.jsonl"


def odometer_of(preprocessed: Path, site: str) -> Odometer:
    """The odometer of a site's patients: nnUNet_preprocessed/DATASET/sites/SITE."""
    return Odometer(preprocessed / "sites" / site / odometers.FILE_NAME)


def odometers_in(preprocessed: Path) -> list[Odometer]:
    """Odometers of all sites that ever were in this data set."""
    return [Odometer(path) for path in sorted(preprocessed.glob(f"sites/*/{odometers.FILE_NAME}"))]


def open_ledger(
    path: Path,
    *,
    run: str,
    site: str,
    units: Sequence[str],
    site_odometers: Sequence[Odometer],
    mechanism: Mechanism,
    declared_steps: int,
    checkpoint_head: str | None,
    reason: str = "trained without clipping and noise",
) -> Ledger:
    """Resume the run's ledger, or start it where the run has not spent anything yet.

    Args:
        declared_steps: steps that the run takes in all; a run that takes fewer was stopped by choice, or by its budget.
        checkpoint_head: ledger head in the checkpoint that training goes on from; None before the first block.
        reason: of a run without guarantee: what its ledger says.

    Raises PrivacyRefusedError when the ledger is missing, damaged, shorter than recorded, or without its checkpoint.
    """
    digest = ledgers.units_digest(units)
    if checkpoint_head is None and not _is_begun(path) and not _has_spent(site_odometers, run, site):
        path.unlink(missing_ok=True)
        first = _first_line(mechanism.plan, digest, mechanism, declared_steps)
        ledger = Ledger.start(path, run, site, site_odometers, first)
    else:
        ledger = Ledger.resume(path, run, site, digest, site_odometers)
        if ledger.content.lines[0].get("declared_steps") != declared_steps:
            raise PrivacyRefusedError(
                f"{path}: the run was declared to have {ledger.content.lines[0].get('declared_steps')} steps, now "
                f"{declared_steps}: go on with the rounds that it began with"
            )
    if checkpoint_head is not None:
        ledger.check_contains(checkpoint_head, "the checkpoint")
    _note_fingerprint(ledger, mechanism.plan)
    _note_releases_without_guarantee(ledger, mechanism.plan, reason)
    return ledger


def pay_for_fingerprint(
    preprocessed: Path, site: str, units: Sequence[str], *, release: FingerprintRelease, unit: str, delta: float
) -> Permit:
    """Write the event of a site's noisy fingerprint; durable before the permit to add the noise is handed out.

    It has a ledger of its own, ``sites/SITE/fingerprints/RELEASE.jsonl``, and its lines in the site's odometer.

    Raises PrivacyRefusedError for a release that was paid for before: its noise was drawn then, and is never drawn again.
    """
    z, digest = release.noise_multiplier, ledgers.units_digest(units)
    first = {
        "composition": "declared", "unit": unit, "adjacency": "zero_out", "delta": delta, "target_epsilon": None,
        "plan_hash": None, "units_digest": digest, "nonce": _nonce(), "declared_steps": 0, "noise_source": "secure", "noise_terms": 4,
        "largest_block": accounting.poisson_gaussian(1.0, z, 1),
    }  # fmt: skip
    path = _fingerprint_ledger(preprocessed, site, release)
    ledger = Ledger.start(path, release.release, site, [odometer_of(preprocessed, site)], first)
    ledger.append({**accounting.gaussian(z), "release": release.release}, round_index=0, attempt=0)
    return Permit({0: z})


def check_fingerprint_paid(preprocessed: Path, site: str, units: Sequence[str], release: FingerprintRelease) -> None:
    """Refuse noisy histograms whose event is not in the site's ledger and odometer (PrivacyRefusedError)."""
    path = _fingerprint_ledger(preprocessed, site, release)
    digest = ledgers.units_digest(units)
    ledger = Ledger.resume(path, release.release, site, digest, [odometer_of(preprocessed, site)])
    paid = [event["noise_multiplier"] for event in ledger.events() if event.get("release") == release.release]
    if paid != [release.noise_multiplier]:
        raise PrivacyRefusedError(f"{path} has not paid for the noisy fingerprint beside it; restore the ledger")


def _fingerprint_ledger(preprocessed: Path, site: str, release: FingerprintRelease) -> Path:
    return preprocessed / "sites" / site / "fingerprints" / f"{release.release}.jsonl"


def note_plan(preprocessed: Path, sites: Sequence[str], plans_digest: str, fingerprint: str) -> None:
    """Note in every site's odometer how an nnU-Net plan was made: pooled, dp or public."""
    for site in sites:
        odometer_of(preprocessed, site).note_plan(plans_digest, fingerprint)


def next_attempt(ledger: Ledger, round_index: int) -> int:
    """Number of this attempt at a round: a round that the ledger paid for before was interrupted."""
    paid = [line["attempt"] for line in ledger.events() if line.get("round") == round_index]
    return max(paid, default=-1) + 1


def append_local_log(folder: Path, round_index: int, outcome: BlockOutcome) -> None:
    """Losses and times of one block: exact figures about patients, for the site's own eyes; never released."""
    record = {
        "round": round_index,
        "mean_loss": outcome.mean_loss,
        "non_finite": outcome.non_finite,
        "seconds": round(outcome.seconds, 3),
    }
    atomic_files.append_line(folder / LOCAL_LOG_FILE_NAME, json.dumps(record, allow_nan=False))


def _is_begun(path: Path) -> bool:
    """Whether the ledger has an intact line; a crash may leave the file empty, or with a torn start line alone."""
    return path.exists() and bool(hash_chain.read(path).lines)


def _has_spent(site_odometers: Sequence[Odometer], run: str, site: str) -> bool:
    lines = [odometer.last_line(run, site) for odometer in site_odometers]
    return any(line is not None and line["event"] != "start" for line in lines)


def _first_line(plan: PrivacyPlan, digest: str, mechanism: Mechanism, declared_steps: int) -> dict[str, Any]:
    composition: dict[str, Any] = {"composition": "declared"}
    if plan.is_data_driven:
        composition = {"composition": "rdp_filter", "order": plan.adaptation.order}
    return {
        **composition,
        "unit": plan.unit,
        "adjacency": plan.adjacency,
        "delta": plan.delta,
        "target_epsilon": plan.epsilon if plan.is_private else None,
        "plan_hash": plan.digest(),
        "units_digest": digest,
        "declared_steps": declared_steps,
        "planned_events": mechanism.planned_events() if plan.is_private and not plan.is_data_driven else None,
        "declarations": _declarations(plan),
        "nonce": _nonce(),
        "noise_source": plan.noise_source,
        "noise_terms": plan.noise_terms,
        "largest_block": mechanism.largest_block(plan.rounds.local_steps) if plan.is_private else None,
    }


def _note_fingerprint(ledger: Ledger, plan: PrivacyPlan) -> None:
    """The noisy fingerprint was paid for when the plan was made; a run's epsilon holds for both together (rule 13).

    Raises PrivacyRefusedError where a site's odometer does not know it with this noise: the privacy plan was edited.
    """
    release = plan.fingerprint_release
    if release is None or any(line.get("release") == release.release for line in ledger.content.lines):
        return
    for odometer in ledger.odometers:
        paid = odometer.last_line(release.release, odometer.path.parent.name)
        if paid is None or paid.get("noise_multiplier") != release.noise_multiplier:
            raise PrivacyRefusedError(
                f"{odometer.path} knows no fingerprint {release.release} of noise multiplier {release.noise_multiplier:g}, which the "
                "privacy plan names: run `adpfl plan` again"
            )
    for event in fingerprint_events(plan):
        ledger.append({**event, "release": release.release}, round_index=0, attempt=0)


def _note_releases_without_guarantee(ledger: Ledger, plan: PrivacyPlan, training_reason: str) -> None:
    """Non-private training, and a plan made from exact sums over patients, are said in the ledger itself.

    That a plan was made without such sums counts only where `adpfl plan` noted so in every odometer: the privacy plan can
    be edited by hand, that chain cannot.
    """
    scopes = {line.get("scope") for line in ledger.content.lines if line["event"] == "non_private"}
    noted = all(plan.fingerprint in odometer.plan_kinds(plan.plans_digest) for odometer in ledger.odometers)
    if (plan.fingerprint == "pooled" or not noted) and "plan" not in scopes:
        reason = "nnU-Net plan made from a pooled fingerprint without noise"
        if plan.fingerprint != "pooled":
            reason = f"nothing shows that the nnU-Net plan was made with --fingerprint {plan.fingerprint}"
        ledger.append({"event": "non_private", "scope": "plan", "reason": reason}, round_index=0, attempt=0)
    if not plan.is_private and "training" not in scopes:
        ledger.append({"event": "non_private", "scope": "training", "reason": training_reason}, round_index=0, attempt=0)


def _declarations(plan: PrivacyPlan) -> list[str]:
    """What the privacy plan declares and nothing here can check; said with every claim."""
    found = []
    if plan.initial_weights.kind == "public":
        found.append(f"initial weights were declared public (sha256 {plan.initial_weights.sha256})")
    if plan.fingerprint == "public":
        found.append("the nnU-Net plan was declared public: made from another, public data set")
    if plan.validation == "public":
        found.append("validation patients were declared public")
    return found


def _nonce() -> str:
    """Makes every later hash of the ledger unguessable, so that one which is sent commits to no list of patients."""
    return secrets.token_hex(16)
