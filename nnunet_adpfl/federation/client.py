"""One round at one site: task in, update out. The same function under every engine; all state lies on the site's disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnunet_adpfl import atomic_files, tensor_files
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.federation import stored_update, update_filters
from nnunet_adpfl.federation.messages import RoundTask, SiteUpdate, Weights
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy import ledger as ledgers
from nnunet_adpfl.privacy.ledger import Ledger
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.privacy.noise import Randomness
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import local_layers, post_processing, site_ledger
from nnunet_adpfl.trainers.patient_loader import PatientLoader, UnreadableCaseError
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.private_model import PrivateModel
from nnunet_adpfl.trainers.private_training import BlockOutcome, PrivateTraining


@dataclass(frozen=True)
class Site:
    """What a site has at hand.

    Attributes:
        name: name of the site in the cohort.
        folder: its own folder in the run, ``RUN/sites/SITE``.
        prepared: what it trains on.
        mechanism: made from the site's own copy of the privacy plan.
        model: network and engine; its weights are replaced by those of the task.
        loader: patches of drawn units.
        randomness: secret in real runs; tests inject their own.
    """

    name: str
    folder: Path
    prepared: PreparedFold
    mechanism: Mechanism
    model: PrivateModel
    loader: PatientLoader
    randomness: Randomness


def run_site_round(task: RoundTask, site: Site) -> SiteUpdate:
    """Take the task's local steps and return the update; ledger first, then everything else.

    A task that was finished before gets its stored update again, free. Otherwise this is a new attempt: new draws, new
    noise, a new ledger line.

    Raises PrivacyRefusedError for changed privacy settings or a damaged ledger, BudgetExhaustedError when the steps
    would exceed the budget (nothing was written then), InputError for weights that do not fit the plan.
    """
    _check_task(task, site)
    stored = stored_update.load(task, site.name, site.folder, {name: tuple(p.shape) for name, p in site.model.trained.items()})
    cases_by_unit = site.prepared.cases_by_unit(site.name)
    ledger = _open_ledger(task, site, sorted(cases_by_unit))
    _check_place(task, site, ledger)
    if stored is not None and _is_paid(stored, ledger):
        return stored
    _receive(task.weights, site)
    model = site.model
    training = PrivateTraining(
        site.mechanism, model.engine, model.trained, site.loader, site.randomness, model.masks, model.subspace
    )
    local = _local_layers(site)
    if local and task.round:
        local_layers.put_in_(site.folder, task.round, local)
    _restore_optimizer(training, task, site)
    training.prepare(task.first_step)
    attempt = site_ledger.next_attempt(ledger, task.round)
    permit = site.mechanism.authorise(
        ledger, task.first_step, task.steps, round_index=task.round, attempt=attempt, level=task.noise_level
    )
    try:
        outcome = training.run_block(
            permit, site.name, cases_by_unit, first_step=task.first_step, steps=task.steps, clip_norm=task.clip_norm
        )
    except UnreadableCaseError as error:
        note(f"site {site.name}: {error}")  # here; what goes to the server names nobody
        raise PrivacyRefusedError(f"site {site.name} stops: a preprocessed case cannot be read (it was named there)") from None
    update = _make_update(task, site, outcome, attempt, ledger.head)
    _keep_optimizer(training, task, site)
    if local:
        local_layers.keep(site.folder, task.round, local)
    stored_update.save(update, task, site.folder)
    site_ledger.append_local_log(site.folder, task.round, outcome)
    return update


def _check_task(task: RoundTask, site: Site) -> None:
    """Everything that a server could ask for and the privacy plan does not allow; before anything is written."""
    plan = site.mechanism.plan
    if task.plan_hash != plan.digest():
        raise PrivacyRefusedError(
            f"site {site.name} refuses round {task.round}: the server's privacy plan is not the one agreed on"
        )
    for name in ("round", "first_step", "steps", "declared_steps", "noise_level"):
        value = getattr(task, name)
        if type(value) is not int or not 0 <= value <= accounting.MOST_STEPS:
            raise PrivacyRefusedError(f"site {site.name} refuses a task: its {name} is {value!r:.40}, not a whole number from 0 on")
    end = task.first_step + task.steps
    if end > plan.steps or task.declared_steps > plan.steps:
        raise PrivacyRefusedError(
            f"site {site.name} refuses round {task.round}: steps {task.first_step} to {end} of {task.declared_steps} are "
            f"beyond the {plan.steps} planned ones"
        )
    if end > task.declared_steps:
        raise PrivacyRefusedError(
            f"site {site.name} refuses round {task.round}: the run was declared to have {task.declared_steps} steps"
        )
    if task.steps < 1 or task.steps != min(plan.rounds.local_steps, task.declared_steps - task.first_step):
        raise PrivacyRefusedError(
            f"site {site.name} refuses round {task.round}: {task.steps} steps, the privacy plan has rounds of "
            f"{plan.rounds.local_steps}"
        )
    low, high = plan.clipping.clip_norm_min, plan.clipping.clip_norm_max
    if not low <= task.clip_norm <= high:
        raise PrivacyRefusedError(f"site {site.name} refuses clip norm {task.clip_norm}: outside {low} to {high}")


def _check_place(task: RoundTask, site: Site, ledger: Ledger) -> None:
    """A round takes up the steps where the one before left them: a server cannot take the first ones again and again."""
    before = ledgers.steps_taken([event for event in ledger.events() if event["round"] < task.round])
    if site.mechanism.is_private and task.first_step != before:
        raise PrivacyRefusedError(
            f"site {site.name} refuses round {task.round}: it begins at step {task.first_step}, the rounds before took {before}"
        )


def _open_ledger(task: RoundTask, site: Site, units: list[str]) -> Ledger:
    atomic_files.make_private_folder(site.folder)
    return site_ledger.open_ledger(
        site.folder / ledgers.FILE_NAME,
        run=task.run,
        site=site.name,
        units=units,
        site_odometers=[site_ledger.odometer_of(site.prepared.preprocessed, site.name)],
        mechanism=site.mechanism,
        declared_steps=task.declared_steps,
        checkpoint_head=task.ledger_head,
        **({"reason": update_filters.reason(site.mechanism.plan, site.model.trained)} if _has_filter(site) else {}),
    )


def _is_paid(update: SiteUpdate, ledger: Ledger) -> bool:
    return any(line["hash"] == update.ledger_head for line in ledger.content.lines)


def _receive(weights: Weights, site: Site) -> None:
    """Weights from the server into the network, after rule 15's checks."""
    if not all(isinstance(value, np.ndarray) for value in weights.values()):
        raise InputError("received weights are not plain arrays")
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    checkpoints.load_weights(site.model.network, tensors, "weights received from the server")


def _has_filter(site: Site) -> bool:
    return site.mechanism.plan.update_filter.kind != "none"


def _make_update(task: RoundTask, site: Site, outcome: BlockOutcome, attempt: int, head: str) -> SiteUpdate:
    weights = {name: p.detach().cpu().numpy().copy() for name, p in site.model.trained.items()}
    if _has_filter(site):
        generator = site.randomness.noise(site.name, task.first_step)
        weights = update_filters.filtered(site.mechanism.plan.update_filter, task.weights, weights, task.steps, generator)
    return SiteUpdate(
        site=site.name,
        run=task.run,
        round=task.round,
        attempt=attempt,
        steps=task.steps,
        weights=weights,
        noisy_count=outcome.noisy_count,
        count_noise_std=outcome.count_noise_std,
        expected_units=outcome.expected_units,
        ledger_head=head,
        task_digest=stored_update.task_digest(task),
    )


def _local_layers(site: Site) -> dict[str, torch.nn.Parameter]:
    names = local_layers.names_of(site.mechanism.plan.rounds, site.model.trained)
    return {name: site.model.trained[name] for name in names}


def _optimizer_file(site: Site, round_index: int) -> Path:
    return site.folder / f"optimizer_after_round_{round_index}.pth"


def _restore_optimizer(training: PrivateTraining, task: RoundTask, site: Site) -> None:
    """Optimizer state at the start of a round: reset, or kept at the site, as the plan declares."""
    if site.mechanism.plan.rounds.optimizer_state == "reset" or task.round == 0:
        return
    path = _optimizer_file(site, task.round - 1)
    if not path.is_file():
        raise InputError(f"{path} is missing: the plan keeps the optimizer state at the site; restore it")
    post_processing.restore_optimizer(training.optimizer, tensor_files.load(path), str(path))


def _keep_optimizer(training: PrivateTraining, task: RoundTask, site: Site) -> None:
    if site.mechanism.plan.rounds.optimizer_state == "reset":
        return
    checkpoints.save(training.optimizer.state_dict(), _optimizer_file(site, task.round), private=True)
    _optimizer_file(site, task.round - 2).unlink(missing_ok=True)  # the one before may be needed for a retry
