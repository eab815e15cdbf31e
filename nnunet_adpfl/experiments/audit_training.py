"""`adpfl audit DATASET CONFIG FOLD`: the shipped training on real patients, attacked with and without a canary unit.

FOR THE SITE'S OWN EYES: patients' gradients are computed on the way. In the figures of the result they cancel (the
adversary subtracts the sum of the others), but no ledger pays for what a figure may still show by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnunet_adpfl import folders
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.experiments import audit, audit_networks
from nnunet_adpfl.experiments.audit import AuditResult, Panel
from nnunet_adpfl.experiments.audit_networks import CanaryTrainer
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.audit import bounds, canary
from nnunet_adpfl.privacy.audit.bounds import Sample
from nnunet_adpfl.privacy.audit.step_audit import Adversary, Step, WatchedEngine, WatchedMechanism, statistics
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.mechanism import ALL_SITES, Permit
from nnunet_adpfl.privacy.noise import Randomness, SecretRandomness
from nnunet_adpfl.progress import note, track
from nnunet_adpfl.trainers import prepared_fold
from nnunet_adpfl.trainers.device import chosen_device
from nnunet_adpfl.trainers.patient_loader import PatientLoader, UnitRequest, patch_source
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.private_model import PrivateModel
from nnunet_adpfl.trainers.private_training import PrivateTraining

CANARY_UNIT = "canary"  # no case has this name: cases of nnU-Net's data sets are looked up, this one never is
LEAST_REPEATS = 50
DEFAULT_STEPS = 10


class CanaryLoader(PatientLoader):
    """The loader of a run, which serves the canary's patch for the canary and real patches for everyone else."""

    canary: UnitPatches | None = None

    def stream(self, requests: Sequence[UnitRequest]) -> Iterator[UnitPatches]:
        real = super().stream([request for request in requests if request.cases != (CANARY_UNIT,)])
        for request in requests:
            if request.cases == (CANARY_UNIT,):
                assert self.canary is not None
                yield self.canary
            else:
                yield next(real)
        next(real, None)  # ends the workers' pass


@dataclass(frozen=True)
class Choices:
    """Settings of a full audit.

    Attributes:
        steps: T, length of the training that is attacked, for which the claim is; None: 10, or the plan's if it has fewer.
        repeats: R, trainings in each world.
        units: real units beside the canary; the claim does not depend on their number, the time does.
        noise_multiplier: None for the plan's own.
    """

    trainer: str = "nnUNetTrainerADP"
    plans: str = "nnUNetPlans"
    steps: int | None = None
    repeats: int = 200
    units: int = 4
    noise_multiplier: float | None = None
    releases: int | None = None
    delta: float | None = None
    device: str = "cpu"
    workers: int | None = None


def full(
    dataset: str, configuration: str, fold: str, choices: Choices, randomness: Callable[[], Randomness] | None = None
) -> AuditResult:
    """Audit one release and T steps of the training of a planned data set; writes nothing into its folders."""
    preprocessed = folders.preprocessed_folder(dataset)
    prepared = prepared_fold.load(preprocessed, choices.plans, configuration, fold, choices.trainer)
    steps = min(DEFAULT_STEPS, prepared.plan.steps) if choices.steps is None else choices.steps
    _check(prepared, choices, steps)
    if prepared.plan.trainable.masks or prepared.plan.projection.dimensions:
        raise InputError("adpfl audit attacks training of all coordinates: plan without trainable.random_mask, phases and projection")
    plan = audit.with_noise(prepared.plan, choices.noise_multiplier)
    delta = choices.delta if choices.delta is not None else plan.delta
    trainer = CanaryTrainer(prepared.plans, configuration, prepared.dataset_json, chosen_device(choices.device))
    model = audit_networks.build(trainer, plan)
    source = patch_source(trainer, prepared)
    loader = CanaryLoader(source, trainer.device, choices.workers)
    fresh = randomness or (lambda: SecretRandomness(plan.noise_source))
    cases = dict(sorted(prepared.cases_by_unit().items())[: choices.units])
    try:
        attack = _StepAttack(mechanisms.make(plan, prepared.fold.name), model, loader, cases, fresh)
        released, release_panel = _release_part(attack, prepared.fold.name, choices.releases, delta)
        stepped, step_panel = _step_part(attack, steps, choices.repeats, delta)
    finally:
        loader.close()
    z, number = attack.permit.noise_multipliers[0], int(released["releases"])
    report = {
        "steps": steps,
        "epsilon_claimed": stepped["epsilon_claimed"],
        "epsilon_lower_bound": stepped["epsilon_lower_bound"],
        **audit.summary([stepped, released], delta, z, number),
        "note": "computed from patients' gradients, which cancel in these figures: for the site's own eyes",
        "training": stepped,
        "release": released,
    }
    return AuditResult(report, [release_panel, step_panel])


class _StepAttack:
    """T steps of the shipped training, again and again from the same weights, in a world with or without the canary."""

    def __init__(
        self,
        mechanism: mechanisms.Mechanism,
        model: PrivateModel,
        loader: CanaryLoader,
        cases: dict[str, list[str]],
        fresh: Callable[[], Randomness],
    ) -> None:
        self.mechanism, self.model, self.loader, self.cases, self.fresh = mechanism, model, loader, cases, fresh
        self.permit = Permit()
        self._start = {name: parameter.detach().clone() for name, parameter in model.trained.items()}

    def units(self) -> list[UnitPatches]:
        """One drawing of every unit's patches, for the release test."""
        secret = self.fresh()
        requests = [UnitRequest(tuple(cases), secret.patch_key(ALL_SITES, 0, unit)) for unit, cases in self.cases.items()]
        return list(self.loader.stream(requests))

    def run(self, steps: int, repeats: int) -> tuple[list[accounting.Event], Sample, Sample]:
        """Events of these steps; the adversary's notes, (repeats, steps, fields of `Step`), without and with the canary."""
        events, self.permit = audit.authorised(self.mechanism, steps)
        adversary = self._adversary()
        engine, mechanism = WatchedEngine(self.model.engine, adversary), WatchedMechanism.of(self.mechanism, adversary)
        found: tuple[list[list[Step]], ...] = ([], [])
        for index in track(range(2 * repeats), "trainings of the audit"):
            world = index % 2
            self._restore()
            adversary.begin()
            training = PrivateTraining(mechanism, engine, self.model.trained, self.loader, self.fresh())
            training.run_block(
                Permit(dict(self.permit.noise_multipliers)),
                ALL_SITES,
                {**self.cases, CANARY_UNIT: [CANARY_UNIT]} if world else self.cases,
                first_step=0,
                steps=steps,
                clip_norm=self.mechanism.plan.clipping.clip_norm,
            )
            found[world].append(adversary.steps)
        self._restore()
        return list(events), np.array(found[0]), np.array(found[1])

    def _adversary(self) -> Adversary:
        """Makes the canary that the loader serves, and knows what it adds to a sum."""
        model, clip_norm = self.model, self.mechanism.plan.clipping.clip_norm
        data = self.units()[0].data
        generator = np.random.default_rng(0)
        wanted = canary.wanted_gradient(model.trained, canary.HUGE * clip_norm, generator)
        self.loader.canary = UnitPatches(torch.zeros_like(data), wanted)
        rule = self.mechanism.clip_rule(clip_norm)
        nobody = model.engine.clipped_sum(iter(()), rule)
        return Adversary(canary.difference(model.engine, [], nobody, self.loader.canary, rule))

    def _restore(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.trained.items():
                parameter.copy_(self._start[name])


def _release_part(attack: _StepAttack, fold: str, releases: int | None, delta: float) -> tuple[dict[str, Any], Panel]:
    plan = audit.one_step(attack.mechanism.plan, attack.mechanism.noise_levels(0, 1)[0][0])
    number = releases or audit.default_releases(attack.mechanism.base_noise_multiplier)
    note(f"audit of one release of {len(attack.cases)} real units: {number} releases in each world")
    audited, claimed, z = audit.audit_model(
        mechanisms.make(plan, fold), ALL_SITES, attack.model, attack.units(), number, (1 - audit.CONFIDENCE) / 2,
        attack.fresh(), delta,
    )  # fmt: skip
    figures = {"steps": 1, "sampling_rate": 1.0, "epsilon_claimed": claimed, **audited.figures}
    panel = Panel("one release, real units", *audited.statistics, audited.rates.threshold, 1 / z)
    return {**figures, "violations": audited.violations}, panel


def _step_part(attack: _StepAttack, steps: int, repeats: int, delta: float) -> tuple[dict[str, Any], Panel]:
    events, *notes = attack.run(steps, repeats)
    failure, q = (1 - audit.CONFIDENCE) / 2, attack.mechanism.plan.sampling_rate
    claimed = accounting.epsilon(events, delta)
    out, inside = statistics(notes[0], notes[1], q)
    rates = bounds.error_rates(out, inside, failure)
    equal_noise = len(set(attack.permit.noise_multipliers.values())) == 1  # else only the assumption-free bound holds
    free = bounds.assumption_free_epsilon(rates, delta)
    low = max(free, bounds.subsampled_epsilon(rates, q, steps, delta) if equal_noise else 0.0)
    halved = bounds.error_rates(*statistics(notes[0], notes[1], q, 0.5), failure)
    low_halved = bounds.assumption_free_epsilon(halved, delta)
    if equal_noise:
        low_halved = max(low_halved, bounds.subsampled_epsilon(halved, q, steps, delta))
    violations = [f"{steps} steps: the adversary shows epsilon {low:.3g}, above the claimed {claimed:.3g}"] if low > claimed else []
    figures = {
        "steps": steps,
        "sampling_rate": q,
        "repeats": repeats,
        "units_beside_the_canary": len(attack.cases),
        "epsilon_claimed": claimed,
        "epsilon_lower_bound": low,
        "epsilon_lower_bound_assumption_free": free,
        "false_positive_rate_upper": rates.false_positive,
        "false_negative_rate_upper": rates.false_negative,
        "threshold": rates.threshold,
        "power": {
            "epsilon_lower_bound_with_half_the_noise": low_halved,
            "would_detect_half_the_noise": low_halved > claimed,
            "sufficient": low_halved > claimed,
        },
        "violations": violations,
    }
    return figures, Panel(f"{steps} steps of training", out, inside, rates.threshold, None)


def _check(prepared: PreparedFold, choices: Choices, steps: int) -> None:
    if not prepared.plan.is_private:
        raise InputError(f"-tr {choices.trainer} is not private, so there is no claim to audit: use nnUNetTrainerADP or nnUNetTrainerDP")
    if not 1 <= steps <= prepared.plan.steps:
        raise InputError(f"--steps {steps} must lie between 1 and the {prepared.plan.steps} steps of the privacy plan")
    if choices.repeats < LEAST_REPEATS:
        raise InputError(f"--repeats {choices.repeats} is too few to show anything: take {LEAST_REPEATS} or more")
    if choices.units < 1:
        raise InputError(f"--units {choices.units} must be 1 or more")
    if choices.releases is not None and choices.releases < audit.LEAST_RELEASES:
        raise InputError(f"--releases {choices.releases} is too few to show anything: take {audit.LEAST_RELEASES} or more")
