"""One site of the planned tiny data set and tasks for it, without the server's side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from injected_randomness import InjectedRandomness
from workspace import CONFIGURATION, LOCAL_STEPS, PLANS, SEED, Workspace

from nnunet_adpfl.federation.client import Site
from nnunet_adpfl.federation.messages import RoundTask, Weights
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.noise import Randomness
from nnunet_adpfl.trainers import prepared_fold, private_model
from nnunet_adpfl.trainers.patient_loader import PatientLoader, patch_source

NAME = "site-a"


def make(workspace: Workspace, *, randomness: Randomness | None = None, name: str = NAME) -> Site:
    """The site as `adpfl train` sets it up, in a run folder of its own."""
    prepared = prepared_fold.load(workspace.preprocessed, PLANS, CONFIGURATION, 0, "nnUNetTrainerADP")
    trainer = PlannedTrainer(prepared.plans, CONFIGURATION, prepared.dataset_json, torch.device("cpu"))
    plan = prepared.plan
    source = patch_source(trainer, prepared)
    return Site(
        name,
        workspace.base / "run" / "sites" / name,
        prepared,
        mechanisms.make(plan, 0),
        private_model.build(trainer, plan),
        PatientLoader(source, trainer.device, workers=0),
        randomness or InjectedRandomness(SEED),
    )


def global_weights(site: Site) -> Weights:
    return {name: value.detach().numpy().copy() for name, value in site.model.network.named_parameters()}


def first_task(site: Site, **changes: Any) -> RoundTask:
    plan = site.mechanism.plan
    task = RoundTask(
        run="run", round=0, first_step=0, steps=LOCAL_STEPS, declared_steps=plan.steps, clip_norm=plan.clipping.clip_norm,
        plan_hash=plan.digest(), weights=global_weights(site),
    )  # fmt: skip
    return replace(task, **changes)


def shifted(weights: Weights) -> Weights:
    return {name: np.asarray(value + 0.01, dtype=value.dtype) for name, value in weights.items()}


class CountingEngine:
    """Counts the steps for which a gradient was asked; a refused task must leave it at zero."""

    def __init__(self, clipped_sum: Callable[..., ClippedSum]) -> None:
        self.steps = 0
        self._clipped_sum = clipped_sum

    def clipped_sum(self, *arguments: Any) -> ClippedSum:
        self.steps += 1
        return self._clipped_sum(*arguments)


def counting(site: Site) -> tuple[Site, CountingEngine]:
    engine = CountingEngine(site.model.engine.clipped_sum)
    return replace(site, model=replace(site.model, engine=engine)), engine
