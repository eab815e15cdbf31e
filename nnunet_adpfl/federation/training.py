"""`adpfl train`: one federated run in one process, from its folder to its final checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from nnunet_adpfl import folders
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.engines.in_process import InProcess
from nnunet_adpfl.federation.rounds import FederatedRun
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy.noise import Randomness, SecretRandomness
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import noise_control, patient_totals, prepared_fold, private_model, run_manifest
from nnunet_adpfl.trainers.device import chosen_device
from nnunet_adpfl.trainers.patient_loader import PatientLoader, patch_source
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.run_folder import RunFolder
from nnunet_adpfl.trainers.run_state import Observer

KIND = "federated"


def train(
    dataset: str,
    configuration: str,
    fold: str | int,
    *,
    trainer: str = "nnUNetTrainerADP",
    plans: str = "nnUNetPlans",
    rounds: int | None = None,
    local_steps: int | None = None,
    strategy: str | None = None,
    go_on: bool = False,
    device: str = "cpu",
    workers: int | None = None,
    randomness: Randomness | None = None,
) -> Path:
    """Train one fold, site by site, and return the run folder.

    Args:
        rounds: R, number of rounds in all; default: until the plan's steps are taken.
        local_steps: S, steps of each site between two averages; default: as the privacy plan says.
        strategy: fedavg, fedprox, fedavgm, fedadam or fedbn; default: as the privacy plan says.
        go_on: continue the run in the folder; without it an existing run is refused.
        randomness: tests only; real runs use the operating system's entropy.

    Raises InputError, PrivacyRefusedError before the first step, and AdpflError when a site fails twice.
    """
    folders.base_folder("nnUNet_results")  # said before any work
    preprocessed = folders.preprocessed_folder(dataset)
    prepared = prepared_fold.load(
        preprocessed, plans, configuration, fold, trainer, local_steps=local_steps, strategy=strategy
    )
    _check_rounds(prepared, rounds)
    path = folders.run_folder(preprocessed.name, trainer, plans, configuration, prepared.fold.name)
    train_in(
        RunFolder(path, prepared, trainer), chosen_device(device),
        rounds=rounds, go_on=go_on, workers=workers, randomness=randomness,
    )  # fmt: skip
    return path


def train_in(
    folder: RunFolder,
    device: torch.device,
    *,
    rounds: int | None = None,
    go_on: bool = False,
    workers: int | None = None,
    randomness: Randomness | None = None,
    observe: Observer | None = None,
) -> None:
    """Train what the folder's prepared fold describes, site by site, into that folder; see `train`.

    Args:
        observe: called after every round.
    """
    if not go_on:
        run_manifest.check_unused(folder.path)
    randomness = randomness or SecretRandomness(folder.prepared.plan.noise_source)
    with run_manifest.locked(folder.path):
        _train_locked(folder, device, rounds, go_on, workers, randomness, observe)


def _train_locked(
    folder: RunFolder,
    device: torch.device,
    rounds: int | None,
    go_on: bool,
    workers: int | None,
    randomness: Randomness,
    observe: Observer | None,
) -> None:
    prepared = folder.prepared
    resumed = folder.resume(KIND) if go_on and not folder.is_bare() else None
    if resumed:
        rounds = _rounds_of(folder.path, rounds)
    planned = PlannedTrainer(prepared.plans, prepared.configuration, prepared.dataset_json, device)
    model = private_model.build(planned, prepared.plan, run_manifest.engine_choice(folder.path) if resumed else None)
    plan = prepared.plan
    source = patch_source(planned, prepared)
    settings: dict[str, object] = {"rounds": rounds, "local_steps": plan.rounds.local_steps, "engine": "in_process"}
    state = resumed[1] if resumed else folder.start(KIND, str(device), model.engine_choice, model.initial_digest, settings)
    engine = InProcess(folder.path, prepared, model, PatientLoader(source, device, workers), randomness)
    try:
        run = FederatedRun(
            folder, model, engine, state,
            mirroring_axes=planned.inference_allowed_mirroring_axes, rounds=rounds, observe=observe,
        )  # fmt: skip
        if resumed:
            run.restore(resumed[0])
        else:
            run.save()
        if state.finished:
            note(f"{folder.path}: the run is finished already ({state.steps_done} steps at each site)")
            return
        note(patient_totals.told_beforehand(prepared, run.mechanism, state.run, run.declared_steps))
        run.control = noise_control.make(prepared, model, source, state.control)
        run.train()
    finally:
        engine.close()


def _rounds_of(run: Path, rounds: int | None) -> int | None:
    """The rounds that a run was declared with; a stop that is decided on the way would have another epsilon."""
    declared = run_manifest.load(run).settings.get("rounds")
    if rounds is not None and rounds != declared:
        text = "all rounds of the plan" if declared is None else f"{declared} rounds"
        raise InputError(f"--rounds {rounds}: the run began with {text}; go on without --rounds")
    return declared if isinstance(declared, int) else None


def _check_rounds(prepared: PreparedFold, rounds: int | None) -> None:
    plan = prepared.plan
    if rounds is not None and (rounds < 1 or rounds * plan.rounds.local_steps > plan.steps):
        raise InputError(
            f"--rounds {rounds} of {plan.rounds.local_steps} local steps do not fit the {plan.steps} steps of the privacy "
            "plan: take fewer, or plan more with `adpfl plan --steps`"
        )
