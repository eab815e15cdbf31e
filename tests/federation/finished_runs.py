"""What a finished run came to, for comparison with runs that were disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from workspace import own_workspace


@dataclass(frozen=True)
class Result:
    """What a finished run came to; equal for equal randomness, whatever happened on the way."""

    weights: dict[str, torch.Tensor]
    clip_norm: float
    records: str

    @classmethod
    def of(cls, run: Path) -> Result:
        state = torch.load(run / "checkpoint_final.pth", weights_only=True)
        return cls(dict(state["network_weights"]), state["adpfl"]["clip_norm"], (run / "rounds.jsonl").read_text())


def undisturbed_result(planned: Path, base: Path, **plan: Any) -> Result:
    """The result of a run with these changes of the privacy plan."""
    with own_workspace(planned, base) as workspace:
        workspace.edit_plan(**plan)
        return Result.of(workspace.train())
