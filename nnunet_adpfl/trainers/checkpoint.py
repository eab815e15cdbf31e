"""Checkpoints in nnU-Net's format: its predictor loads them; nothing in them but plain tensors, numbers and text.

nnU-Net's own keys are present; those that would hold losses or case ids are empty. The key ``adpfl`` holds what a
private run needs to go on: step, clip norm, weights before averaging, head of each ledger, hash of the privacy plan.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_adpfl import atomic_files, tensor_files
from nnunet_adpfl.errors import InputError, PrivacyRefusedError

FINAL = "checkpoint_final.pth"
LATEST = "checkpoint_latest.pth"
DATASET_KEYS = (  # of dataset.json: what prediction needs and says nothing about the patients
    "name", "description", "channel_names", "labels", "regions_class_order", "file_ending", "licence", "license",
    "reference", "overwrite_image_reader_writer",
)  # fmt: skip
Checkpoint = dict[str, Any]
RELEASE_MARK = "adpfl_release"  # key of released checkpoints: weights that patients had a part in are not public ones


def make(
    network: nn.Module,
    *,
    init_args: Mapping[str, Any],
    trainer_name: str,
    mirroring_axes: tuple[int, ...] | None,
    optimizer_state: Mapping[str, Any],
    epoch: int,
    adpfl: Mapping[str, Any],
) -> Checkpoint:
    """The content of a checkpoint file; ``adpfl`` is described in the module's docstring."""
    return {
        "network_weights": {name: plain_copy(value) for name, value in network.state_dict().items()},
        "optimizer_state": dict(optimizer_state),
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": epoch,
        "init_args": {**init_args, "device": str(init_args.get("device", "cpu"))},
        "trainer_name": trainer_name,
        "inference_allowed_mirroring_axes": mirroring_axes,
        "adpfl": dict(adpfl),
    }


def plain_copy(value: torch.Tensor) -> torch.Tensor:
    """Detached, on the CPU, contiguous whatever memory format the network trains in."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def save(checkpoint: Mapping[str, Any], path: Path, *, private: bool = False) -> None:
    """Write atomically: on a full disk the previous checkpoint stays readable.

    Args:
        private: only the owner may read it: it holds more than what a release may (weights before averaging).
    """
    buffer = io.BytesIO()  # torch writing to a full disk raises its own error, without the reason in it
    torch.save(dict(checkpoint), buffer)
    atomic_files.write_bytes(path, buffer.getbuffer(), private=private)


def load(path: Path, *, like: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint without executing anything in it, onto the CPU. Those of stock nnU-Net can be read too.

    Args:
        like: the network it is meant for; a file far larger than that network needs is refused unread.

    Raises InputError when it is missing, too large, damaged, or holds anything else than plain values.
    """
    content = tensor_files.load(path, most_bytes=None if like is None else _most_bytes(like), numpy_scalars=True)
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), dict):
        raise InputError(f"{path} is not an nnU-Net checkpoint: it has no network_weights")
    return content


def _most_bytes(network: nn.Module) -> int:
    """Weights in double precision, weights before averaging, Adam's two moments, and room for plans and logs."""
    return 8 * sum(parameter.numel() * parameter.element_size() for parameter in network.parameters()) + 64 * 2**20


def private_state(checkpoint: Checkpoint, path: Path, plan_hash: str) -> dict[str, Any]:
    """The ``adpfl`` part, checked against the privacy plan of the run.

    Raises PrivacyRefusedError when the checkpoint is not one of this plugin or of another privacy plan.
    """
    state = checkpoint.get("adpfl")
    if not isinstance(state, dict):
        raise PrivacyRefusedError(f"{path} was not written by an nnunet_adpfl trainer; it cannot be continued privately")
    if state.get("plan_hash") != plan_hash:
        raise PrivacyRefusedError(f"{path} belongs to another privacy plan; restore the plan of that run")
    return state


def newest(run: Path) -> Path | None:
    """The checkpoint to go on from: the final one, else the latest one, else None."""
    return next((run / name for name in (FINAL, LATEST) if (run / name).is_file()), None)


def first_names(network: nn.Module) -> dict[str, str]:
    """Every name of a tensor in the network -> its first name; nnU-Net registers most layers several times."""
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in network.named_parameters(remove_duplicate=False)}


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], origin: str) -> None:
    """Put weights into a network after checking names, shapes, dtypes and finiteness (rule 15).

    Of a tensor with several names the first one counts; the others may be left out.
    """
    names = first_names(network)
    odd = sorted(map(str, (set(weights) - set(names)) | (set(names.values()) - set(weights))))
    if odd:
        raise InputError(f"{origin}: its tensors do not fit the network of the plan (first difference: {odd[0]})")
    check_tensors(weights, network.state_dict(), origin)
    network.load_state_dict({name: weights[first] for name, first in names.items()})


def is_plain(value: object) -> bool:
    """An ordinary tensor whose numbers are all there: one stretched over a few bytes would fill the memory."""
    return (
        type(value) in (torch.Tensor, nn.Parameter)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type != "meta"
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def check_tensors(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], origin: str) -> None:
    """InputError unless every tensor has the name, shape and dtype of ``wanted`` and is finite."""
    for name, value in tensors.items():
        if name not in wanted:
            raise InputError(f"{origin}: tensor {name} is not part of the network of the plan")
        like = wanted[name]
        if not is_plain(value) or value.shape != like.shape or value.dtype != like.dtype:
            raise InputError(f"{origin}: tensor {name} has not the shape and type of the network of the plan")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{origin}: tensor {name} holds values that are not finite")
