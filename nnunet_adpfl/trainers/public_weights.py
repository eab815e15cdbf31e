"""Public initial weights from any checkpoint of nnU-Net, by nnU-Net's own rule for ``-pretrained_weights``.

Everything but the segmentation layers must fit the network of the plan. Those are taken where all of them fit, and keep
their random values where the checkpoint is of a data set with other classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import checkpoint as checkpoints

_HEADS = ".seg_layers."
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of training on several GPUs


def load(network: nn.Module, weights: Mapping[str, torch.Tensor], origin: str) -> None:
    """Put them into the network; InputError where a tensor other than those of segmentation layers does not fit."""
    plain = _plain_names(weights, origin)
    state = network.state_dict()
    own = {name: value for name, value in state.items() if _HEADS in name}
    found = {name: plain.pop(name) for name in list(plain) if _HEADS in name}
    _check_heads(found, origin)
    fits = found.keys() == own.keys() and all(found[name].shape == own[name].shape for name in own)
    checkpoints.load_weights(network, {**plain, **(found if fits else own)}, origin)
    for name, first in checkpoints.first_names(network).items():
        if name in plain and first in plain and not torch.equal(plain[name], plain[first]):
            raise InputError(f"{origin}: tensors {name} and {first} are one in the network, but differ; the file is damaged")
    if not fits:
        note(f"{origin}: its segmentation layers are for other classes than the plan's; they start from random values instead")


def _plain_names(weights: Mapping[str, torch.Tensor], origin: str) -> dict[str, torch.Tensor]:
    """Names without the prefixes of wrappers."""
    plain: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        short = str(name)
        while wrapper := next((prefix for prefix in _WRAPPERS if short.startswith(prefix)), ""):
            short = short.removeprefix(wrapper)
        if short in plain:
            raise InputError(f"{origin}: it holds tensor {short} twice, under several prefixes")
        plain[short] = value
    return plain


def _check_heads(heads: Mapping[str, torch.Tensor], origin: str) -> None:
    """Sound, whether they are taken or not: a damaged file is not public weights."""
    for name, value in heads.items():
        if not checkpoints.is_plain(value) or value.dtype != torch.float32:
            raise InputError(f"{origin}: tensor {name} has not the type of the network of the plan")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{origin}: tensor {name} holds values that are not finite")
