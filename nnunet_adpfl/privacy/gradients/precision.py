"""In which precision networks run, and gradients are clipped and added up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


def half(enabled: bool, device: torch.device) -> AbstractContextManager[object]:
    """nnU-Net's mixed precision, in bfloat16: float16 would need its gradient scaler, which knows no patients."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def full() -> Iterator[None]:
    """float32 as it says, and the same numbers every time: no TF32, no bfloat16 inside of convolutions and products,
    whatever was set for the process, and no GPU kernel whose order of summation is left to chance."""
    backends = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before, deterministic = [place.fp32_precision for place in places], backends.cudnn.deterministic
    try:
        backends.cudnn.deterministic = True
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        backends.cudnn.deterministic = deterministic
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def wide_type(tensor: torch.Tensor) -> torch.dtype:
    """What gradients of this tensor are clipped and added up in: float32 or better (rule 6)."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(wide_type(tensor))
