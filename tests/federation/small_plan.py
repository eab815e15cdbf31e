"""A privacy plan without a data set."""

from __future__ import annotations

from typing import Any

from nnunet_adpfl.privacy.plan import PrivacyPlan, parse


def make_plan(**changes: Any) -> PrivacyPlan:
    content: dict[str, Any] = {
        "unit": "patient", "epsilon": 8.0, "delta": 1e-3, "training_units": {"0": {"a": 40, "b": 20}}, "sampling_rate": 0.25,
        "steps": 20, "reserve_steps": 4, "cohort_digest": "c", "plans_digest": "p", "fingerprint": "public",
    }  # fmt: skip
    return parse({**content, **changes})
