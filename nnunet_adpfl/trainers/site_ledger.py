"""Opens the ledger of a run for one group of units, and ties it to the odometers of the sites they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import odometer as odometers
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import Mechanism, fingerprint_events
from nnunet_adpfl.privacy.odometer import Odometer
from nnunet_adpfl.privacy.plan import FingerprintRelease, PrivacyPlan
from nnunet_adpfl.trainers.private_training import BlockOutcome

LOCAL_LOG_FILE_NAME = "local_log.jsonl"


def odometer_of(preprocessed: Path, site: str) -> Odometer:
    """The odometer of a site's patients: nnUNet_preprocessed/DATASET/sites/SITE."""
    return Odometer(preprocessed / "sites" / site / odometers.FILE_NAME)


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
) -> Ledger:
    """Resume the run's ledger, or start it where the run has not spent anything yet.

    Args:
        declared_steps: steps that the run takes in all; a run that takes fewer was stopped by choice, or by its budget.
        checkpoint_head: ledger head in the checkpoint that training goes on from; None before the first block.

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
    _note_releases_without_guarantee(ledger, mechanism.plan)
    return ledger


def pay_for_fingerprint(
    preprocessed: Path, site: str, units: Sequence[str], *, release: FingerprintRelease, unit: str, delta: float
) -> None:
    """Write the event of a site's noisy fingerprint, durable before the histograms leave the site.

    It has a ledger of its own, ``sites/SITE/fingerprints/RELEASE.jsonl``, and its lines in the site's odometer.
    Paid for before under the same name: nothing happens, because the stored histograms are the same.
    """
    path = preprocessed / "sites" / site / "fingerprints" / f"{release.release}.jsonl"
    digest = ledgers.units_digest(units)
    event = {**accounting.gaussian(release.noise_multiplier), "release": release.release}
    if _is_begun(path):
        ledger = Ledger.resume(path, release.release, site, digest, [odometer_of(preprocessed, site)])
    else:
        path.unlink(missing_ok=True)
        first = {
            "composition": "declared", "unit": unit, "adjacency": "zero_out", "delta": delta, "target_epsilon": None,
            "plan_hash": None, "units_digest": digest, "declared_steps": 0, "largest_block": event,
        }  # fmt: skip
        ledger = Ledger.start(path, release.release, site, [odometer_of(preprocessed, site)], first)
    if not ledger.events():
        ledger.append(event, round_index=0, attempt=0)


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
        "noise_source": plan.noise_source,
        "noise_terms": plan.noise_terms,
        "largest_block": mechanism.largest_block(plan.rounds.local_steps) if plan.is_private else None,
    }


def _note_fingerprint(ledger: Ledger, plan: PrivacyPlan) -> None:
    """The noisy fingerprint was paid for when the plan was made; a run's epsilon holds for both together (rule 13)."""
    release = plan.fingerprint_release
    if release is None or any(line.get("release") == release.release for line in ledger.content.lines):
        return
    for event in fingerprint_events(plan):
        ledger.append({**event, "release": release.release}, round_index=0, attempt=0)


def _note_releases_without_guarantee(ledger: Ledger, plan: PrivacyPlan) -> None:
    """Non-private training, and a plan made from exact sums over patients, are said in the ledger itself."""
    scopes = {line.get("scope") for line in ledger.content.lines if line["event"] == "non_private"}
    if plan.fingerprint == "pooled" and "plan" not in scopes:
        reason = "nnU-Net plan made from a pooled fingerprint without noise"
        ledger.append({"event": "non_private", "scope": "plan", "reason": reason}, round_index=0, attempt=0)
    if not plan.is_private and "training" not in scopes:
        reason = "trained without clipping and noise"
        ledger.append({"event": "non_private", "scope": "training", "reason": reason}, round_index=0, attempt=0)
