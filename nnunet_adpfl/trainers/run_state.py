"""Where a run stands between two rounds: what its checkpoint holds besides nnU-Net's own keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from nnunet_adpfl.errors import InputError

# Called after every round, for experiments: number of finished rounds, weights of the model as it would be kept, and each
# site's own layers. What it gets is private output; what it then looks at is not covered by anything.
Observer = Callable[[int, Mapping[str, np.ndarray], Mapping[str, Mapping[str, np.ndarray]]], None]


@dataclass
class RunState:
    """Progress of a run. All of it is public or noisy: no loss, no case id, no drawn size.

    Attributes:
        run: name of the run, as in every ledger line.
        plan_hash: digest of the privacy plan.
        initial_digest: sha256 of the weights that training started from.
        clip_norm: C of the next round.
        round: number of finished rounds.
        steps_done: steps that each site has taken.
        ledger_heads: site -> hash of the newest ledger line when this was saved.
        raw_weights: trained weights before averaging; None where nothing is averaged or the run is finished.
        control: state of a data-driven run's noise control; None otherwise.
        server_moments: of the server's optimizer; None where it has none, or the run is finished.
        local_layers: site -> its own layers (averaged like the model); None but for fedbn.
        finished: training is over; ``network_weights`` of the checkpoint are the result.
    """

    run: str
    plan_hash: str
    initial_digest: str
    clip_norm: float
    round: int = 0
    steps_done: int = 0
    ledger_heads: dict[str, str] = field(default_factory=dict)
    raw_weights: dict[str, torch.Tensor] | None = None
    control: dict[str, Any] | None = None
    server_moments: dict[str, dict[str, torch.Tensor]] | None = None
    local_layers: dict[str, dict[str, torch.Tensor]] | None = None
    finished: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values and tensors, as the checkpoint's ``adpfl`` key holds them."""
        content = {**vars(self), "ledger_heads": dict(self.ledger_heads)}
        if self.raw_weights is not None:
            content["raw_weights"] = {name: value.detach().cpu().clone() for name, value in self.raw_weights.items()}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], origin: str) -> RunState:
        """InputError when fields are missing or unknown."""
        if set(content) != {entry.name for entry in fields(cls)}:
            raise InputError(f"{origin}: its adpfl part was written by another version; continue with that version")
        state = cls(**content)
        odd = next((name for name, fits in _FIELDS.items() if not fits(content[name])), None)
        if odd:
            raise InputError(f"{origin}: {odd} in its adpfl part is not what it has to be; restore the checkpoint")
        return state


def _is_step(value: object) -> bool:
    return type(value) is int and value >= 0


_FIELDS: dict[str, Callable[[Any], bool]] = {  # field -> whether a value from a file can be right
    "run": lambda value: isinstance(value, str),
    "plan_hash": lambda value: isinstance(value, str),
    "initial_digest": lambda value: isinstance(value, str),
    "clip_norm": lambda value: type(value) is float and 0 < value < math.inf,
    "round": _is_step,
    "steps_done": _is_step,
    "ledger_heads": lambda value: isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair),
    "raw_weights": lambda value: value is None or isinstance(value, dict),
    "control": lambda value: value is None or isinstance(value, dict),
    "server_moments": lambda value: value is None or isinstance(value, dict),
    "local_layers": lambda value: value is None or isinstance(value, dict),
    "finished": lambda value: isinstance(value, bool),
}
