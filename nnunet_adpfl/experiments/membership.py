"""A DEMONSTRATION of membership inference by the loss of finished models; never evidence that a model is private.

Such an attack sees one model, no noisy update and no worst case. That it fails proves nothing; that it succeeds shows
what training without privacy gives away. Its figures are computed from patients: for the site's own eyes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from nnunet_adpfl import folders
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.experiments.audit import Sample
from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.nnunet_compat.patches import PatchSettings, PatchSource
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy.summary import summarise
from nnunet_adpfl.progress import note, track
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import prepared_fold, run_manifest
from nnunet_adpfl.trainers.prepared_fold import PreparedFold

NOTE = "a demonstration, not evidence of privacy; computed from patients, for the site's own eyes"
PATCHES = 4
BOOTSTRAPS = 2_000
FALSE_POSITIVES = 0.1


def demonstrate(runs: Sequence[Path]) -> dict[str, Any]:
    """Attack finished runs one by one; a run's members are the training units of its fold."""
    return {"note": NOTE, "runs": [attack(run) for run in runs]}


def attack(run: Path) -> dict[str, Any]:
    """Loss of the final model on fixed foreground patches of every unit; members are said to be those with low loss."""
    manifest = run_manifest.load(run)
    folder = folders.preprocessed_folder(manifest.dataset)
    prepared = prepared_fold.load(folder, manifest.plans, manifest.configuration, manifest.fold, manifest.trainer)
    members = prepared.cases_by_unit()
    others = prepared.cohort.cases_by_unit(None, set(prepared.fold.val))
    if prepared.fold.name == "all" or not others:
        raise InputError(f"{run}: fold {manifest.fold} has no validation {prepared.plan.unit}s to compare with; use a numbered fold")
    if prepared.left_out_sites:
        site = prepared.left_out_sites[0]
        raise InputError(f"{run}: fold {manifest.fold} leaves out site {site}, whose {prepared.plan.unit}s are told by their site already")
    losses = _losses(run, prepared, {**members, **others})
    inside = np.array([losses[unit] for unit in members])
    outside = np.array([losses[unit] for unit in others])
    summary = summarise(run)
    return {
        "run": f"{run.parent.name}/{run.name}",
        "private": prepared.plan.is_private,
        "epsilon": summary["epsilon"],
        "members": len(inside),
        "non_members": len(outside),
        **figures(inside, outside),
    }


def figures(members: Sample, others: Sample, seed: int = 0) -> dict[str, Any]:
    """AUC with its 95 % bootstrap interval over units, and the share of members found at 10 % false alarms."""
    generator = np.random.default_rng(seed)
    repeats = [
        auc(generator.choice(members, len(members)), generator.choice(others, len(others))) for _ in range(BOOTSTRAPS)
    ]
    low, high = np.quantile(repeats, [0.025, 0.975])
    alarms = max(1, int(FALSE_POSITIVES * len(others)))
    limit = np.sort(others)[alarms - 1]
    return {
        "auc": auc(members, others),
        "auc_ci95": [float(low), float(high)],
        "true_positive_rate_at_10_percent_false_positives": float((members <= limit).mean()),
    }


def auc(members: Sample, others: Sample) -> float:
    """Chance that a member's loss is below a non-member's; ties count half."""
    ranks = stats.rankdata(np.concatenate([others, members]))
    above = float(ranks[: len(others)].sum()) - len(others) * (len(others) + 1) / 2
    return above / (len(members) * len(others))


def _losses(run: Path, prepared: PreparedFold, cases_by_unit: Mapping[str, Sequence[str]]) -> dict[str, float]:
    trainer = PlannedTrainer(prepared.plans, prepared.configuration, prepared.dataset_json, torch.device("cpu"))
    network, loss = stock.build_network(trainer, prepared.plan.seed), stock.build_loss(trainer)
    path = run / checkpoints.FINAL
    checkpoints.load_weights(network, checkpoints.load(path)["network_weights"], str(path))
    source = PatchSource(trainer, prepared.data_folder, PatchSettings(PATCHES, 1.0, mirroring=False, augmentation="none"))
    note(f"{run.parent.name}: loss on {len(cases_by_unit)} units")
    losses = {}
    for unit in track(sorted(cases_by_unit), "units"):
        key = hashlib.sha256(f"membership|{unit}".encode()).digest()  # the same patches for every run
        data, target = source.patches(cases_by_unit[unit], key)
        with torch.no_grad():
            losses[unit] = float(loss(network(data), target))
    return losses
