"""A central run from its folder to its final checkpoint, without stock nnU-Net around it: what federated ones are compared with."""

from __future__ import annotations

import torch

from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy.noise import Randomness
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import noise_control, post_processing, private_model, run_manifest
from nnunet_adpfl.trainers.central_run import CentralRun, check_no_site_is_left_out
from nnunet_adpfl.trainers.patient_loader import PatientLoader, patch_source
from nnunet_adpfl.trainers.private_model import PrivateModel
from nnunet_adpfl.trainers.run_folder import RunFolder
from nnunet_adpfl.trainers.run_state import Observer, RunState

KIND = "central"


def train_in(
    folder: RunFolder,
    device: torch.device,
    *,
    go_on: bool = False,
    workers: int | None = None,
    randomness: Randomness | None = None,
    observe: Observer | None = None,
) -> None:
    """Train the units of all sites in one pool; arguments and errors as of `federation.training.train_in`."""
    check_no_site_is_left_out(folder.prepared)
    if not go_on:
        run_manifest.check_unused(folder.path)
    with run_manifest.locked(folder.path):
        _train_locked(folder, device, go_on, workers, randomness, observe)


def _train_locked(
    folder: RunFolder, device: torch.device, go_on: bool, workers: int | None, randomness: Randomness | None, observe: Observer | None
) -> None:
    prepared = folder.prepared
    resumed = folder.resume(KIND) if go_on and not folder.is_bare() else None
    planned = PlannedTrainer(prepared.plans, prepared.configuration, prepared.dataset_json, device)
    model = private_model.build(planned, prepared.plan, run_manifest.engine_choice(folder.path) if resumed else None)
    source = patch_source(planned, prepared)
    state = resumed[1] if resumed else folder.start(KIND, str(device), model.engine_choice, model.initial_digest)
    if state.finished:
        note(f"{folder.path}: the run is finished already ({state.steps_done} steps)")
        return
    loader = PatientLoader(source, device, workers)
    run = CentralRun(folder, model, loader, state, randomness)

    def save() -> None:
        folder.save_checkpoint(  # first: a block that is lost here is paid for again
            model.network, state, mirroring_axes=planned.inference_allowed_mirroring_axes, average=run.average,
            optimizer_state=run.training.optimizer.state_dict(),
        )  # fmt: skip
        if not state.finished:
            show()

    def show() -> None:
        if observe is not None:
            kept = {**dict(model.network.named_parameters()), **(run.average or {})}
            observe(state.round, {name: value.detach().cpu().numpy() for name, value in kept.items()}, {})

    try:
        if resumed:
            _restore(run, model, resumed[0], state)
            folder.rewind_rounds(state.round)
            if state.round:
                show()  # again, in case it was interrupted between checkpoint and observer
        else:
            folder.save_checkpoint(model.network, state, mirroring_axes=planned.inference_allowed_mirroring_axes)
        run.control = noise_control.make(prepared, model, source, state.control)
        run.train(save)
    finally:
        loader.close()


def _restore(run: CentralRun, model: PrivateModel, content: checkpoints.Checkpoint, state: RunState) -> None:
    """Weights that training goes on from, their average, and the optimizer's moments."""
    weights = content["network_weights"]
    checkpoints.load_weights(model.network, {**weights, **(state.raw_weights or {})}, "the checkpoint")
    if content["optimizer_state"]:
        post_processing.restore_optimizer(run.training.optimizer, content["optimizer_state"], "the checkpoint")
    if run.training.average is not None:
        run.training.average = {name: weights[name].to(parameter.device) for name, parameter in model.trained.items()}
