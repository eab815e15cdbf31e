"""The default private trainer, for stock ``nnUNetv2_train``: adaptive DP-SGD with the patient as unit of privacy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_adpfl import atomic_files, folders
from nnunet_adpfl.errors import AdpflError, InputError, PrivacyRefusedError
from nnunet_adpfl.nnunet_compat.patches import PatchSource
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import noise_control, post_processing, prepared_fold, private_model, run_manifest
from nnunet_adpfl.trainers.central_run import CentralRun, check_no_site_is_left_out
from nnunet_adpfl.trainers.parameters import weights_digest
from nnunet_adpfl.trainers.patient_loader import PatientLoader, default_workers, patch_source
from nnunet_adpfl.trainers.run_folder import RunFolder
from nnunet_adpfl.trainers.run_state import RunState

KIND = "stock"
WANDB_VARIABLE = "nnUNet_wandb_enabled"


class nnUNetTrainerADP(nnUNetTrainer):  # noqa: N801  (nnU-Net finds trainers by class name)
    """Adaptive clipping, noise as the privacy plan declares it. All settings are in the privacy plan.

    The training loop is its own: nnU-Net's would apply its gradient scaler and a clip over the batch, and would write
    losses and a pseudo Dice into the checkpoint.
    """

    was_initialized: bool
    settings_of = "nnUNetTrainerADP"  # whose fields of the privacy plan are used; subclasses keep it

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        plans.setdefault("continue_training", False)
        self.continuing = bool(plans["continue_training"])
        with _errors_in_one_line():
            _refuse_unsupported_call()
            name = str(plans["plans_name"])
            preprocessed = folders.preprocessed_folder(str(plans["dataset_name"]))
            self.prepared = prepared_fold.load(preprocessed, name, configuration, fold, self.settings_of)
            check_no_site_is_left_out(self.prepared)
            path = folders.run_folder(preprocessed.name, type(self).__name__, name, configuration, fold)
            self.run_folder = RunFolder(path, self.prepared, type(self).__name__)
            if not self.continuing and "--val" not in sys.argv:
                run_manifest.check_unused(path)
        super().__init__(plans, configuration, fold, dataset_json, device)
        atomic_files.make_private_file(Path(self.log_file))  # its times show how many were drawn
        self.oversample_foreground_percent = self.prepared.plan.oversample_foreground
        self.probabilistic_oversampling = True
        self.num_iterations_per_epoch = self.prepared.plan.rounds.local_steps
        self.num_epochs = -(-self.prepared.plan.steps // self.num_iterations_per_epoch)
        self.resumed: tuple[checkpoints.Checkpoint, RunState] | None = None
        self.central_run: CentralRun | None = None

    def _do_i_compile(self) -> bool:
        return False  # compiled kernels differ between machines, and the engine needs the plain network

    def initialize(self) -> None:
        """Network at its declared initial weights, loss, and what of it is trained."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice")
        with _errors_in_one_line():
            earlier = run_manifest.engine_choice(self.run_folder.path) if self.continuing else None
            self.model = private_model.build(self, self.prepared.plan, earlier)
            self.network, self.loss = self.model.network, self.model.loss
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
            self.was_initialized = True

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Weights of a checkpoint; of an unfinished run those before averaging, because training goes on from them."""
        if not self.was_initialized:
            self.initialize()
        with _errors_in_one_line():
            if isinstance(filename_or_checkpoint, dict):
                raise InputError("load_checkpoint: give the path of a checkpoint file")
            content = checkpoints.load(Path(filename_or_checkpoint))
            checkpoints.private_state(content, Path(filename_or_checkpoint), self.prepared.plan.digest())
            if self.continuing:
                content, state = self.resumed = self.run_folder.resume(KIND)
                weights = {**content["network_weights"], **(state.raw_weights or {})}
            else:
                weights = content["network_weights"]
            checkpoints.load_weights(self.network, weights, str(filename_or_checkpoint))

    def run_training(self) -> None:
        """All remaining blocks of the plan, then checkpoint_final.pth with nnU-Net's format."""
        with _errors_in_one_line(), run_manifest.locked(self.run_folder.path):
            if not self.was_initialized:
                self.initialize()
            source = patch_source(self, self.prepared)
            loader = PatientLoader(source, self.device)
            _leave_cores_to_loader(self.device)
            try:
                if self.resumed is not None:  # read before the lock was held: another process may have gone on since
                    self.load_checkpoint(str(checkpoints.newest(self.run_folder.path)))
                state = self._start() if self.resumed is None else self._go_on(self.resumed[1])
                self._train(loader, source, state)
            finally:
                loader.close()

    def save_checkpoint(self, filename: str) -> None:
        """Not used: checkpoints are written by the run, after what they hold was paid for."""
        raise RuntimeError("nnUNetTrainerADP writes its checkpoints itself")

    def _start(self) -> RunState:
        if weights_digest(self.network) != self.model.initial_digest:
            raise PrivacyRefusedError(
                "the weights at the start are not the trainer's own (-pretrained_weights?): declare public weights with "
                "their sha256 in the privacy plan (initial_weights)"
            )
        if self.disable_checkpointing:
            raise InputError("--disable_checkpointing is refused: a private run without checkpoints spends for nothing")
        if self.continuing and self.run_folder.has_ledger():
            self.run_folder.resume(KIND)  # raises: a ledger without its checkpoint
        state = self.run_folder.start(KIND, str(self.device), self.model.engine_choice, self.model.initial_digest)
        self._save(state)
        return state

    def _go_on(self, state: RunState) -> RunState:
        self.run_folder.rewind_rounds(state.round)
        return state

    def _train(self, loader: PatientLoader, source: PatchSource, state: RunState) -> None:
        run = self.central_run = CentralRun(self.run_folder, self.model, loader, state)
        run.control = noise_control.make(self.prepared, self.model, source, state.control)
        if self.resumed is not None and not state.finished:
            content = self.resumed[0]
            if content["optimizer_state"]:
                post_processing.restore_optimizer(run.training.optimizer, content["optimizer_state"], "the checkpoint")
            if run.training.average is not None:
                run.training.average = {
                    name: content["network_weights"][name].to(self.device) for name in self.model.trained
                }
        if not state.finished:
            run.train(lambda: self._save(state))
        if run.average is not None:
            checkpoints.load_weights(self.network, {**self.network.state_dict(), **run.average}, "the averaged weights")
        self.print_to_log_file(f"Training done: {state.steps_done} steps.")

    def _save(self, state: RunState) -> None:
        run = self.central_run
        self.run_folder.save_checkpoint(
            self.network,
            state,
            mirroring_axes=self.inference_allowed_mirroring_axes,
            average=run.average if run else None,
            optimizer_state=run.training.optimizer.state_dict() if run else None,
        )
        if run is not None:
            plan = self.prepared.plan
            rate = post_processing.learning_rate_at(plan.optimizer, max(state.steps_done - 1, 0), plan.steps)
            self.print_to_log_file(
                f"Step {state.steps_done}/{plan.steps}, clip norm {state.clip_norm:.4g}, learning rate {rate:.4g}"
            )


def _leave_cores_to_loader(device: torch.device) -> None:
    """nnU-Net takes all cores for training on a CPU. Where its spinning threads meet the loader's workers, a step takes
    many times longer (docs/performance.md)."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() - default_workers()))


def _refuse_unsupported_call() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise InputError("several GPUs (-num_gpus above 1) are not supported by private trainers; train on one")
    if os.environ.get(WANDB_VARIABLE, "").lower() in ("1", "true", "t"):
        raise InputError("nnUNet_wandb_enabled is set: a private run sends nothing to Weights & Biases; unset it")
    if "--val_best" in sys.argv:
        raise InputError("--val_best is refused: choosing a checkpoint by its validation score is not in the guarantee")


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Stock nnU-Net would print a traceback; a message meant for the user ends the command with one line."""
    try:
        yield
    except (AdpflError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
