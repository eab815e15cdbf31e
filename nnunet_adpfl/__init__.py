"""Differentially private federated segmentation of medical images, as a plugin for nnU-Net v2.

The nouns and verbs below are loaded when they are first used, so that ``import nnunet_adpfl`` is quick::

    plan, run            as `adpfl plan` and `adpfl run`      (experiments.pipeline)
    train                as `adpfl train`                     (federation.training)
    evaluate_run         as `adpfl evaluate`                  (evaluation.run_evaluation)
    write_report         as `adpfl report`                    (evaluation.report)
    summarise            as `adpfl privacy`                   (privacy.summary)
    export_run           as `adpfl export`                    (trainers.release)
    Cohort               case -> unit, site                   (cohort)
    PrivacyPlan          every setting of a private run       (privacy.plan)
    AdpflError           base of all errors meant for users   (errors)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "plan": "experiments.pipeline",
    "run": "experiments.pipeline",
    "train": "federation.training",
    "evaluate_run": "evaluation.run_evaluation",
    "write_report": "evaluation.report",
    "summarise": "privacy.summary",
    "export_run": "trainers.release",
    "Cohort": "cohort",
    "PrivacyPlan": "privacy.plan",
    "AdpflError": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
