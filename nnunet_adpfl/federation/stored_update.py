"""A site's last update on disk: asked for again, it is sent byte for byte and costs nothing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.federation.messages import RoundTask, SiteUpdate, Weights, weights_hash

FILE_NAME = "update.safetensors"
_MOST_HEADER_BYTES = 2**20 + 512  # names, shapes and offsets of a thousand tensors take a tenth of this
_TEXT, _WHOLE, _NUMBER = ("site", "run", "ledger_head", "task_digest"), ("round", "attempt", "steps"), ("count_noise_std", "expected_units")


def save(update: SiteUpdate, task: RoundTask, folder: Path) -> None:
    """Write the update under the identity of its round: run, round and hash of the received weights."""
    content = {key: value for key, value in asdict(update).items() if key != "weights"}
    metadata = {"task": json.dumps(_identity(task)), "update": json.dumps(content), "digest": _digest(content, update.weights)}
    atomic_files.write_bytes(folder / FILE_NAME, safetensors.numpy.save(update.weights, metadata), private=True)


def load(task: RoundTask, site: str, folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> SiteUpdate | None:
    """The stored update of exactly this task; None when there is none, or when it cannot be trusted to the last bit.

    Args:
        wanted: trained tensors, float32, and their shapes; a file that is too large for them is not even opened.
    """
    path = folder / FILE_NAME
    most = sum(4 * math.prod(shape) for shape in wanted.values()) + _MOST_HEADER_BYTES + 256 * len(wanted)
    try:
        if path.stat().st_size > most:
            return None
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if json_files.parse(metadata.get("task", "null")) != _identity(task):
                return None
            if set(file.keys()) != set(wanted) or any(_differs(file.get_slice(name), wanted[name]) for name in wanted):
                return None
            weights = {name: file.get_tensor(name) for name in wanted}
        update = _parsed(json_files.parse(metadata["update"]), weights, metadata["digest"])
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        return None  # a new attempt pays again; a damaged file is never sent
    found, asked = (update.site, update.run, update.round, update.steps), (site, task.run, task.round, task.steps)
    return update if found == asked else None


def task_digest(task: RoundTask) -> str:
    """Tells tasks apart that differ in anything an update depends on; equal for all sites of a round."""
    return hashlib.sha256(json.dumps(_identity(task), sort_keys=True).encode()).hexdigest()


def _differs(found: Any, shape: tuple[int, ...]) -> bool:
    return found.get_dtype() != "F32" or tuple(found.get_shape()) != tuple(shape)


def _digest(content: dict[str, Any], weights: Weights) -> str:
    """Checksum of fields and weights, which the file format itself has not."""
    return hashlib.sha256(f"{json.dumps(content, sort_keys=True)}|{weights_hash(weights)}".encode()).hexdigest()


def _parsed(content: dict[str, Any], weights: Weights, digest: str) -> SiteUpdate:
    """ValueError, KeyError or TypeError unless the fields are those of an update, of their types, with these weights."""
    if not isinstance(content, dict) or not all(np.isfinite(value).all() for value in weights.values()):
        raise ValueError("it is no update")
    if digest != _digest(content, weights):
        raise ValueError("it is not the update that was stored")
    if set(content) != {entry.name for entry in fields(SiteUpdate)} - {"weights"}:
        raise ValueError("the fields are not those of an update")
    right = (
        all(isinstance(content[name], str) for name in _TEXT)
        and all(type(content[name]) is int for name in _WHOLE)
        and all(type(content[name]) is float for name in _NUMBER)
        and isinstance(content["noisy_count"], float | None)
    )
    if not right:
        raise TypeError("a field has another type than an update has")
    return SiteUpdate(weights=weights, **content)


def _identity(task: RoundTask) -> dict[str, object]:
    return {
        "run": task.run,
        "round": task.round,
        "first_step": task.first_step,
        "steps": task.steps,
        "clip_norm": task.clip_norm,
        "noise_level": task.noise_level,
        "plan_hash": task.plan_hash,
        "weights": task.weights_hash(),
    }
