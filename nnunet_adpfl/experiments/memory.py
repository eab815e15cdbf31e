"""Peak memory of this process, its workers and its GPU."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_mib(device: str) -> dict[str, float]:
    """Highest resident memory so far, in MiB: of this process, of its largest finished child, and of torch on the GPU."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in KiB
    found = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "largest_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in found.items()}
