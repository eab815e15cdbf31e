"""What may leave: weights, the declared plans, the ledger and the privacy statement (design section 5, rule 12).

Everything is written from an allow-list. The release holds no loss, no case id, no fingerprint, no log, and no digest
that a guessed list of patients could be compared with; its ledger is chained anew over what it says.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.cohort import names_a_folder
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import hash_chain, ledger, summary
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import run_manifest
from nnunet_adpfl.trainers.run_manifest import RunManifest

RELEASE_TRAINER = "nnUNetTrainer"  # stock nnU-Net predicts without this plugin
STATEMENT_FILE_NAME = "privacy_statement.json"
_LEDGER_SECRETS = ("units_digest", "nonce", "plan_hash", "previous", "hash", "torn")
_PLAN_SECRETS = ("cohort_digest",)
CHECKPOINT_KEYS = frozenset({
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "trainer_name", "inference_allowed_mirroring_axes", checkpoints.RELEASE_MARK,
})  # fmt: skip


def export_run(run: Path, out: Path) -> dict[str, Any]:
    """Write the release of a finished run to a new folder; all of it or nothing.

    Returns paths of folder and zip, and what the privacy statement says.
    Raises InputError when the run is not finished or ``out`` is not empty.
    """
    manifest = run_manifest.load(run)
    if not (run / checkpoints.FINAL).is_file():
        raise InputError(f"{run} is not finished: it has no {checkpoints.FINAL}; go on with `adpfl train --continue`")
    if privacy_plans.load(run / privacy_plans.FROZEN_FILE_NAME).rounds.strategy == "local":
        raise InputError(f"{run} trained every site alone (strategy local): the mean of unrelated models is no model to release")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: name a new folder for the release")
    statement = summary.summarise(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_model(run, manifest, statement, temporary)
        archive = temporary / f"{manifest.dataset}.zip"
        make_readable(temporary)
        _zip(temporary / manifest.dataset, archive)
        archive.chmod(0o644)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return {
        "folder": str(out / manifest.dataset),
        "zip": str(out / archive.name),
        "epsilon": statement["epsilon"],
        "delta": statement["delta"],
        "guarantee": statement["guarantee"],
    }


def make_readable(folder: Path) -> None:
    """For everybody, whatever the umask of a site that keeps its own files to itself."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_model(run: Path, manifest: RunManifest, statement: dict[str, Any], out: Path) -> None:
    model = out / manifest.dataset / f"{RELEASE_TRAINER}__{manifest.plans}__{manifest.configuration}"
    plans = _object(run.parent / "plans.json")
    try:
        plans = without_unused_intensities(plans)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run.parent / 'plans.json'} is not a plan of nnU-Net ({error!r:.80}); restore it") from None
    dataset = _object(run.parent / "dataset.json")
    dataset_json = {key: dataset[key] for key in checkpoints.DATASET_KEYS if key in dataset}
    atomic_files.write_json(model / "plans.json", plans)
    atomic_files.write_json(model / "dataset.json", dataset_json)
    plan = privacy_plans.load(run / privacy_plans.FROZEN_FILE_NAME)
    content = {key: value for key, value in plan.model_dump(mode="json").items() if key not in _PLAN_SECRETS}
    if content["initial_weights"]["file"]:
        content["initial_weights"]["file"] = Path(content["initial_weights"]["file"]).name
    atomic_files.write_json(model / privacy_plans.FROZEN_FILE_NAME, content)
    atomic_files.write_json(model / STATEMENT_FILE_NAME, {**statement, "versions": manifest.versions})
    released_plan = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    for path in summary.ledger_files(run):
        _release_ledger(path, model, released_plan)
    _release_checkpoint(run, manifest, plans, dataset_json, model)


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json_files.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it from nnUNet_preprocessed") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; restore it from nnUNet_preprocessed")
    return content


def without_unused_intensities(plans: dict[str, Any]) -> dict[str, Any]:
    """Exact extremes of patients' voxels leave with a plan only where its normalisation needs them (CT)."""
    schemes = [settings.get("normalization_schemes", []) for settings in plans["configurations"].values()]
    properties = {
        channel: values if any(len(s) > int(channel) and s[int(channel)] == "CTNormalization" for s in schemes)
        else dict.fromkeys(values, 0.0)
        for channel, values in plans["foreground_intensity_properties_per_channel"].items()
    }  # fmt: skip
    return {**plans, "foreground_intensity_properties_per_channel": properties}


def _release_ledger(path: Path, model: Path, plan_hash: str) -> None:
    """The same events in a new chain, without digests that commit to the list of patients."""
    content = hash_chain.read(path)
    site = str(ledger.first_line(path, content).get("site"))
    if not names_a_folder(site):
        raise InputError(f"{path}: site {site!r} cannot name a file of the release; restore the ledger")
    target = model / "privacy" / f"{site}.{ledger.FILE_NAME}"
    events = [line for line in content.lines if line["event"] in ("start", "non_private")]
    events += ledger.spending_events(content, path)
    head = hash_chain.GENESIS
    text = ""
    for event in events:
        fields = {key: value for key, value in event.items() if key not in _LEDGER_SECRETS}
        if event["event"] == "start":
            fields["plan_hash"] = plan_hash
        line = hash_chain.sealed(fields, head)
        head = str(line["hash"])
        text += json.dumps(line, allow_nan=False) + "\n"
    atomic_files.write_text(target, text)


def _release_checkpoint(
    run: Path, manifest: RunManifest, plans: dict[str, Any], dataset_json: dict[str, Any], model: Path
) -> None:
    content = checkpoints.load(run / checkpoints.FINAL)
    fold = manifest.fold if manifest.fold == "all" else int(manifest.fold)
    init_args = {
        "plans": plans,
        "configuration": manifest.configuration,
        "fold": fold,
        "dataset_json": dataset_json,
        "device": "cpu",
    }
    weights: dict[str, torch.Tensor] = content["network_weights"]
    released: checkpoints.Checkpoint = {
        "network_weights": weights,
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": content["current_epoch"],
        "init_args": init_args,
        "trainer_name": RELEASE_TRAINER,
        "inference_allowed_mirroring_axes": content["inference_allowed_mirroring_axes"],
        checkpoints.RELEASE_MARK: True,
    }
    checkpoints.save(released, model / f"fold_{manifest.fold}" / checkpoints.FINAL)


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder.parent))
