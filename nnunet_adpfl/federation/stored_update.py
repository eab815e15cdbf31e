"""A site's last update on disk: asked for again, it is sent byte for byte and costs nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError, safe_open

from nnunet_adpfl import atomic_files
from nnunet_adpfl.federation.messages import RoundTask, SiteUpdate

FILE_NAME = "update.safetensors"


def save(update: SiteUpdate, task: RoundTask, folder: Path) -> None:
    """Write the update under the identity of its round: run, round and hash of the received weights."""
    fields = {key: value for key, value in asdict(update).items() if key != "weights"}
    metadata = {"task": json.dumps(_identity(task)), "update": json.dumps(fields)}
    atomic_files.write_bytes(folder / FILE_NAME, safetensors.numpy.save(update.weights, metadata))


def load(task: RoundTask, folder: Path) -> SiteUpdate | None:
    """The stored update of exactly this task; None when there is none, or when it cannot be read."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if json.loads(metadata.get("task", "null")) != _identity(task):
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            return SiteUpdate(weights=weights, **json.loads(metadata["update"]))
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        return None  # a new attempt pays again; a damaged file is never sent


def _identity(task: RoundTask) -> dict[str, object]:
    return {
        "run": task.run,
        "round": task.round,
        "first_step": task.first_step,
        "steps": task.steps,
        "clip_norm": task.clip_norm,
        "plan_hash": task.plan_hash,
        "weights": task.weights_hash(),
    }
