"""How much signal a planned training keeps on a network of a given width, and which width is advised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_adpfl.federation.plans import adapted_plans
from nnunet_adpfl.nnunet_compat.training import parameter_count
from nnunet_adpfl.privacy.choices import Choice
from nnunet_adpfl.privacy.plan import PrivacyPlan
from nnunet_adpfl.privacy.planner import widest
from nnunet_adpfl.privacy.signal import accumulated_signal, effective_units


@dataclass(frozen=True)
class ExpectedSignal:
    """Before any patient is looked at.

    Attributes:
        accumulated: A of the federation.
        parameters: d, trained coordinates of the planned network. Declared phases and a projection are not counted: d then
            changes on the way, or is far smaller.
        advised: base features that the planner would take.
        advised_signal_to_noise: with them.
    """

    accumulated: float
    parameters: int
    advised: Choice
    advised_signal_to_noise: float

    @property
    def signal_to_noise(self) -> float:
        """A / sqrt(d)."""
        return self.accumulated / math.sqrt(self.parameters)

    def to_json(self) -> dict[str, Any]:
        return {
            "accumulated_signal": float(f"{self.accumulated:.4g}"),
            "parameters": self.parameters,
            "signal_to_noise": float(f"{self.signal_to_noise:.3g}"),
            "advised_base_features": self.advised.value,
            "advised_signal_to_noise": float(f"{self.advised_signal_to_noise:.3g}"),
        }


def expected_signal(
    plan: PrivacyPlan, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> ExpectedSignal | None:
    """Of the fold with the fewest units; None for a plan without noise."""
    if plan.noise_multiplier is None:
        return None
    effective = effective_units(plan.fewest_units, plan.rounds.weights, plan.rounds.strategy)
    accumulated = accumulated_signal(plan.sampling_rate, effective, plan.steps, plan.noise_multiplier)

    def trained(adapted: dict[str, Any]) -> int:
        return round(plan.trainable.random_mask * parameter_count(adapted, configuration, dataset_json, plan.trainable.freeze_patterns))

    advised, ratio = widest(accumulated, lambda width: trained(adapted_plans(plans, width)))
    return ExpectedSignal(accumulated, trained(plans), advised, ratio)


def base_features_of(plans: Mapping[str, Any], configuration: str) -> int | None:
    """Features of the first stage; None where the plan describes its network otherwise."""
    settings = plans["configurations"][configuration]
    arguments = settings.get("architecture", {}).get("arch_kwargs", {})
    return int(arguments["features_per_stage"][0]) if "features_per_stage" in arguments else None
