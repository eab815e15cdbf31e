"""Installs a release (`adpfl install`): the safe counterpart of nnUNetv2_install_pretrained_model_from_zip.

The release is unpacked beside nnUNet_results, checked as a whole, and appears there under its name or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from nnunet_adpfl import folders, json_files
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.nnunet_compat.foreign_plans import check_foreign_plans
from nnunet_adpfl.privacy import hash_chain, ledger, summary
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import release, release_archive
from nnunet_adpfl.trainers.release_archive import Unpacked

_STATED = ("epsilon", "delta", "complete", "unit", "adjacency", "guarantee", "accountant")
_STATED_OF_SITES = ("epsilon", "epsilon_spent", "steps", "complete", "target_epsilon")
_TOLERANCE = 1e-3  # relative: another version of dp-accounting may round epsilon otherwise


def install(archive: Path) -> dict[str, Any]:
    """Check a release and put it into nnUNet_results.

    Returns the folder of the model and its privacy statement's figures, recomputed from its ledgers.
    Raises InputError for an archive that is no release, and where the model is there already; PrivacyRefusedError
    where the privacy statement does not follow from the ledgers.
    """
    results = folders.base_folder("nnUNet_results")
    if not archive.is_file():
        raise InputError(f"{archive} is missing: give the zip file that `adpfl export` wrote")
    results.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".install.", suffix=".tmp", dir=results))
    try:
        unpacked = release_archive.unpack(archive, temporary)
        target = results / unpacked.dataset / unpacked.model
        if target.exists() or target.is_symlink():
            raise InputError(f"{target} exists: move that model away, nothing is overwritten")
        try:
            spent = _check(unpacked)
        except (InputError, PrivacyRefusedError) as error:
            reason = str(error).replace(f"{temporary}/", "")
            raise type(error)(f"{archive}: {reason}; nothing was installed") from None
        _put_in_place(unpacked, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"folder": str(target), **{key: spent[key] for key in _STATED}}


def _check(unpacked: Unpacked) -> dict[str, Any]:
    """Plans name nnU-Net's own classes, the checkpoint holds finite tensors alone, the statement follows from the ledgers."""
    plans, dataset_json, plan, statement = (
        _object(unpacked.path / name)
        for name in ("plans.json", "dataset.json", privacy_plans.FROZEN_FILE_NAME, release.STATEMENT_FILE_NAME)
    )
    try:
        check_foreign_plans(plans)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"plans.json is not a plan that nnU-Net wrote ({error})") from None
    _check_checkpoint(unpacked.checkpoint, plans, dataset_json)
    return _check_statement(unpacked, plan, statement)


def _check_checkpoint(path: Path, plans: dict[str, Any], dataset_json: dict[str, Any]) -> None:
    content = checkpoints.load(path)
    odd = sorted(map(str, set(content) ^ release.CHECKPOINT_KEYS))
    if odd:
        raise InputError(f"{path} has other parts than a release (first difference: {odd[0]:.80})")
    weights = content["network_weights"]
    for name, value in weights.items():
        if not isinstance(name, str) or not checkpoints.is_plain(value) or value.dtype != torch.float32:
            raise InputError(f"{path}: tensor {name} is not a plain tensor of type float32")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: tensor {name} holds values that are not finite")
    init = content["init_args"]
    agrees = isinstance(init, dict) and init.get("plans") == plans and init.get("dataset_json") == dataset_json
    if not weights or not agrees or content["trainer_name"] != release.RELEASE_TRAINER:
        raise InputError(f"{path} was made with other plans than the release has")


def _check_statement(unpacked: Unpacked, plan: dict[str, Any], statement: dict[str, Any]) -> dict[str, Any]:
    """Recompute the statement; PrivacyRefusedError where it promises anything else than the ledgers say."""
    declared = privacy_plans.parse({**plan, "cohort_digest": ""}, privacy_plans.FROZEN_FILE_NAME)
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    run = unpacked.folder / ".ledgers"
    for path in sorted((unpacked.path / "privacy").iterdir()):
        first = ledger.first_line(path, hash_chain.read(path))
        site = path.name.removesuffix(f".{ledger.FILE_NAME}")
        stated = (first.get("site"), first.get("plan_hash"), first.get("delta"), first.get("unit"))
        if stated != (site, digest, declared.delta, declared.unit):
            raise PrivacyRefusedError(f"{path} is not the ledger of this privacy plan at site {site}")
        (run / "sites" / site).mkdir(parents=True)
        (run / "sites" / site / ledger.FILE_NAME).symlink_to(path)
    found = summary.summarise(run)
    differing = next((key for key in _STATED if not _same(statement.get(key), found[key])), None)
    sites = statement.get("sites")
    if differing is None and (not isinstance(sites, dict) or set(sites) != set(found["sites"])):
        differing = "sites"
    if differing is None:
        for site, figures in found["sites"].items():
            given = sites.get(site) if isinstance(sites, dict) else None
            given = given if isinstance(given, dict) else {}
            differing = differing or next((key for key in _STATED_OF_SITES if not _same(given.get(key), figures[key])), None)
    if differing is not None:
        raise PrivacyRefusedError(f"{release.STATEMENT_FILE_NAME}: {differing} is not what the ledgers of the release come to")
    shutil.rmtree(run)
    return found


def _same(stated: object, found: object) -> bool:
    if isinstance(found, float) and isinstance(stated, (int, float)) and not isinstance(stated, bool):
        return math.isclose(stated, found, rel_tol=_TOLERANCE)
    return type(stated) is type(found) and stated == found


def _put_in_place(unpacked: Unpacked, target: Path) -> None:
    release.make_readable(unpacked.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        unpacked.path.rename(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); nothing was installed") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json_files.load(path)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content
