"""The device to train on, from its name."""

from __future__ import annotations

import torch

from nnunet_adpfl.errors import InputError


def chosen_device(name: str) -> torch.device:
    """The device to train on; InputError when this machine has it not."""
    if name not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device {name!r} is unknown; use cpu, cuda or mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: this machine has no such device; use --device cpu")
    return torch.device(name)
