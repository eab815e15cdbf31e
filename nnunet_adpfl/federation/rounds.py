"""The server's side of a federated run: tasks out, updates averaged, clip norm adapted, checkpoint after every round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from nnunet_adpfl.errors import AdpflError, PrivacyRefusedError
from nnunet_adpfl.federation import aggregation, stored_update
from nnunet_adpfl.federation.aggregation import Average
from nnunet_adpfl.federation.engines.interface import RoundEngine
from nnunet_adpfl.federation.messages import RoundTask, SiteFailure, SiteUpdate, Weights
from nnunet_adpfl.federation.server_optimizer import ServerOptimizer
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.progress import note, track
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import local_layers, post_processing
from nnunet_adpfl.trainers.noise_control import NoiseControl
from nnunet_adpfl.trainers.private_model import PrivateModel
from nnunet_adpfl.trainers.run_folder import RunFolder
from nnunet_adpfl.trainers.run_state import Observer, RunState

ATTEMPTS_PER_ROUND = 2  # a round with a failed site is repeated once, then the run stops with its checkpoint


class FederatedRun:
    """All rounds of a run, from any checkpoint on.

    Args:
        folder: where the run lies.
        model: gives the global network its shape and its starting weights.
        engine: carries tasks and updates.
        state: where to go on from.
        mirroring_axes: of nnU-Net's augmentation; the predictor reads them from the checkpoint.
        rounds: stop after this many rounds in all; default: all steps of the plan.
        observe: called after every round.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: PrivateModel,
        engine: RoundEngine,
        state: RunState,
        *,
        mirroring_axes: tuple[int, ...] | None,
        rounds: int | None = None,
        observe: Observer | None = None,
    ) -> None:
        plan = folder.prepared.plan
        self.state = state
        self._folder = folder
        self._model = model
        self._engine = engine
        self._observe = observe
        self._mirroring_axes = mirroring_axes
        self.mechanism = mechanisms.make(plan, folder.prepared.fold.name)
        planned = -(-plan.steps // plan.rounds.local_steps)
        self._rounds = planned if rounds is None else min(rounds, planned)
        units = plan.units_at(folder.prepared.fold.name)
        self._shares = aggregation.declared_shares(units, plan.site_weighting)
        self._global = _as_arrays(dict(model.network.named_parameters()))
        self.control: NoiseControl | None = None  # of a data-driven plan
        self._server = ServerOptimizer(plan.rounds, self._trained_part(self._global), state.server_moments)
        self._local_names = local_layers.names_of(plan.rounds, model.trained)
        self._local_answers: dict[str, Weights] = {}
        self._average: Weights | None = None
        if plan.optimizer.averages_weights:
            self._average = self._trained_part(self._global)

    @property
    def declared_steps(self) -> int:
        """Steps of each site over the whole run, fixed before its first round."""
        plan = self.mechanism.plan
        return min(self._rounds * plan.rounds.local_steps, plan.steps)

    def restore(self, content: checkpoints.Checkpoint) -> None:
        """Global weights (and their average) of the checkpoint that `state` came with."""
        weights = content["network_weights"]
        origin = "the checkpoint"
        checkpoints.load_weights(self._model.network, {**weights, **(self.state.raw_weights or {})}, origin)
        self._global = _as_arrays(dict(self._model.network.named_parameters()))
        if self._average is not None:
            self._average = self._trained_part(_as_arrays(weights))
        self._folder.rewind_rounds(self.state.round)

    def save(self) -> None:
        """Checkpoint of the state between two rounds."""
        network = self._model.network
        tensors = {name: torch.from_numpy(value) for name, value in self._global.items()}
        checkpoints.load_weights(network, tensors, "the global weights")
        average = {name: torch.from_numpy(value) for name, value in (self._average or {}).items()}
        if self._average is not None and not self.state.finished:
            self.state.raw_weights = {name: p.detach() for name, p in self._model.trained.items()}
        if self.state.finished and self.state.local_layers is not None:
            shared = replace(self.state, local_layers=None)
            for site, own in self.state.local_layers.items():
                model = {**average, **own}
                self._folder.save_checkpoint(network, shared, mirroring_axes=self._mirroring_axes, average=model, site=site)
            self.state.local_layers = None
        self._folder.save_checkpoint(network, self.state, mirroring_axes=self._mirroring_axes, average=average)

    def train(self) -> None:
        """Take all remaining rounds. A spent budget ends the run early; everything reached is kept."""
        state = self.state
        for _ in track(range(state.round, self._rounds), "rounds"):
            if self.control is not None and self.control.stopped:
                note("the signal stayed weak at the lowest noise level: training ends here")
                break
            average = self._collect_round()
            if average is None:
                break
            self._finish_round(average)
            if self._observe is not None:  # before the checkpoint: a round that is taken again is looked at again
                self._observe(state.round, {**self._global, **(self._average or {})}, self._local_layers())
            self.save()
        state.finished = True
        state.raw_weights = state.control = state.server_moments = None
        self.save()

    def _collect_round(self) -> Average | None:
        """All sites' updates of one round, averaged; None when a site's budget is spent."""
        failures: list[SiteFailure] = []
        for attempt in range(ATTEMPTS_PER_ROUND):
            average = Average(self._shares, self._trained_part(self._global))
            tasks = {site: self._task(site) for site in self._shares}
            digest = stored_update.task_digest(tasks[min(tasks)])  # the same for all sites
            failures = []
            for answer in self._engine.collect(tasks):
                if failure := self._take(answer, average, digest):
                    note(f"round {self.state.round}, site {failure.site}: {failure.reason}")
                    if failure.refused:
                        raise PrivacyRefusedError(failure.reason)
                    if failure.budget_spent:  # the other sites are not asked: they would pay for a round that is not used
                        note("the privacy budget is spent: the run ends here and keeps its weights")
                        return None
                    failures.append(failure)
            if not failures:
                return average
            if attempt + 1 < ATTEMPTS_PER_ROUND:
                note(f"round {self.state.round} is repeated; sites that had finished send their update again, free")
        raise AdpflError(
            f"round {self.state.round} failed twice at site {failures[0].site} ({failures[0].reason}); the checkpoint of "
            "the last full round is kept: mend the site and go on with --continue"
        )

    def _take(self, answer: SiteUpdate | SiteFailure, average: Average, digest: str) -> SiteFailure | None:
        if isinstance(answer, SiteFailure):
            return answer
        try:
            if answer.run != self.state.run or answer.round != self.state.round:
                raise AdpflError(f"the update is of round {answer.round} of run {answer.run}, not of this round")
            if answer.task_digest != digest:
                raise AdpflError("the update answers another task for this round: other weights, clip norm, steps or privacy plan")
            average.add(answer)
        except AdpflError as error:
            return SiteFailure(answer.site, str(error))
        self.state.ledger_heads[answer.site] = answer.ledger_head
        self._local_answers[answer.site] = {name: answer.weights[name] for name in self._local_names}
        return None

    def _task(self, site: str) -> RoundTask:
        state, plan = self.state, self.mechanism.plan
        return RoundTask(
            run=state.run,
            round=state.round,
            first_step=state.steps_done,
            steps=min(plan.rounds.local_steps, plan.steps - state.steps_done),
            declared_steps=self.declared_steps,
            clip_norm=state.clip_norm,
            plan_hash=state.plan_hash,
            weights=self._global,
            ledger_head=state.ledger_heads.get(site),
            noise_level=self.control.level if self.control else 0,
        )

    def _finish_round(self, average: Average) -> None:
        state, plan = self.state, self.mechanism.plan
        steps = self._task(next(iter(self._shares))).steps
        self._global = {**self._global, **self._server.step(self._trained_part(self._global), average.result())}
        state.server_moments = self._server.state()
        decay = post_processing.average_decay(plan.optimizer, state.steps_done, plan.rounds.local_steps, plan.steps)
        if self._average is not None:
            self._average = aggregation.averaged(self._average, self._global, decay)
        self._keep_local_layers(decay if self._average is not None else 0.0)
        last_step = state.steps_done + steps - 1
        self._folder.append_round(
            {
                "round": state.round,
                "steps_done": state.steps_done + steps,
                "clip_norm": state.clip_norm,
                "learning_rate": post_processing.learning_rate_at(plan.optimizer, last_step, plan.steps),
                **({"noise_level": self.control.level} if self.control else {}),
                "sites": {site: {"steps": steps, "share": share} for site, share in self._shares.items()},
            }
        )
        if average.noisy_count is not None:
            state.clip_norm = self.mechanism.adapted_clip_norm(
                state.clip_norm, average.noisy_count, average.count_noise_std, average.expected_units
            )
        if self.control is not None:
            self.control.after_round({name: torch.from_numpy(self._global[name]) for name in self._model.trained})
            state.control = self.control.state()
        state.round += 1
        state.steps_done += steps

    def _keep_local_layers(self, decay: float) -> None:
        """Each site's own layers, averaged over the rounds like the model that they will go into."""
        if not self._local_names:
            return
        known = self._local_layers()
        self.state.local_layers = {
            site: {
                name: torch.from_numpy(value)
                for name, value in aggregation.averaged(known.get(site, values), values, decay).items()
            }
            for site, values in self._local_answers.items()
        }

    def _local_layers(self) -> dict[str, Weights]:
        return {site: _as_arrays(values) for site, values in (self.state.local_layers or {}).items()}

    def _trained_part(self, weights: Weights) -> Weights:
        return {name: weights[name] for name in self._model.trained}


def _as_arrays(tensors: Mapping[str, torch.Tensor]) -> Weights:
    return {name: np.array(value.detach().cpu().numpy()) for name, value in tensors.items()}
