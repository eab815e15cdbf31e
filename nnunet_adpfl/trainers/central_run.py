"""A run in one place: the units of all sites in one pool, as stock ``nnUNetv2_train`` trains. Blocks instead of rounds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnunet_adpfl.errors import BudgetExhaustedError, InputError
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import ALL_SITES
from nnunet_adpfl.privacy.noise import Randomness, SecretRandomness
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import patient_totals, post_processing, site_ledger
from nnunet_adpfl.trainers.noise_control import NoiseControl
from nnunet_adpfl.trainers.patient_loader import PatientLoader
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.private_model import PrivateModel
from nnunet_adpfl.trainers.private_training import BlockOutcome, PrivateTraining
from nnunet_adpfl.trainers.run_folder import RunFolder
from nnunet_adpfl.trainers.run_state import RunState


def check_no_site_is_left_out(prepared: PreparedFold) -> None:
    """InputError where a site only validates: a central run is entered in the odometers of all sites of the cohort."""
    if prepared.left_out_sites:
        raise InputError(
            f"fold {prepared.fold.name} leaves out site {prepared.left_out_sites[0]}, and a central run is entered at every site of the "
            "cohort: take a fold of `adpfl plan --folds patients`, or train federated"
        )


class CentralRun:
    """Trains a model block by block; after each block a checkpoint, before each block its ledger line.

    Args:
        folder: where the run lies.
        model: network and engine.
        loader: patches of drawn units.
        state: where to go on from.
        randomness: secret in real runs; tests inject their own.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: PrivateModel,
        loader: PatientLoader,
        state: RunState,
        randomness: Randomness | None = None,
    ) -> None:
        self.state = state
        self.control: NoiseControl | None = None  # of a data-driven plan
        self._folder = folder
        self._mechanism = mechanisms.make(folder.prepared.plan, folder.prepared.fold.name)
        self.training = PrivateTraining(
            self._mechanism, model.engine, model.trained, loader,
            randomness or SecretRandomness(self._mechanism.plan.noise_source), model.masks, model.subspace,
        )  # fmt: skip
        if folder.prepared.plan.optimizer.averages_weights:
            self.training.average = {name: parameter.detach().clone() for name, parameter in model.trained.items()}

    @property
    def blocks(self) -> int:
        plan = self._mechanism.plan
        return -(-plan.steps // plan.rounds.local_steps)

    def train(self, save: Callable[[], None]) -> None:
        """Take all remaining blocks; stops early, with everything kept, when the budget is spent.

        Args:
            save: writes the checkpoint of `state`; called after every block and at the end.
        """
        note(patient_totals.told_beforehand(
            self._folder.prepared, self._mechanism, self.state.run, self._mechanism.plan.steps
        ))  # fmt: skip
        ledger = self._open_ledger()
        plan, state = self._mechanism.plan, self.state
        cases_by_unit = self._folder.prepared.cases_by_unit()
        while state.steps_done < plan.steps and not (self.control and self.control.stopped):
            steps = min(plan.rounds.local_steps, plan.steps - state.steps_done)
            attempt = site_ledger.next_attempt(ledger, state.round)
            self.training.prepare(state.steps_done)
            try:
                permit = self._mechanism.authorise(
                    ledger, state.steps_done, steps, round_index=state.round, attempt=attempt,
                    level=self.control.level if self.control else 0,
                )  # fmt: skip
            except BudgetExhaustedError as stopped:
                note(str(stopped))
                break
            outcome = self.training.run_block(
                permit, ALL_SITES, cases_by_unit, first_step=state.steps_done, steps=steps, clip_norm=state.clip_norm
            )
            self._finish_block(ledger, outcome, steps, attempt)
            save()
        state.finished = True
        state.raw_weights = state.control = None
        state.ledger_heads = {ALL_SITES: ledger.head}
        save()

    def _open_ledger(self) -> Ledger:
        prepared, state = self._folder.prepared, self.state
        return site_ledger.open_ledger(
            self._folder.path / ledgers.FILE_NAME,
            run=state.run,
            site=ALL_SITES,
            units=sorted(prepared.cases_by_unit()),
            site_odometers=[
                site_ledger.odometer_of(prepared.preprocessed, site)
                for site in prepared.cohort.sites
                if prepared.cases_by_unit(site)  # whoever trains is counted, whatever the plan says about sites
            ],
            mechanism=self._mechanism,
            declared_steps=prepared.plan.steps,
            checkpoint_head=state.ledger_heads.get(ALL_SITES),
        )

    def _finish_block(self, ledger: Ledger, outcome: BlockOutcome, steps: int, attempt: int) -> None:
        state, plan = self.state, self._mechanism.plan
        record = {
            "round": state.round,
            "steps_done": state.steps_done + steps,
            "clip_norm": state.clip_norm,
            "learning_rate": post_processing.learning_rate_at(plan.optimizer, state.steps_done + steps - 1, plan.steps),
            "sites": {ALL_SITES: {"steps": steps, "attempt": attempt}},
        }
        self._folder.append_round(record)
        site_ledger.append_local_log(self._folder.path, state.round, outcome)
        if outcome.noisy_count is not None:
            state.clip_norm = self._mechanism.adapted_clip_norm(
                state.clip_norm, outcome.noisy_count, outcome.count_noise_std, outcome.expected_units
            )
        if self.control is not None:
            self.control.after_round(self.training.trained)
            state.control = self.control.state()
        state.round += 1
        state.steps_done += steps
        state.ledger_heads = {ALL_SITES: ledger.head}
        if self.training.average is not None:
            state.raw_weights = {name: p.detach() for name, p in self.training.trained.items()}

    @property
    def average(self) -> dict[str, torch.Tensor] | None:
        return self.training.average
