"""A small network and privacy plan for tests of the privacy core; no nnU-Net in it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.privacy.odometer import Odometer
from nnunet_adpfl.privacy.plan import PrivacyPlan, parse

UNITS = [f"patient_{index:02d}" for index in range(40)]


def make_plan(**changes: Any) -> PrivacyPlan:
    content: dict[str, Any] = {
        "unit": "patient",
        "epsilon": 8.0,
        "delta": 1e-3,
        "training_units": {"0": {"a": 40, "b": 20}},
        "sampling_rate": 0.25,
        "steps": 20,
        "reserve_steps": 4,
        "cohort_digest": "c",
        "plans_digest": "p",
        "fingerprint": "public",
    }
    return parse({**content, **changes})


def make_mechanism(**changes: Any) -> Mechanism:
    """As `mechanism.make`, with the calibration of equal plans done once."""
    return mechanisms.make(_calibrated(json.dumps(changes, sort_keys=True)), "0")


@functools.cache
def _calibrated(changes: str) -> PrivacyPlan:
    return mechanisms.calibrated(make_plan(**json.loads(changes)))


def make_engine(dtype: torch.dtype = torch.float32) -> tuple[LoopEngine, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.Conv2d(3, 1, 3)).to(dtype)
    trained = dict(network.named_parameters())

    def loss(output: torch.Tensor | list[torch.Tensor], target: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        assert isinstance(output, torch.Tensor)
        assert isinstance(target, torch.Tensor)
        return ((output - target) ** 2).mean()

    return LoopEngine(network, loss, trained), trained


def unit(seed: int, scale: float = 1.0, patches: int = 2, dtype: torch.dtype = torch.float32) -> UnitPatches:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn((patches, 1, 8, 8), generator=generator) * scale
    return UnitPatches(data.to(dtype), torch.zeros((patches, 1, 4, 4), dtype=dtype))


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.sqrt(sum((t.double() ** 2).sum() for t in tensors.values())))


def start_ledger(folder: Path, plan: PrivacyPlan, *, site: str = "a", run: str = "run") -> Ledger:
    first = {
        "composition": "declared",
        "unit": plan.unit,
        "adjacency": plan.adjacency,
        "delta": plan.delta,
        "target_epsilon": plan.epsilon,
        "plan_hash": plan.digest(),
        "units_digest": ledgers.units_digest(UNITS),
        "largest_block": {"event": "poisson_gaussian", "sampling_rate": 0.25, "noise_multiplier": 0.5, "steps": 5},
    }
    odometer = Odometer(folder / "odometer.jsonl")
    return Ledger.start(folder / "ledger.jsonl", run, site, [odometer], first)


def resume_ledger(folder: Path, *, site: str = "a", run: str = "run") -> Ledger:
    odometer = Odometer(folder / "odometer.jsonl")
    return Ledger.resume(folder / "ledger.jsonl", run, site, ledgers.units_digest(UNITS), [odometer])
