"""The rules by which a privacy plan configures itself, from units, epsilon, delta and the compute allowed.

Nothing is measured on patients: what goes in is public. What each rule rests on: ``docs/planner.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import accounting, patch_rules
from nnunet_adpfl.privacy.choices import Choice, Request, given
from nnunet_adpfl.privacy.signal import ROUGH_EXCESS, accumulated_signal, effective_units, noise_for, site_shares

RATES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0)  # sampling rates to choose from
FEWEST_STEPS, MOST_STEPS = 60, 500
LEARNING_STEPS = 60  # the score's share of learning done after T steps: 1 - exp(-T / this)
SIGNAL_STEPS = 200  # at q = 1, where A no longer depends on the steps
LEAST_NOISE = 2.0  # noise multiplier below which signal is lost
CLIP_MOVE_NOISE = 0.2  # noise of a round's move of log C (one deviation); above it AUTO-S
BELOW_CLIP_NORM = 0.2  # share of units whose gradients stay below an adaptive C
WEIGHT_NOISE = 0.25  # most noise that a training may add to each weight (one deviation)
MOST_LEARNING_RATE = 1.0  # of gradients with norm 1 or less
LEAST_LEARNING_RATE = 0.05  # where noise allows less, fewer steps are taken instead: each has more patients then
ADAM_LEARNING_RATE = 1e-3  # Adam's steps have this size, whatever the gradients' norm
AVERAGED_STEPS, AVERAGED_SHARE = 20, 1 / 6  # the average of the weights spans the fewer of these
LEAST_GAIN = 1.1  # in effective units, for which sites are weighed by precision
LEAST_PART = 0.25  # of the share that its number of units gives a site, which weights by precision have to leave it
WIDTHS = (4, 6, 8, 12, 16, 24, 32)  # base features to choose from
LEAST_SIGNAL_TO_NOISE = 0.2  # A / sqrt(d) that a network shall have


@dataclass(frozen=True)
class Candidate:
    """A sampling rate and a number of steps, with the rough noise multiplier that they need."""

    sampling_rate: float
    steps: int
    noise: float

    @property
    def signal(self) -> float:
        """A of a single unit."""
        return accumulated_signal(self.sampling_rate, 1.0, self.steps, self.noise)

    @property
    def score(self) -> float:
        return self.signal * (1 - math.exp(-self.steps / LEARNING_STEPS))

    @property
    def keeps_signal(self) -> bool:
        return self.noise >= ROUGH_EXCESS * LEAST_NOISE


def plan_training(request: Request) -> dict[str, Choice]:
    """Field of the privacy plan (``section.field``) -> choice; what the user gave is kept and planned around.

    Raises InputError where the compute that was asked for does not pay for one round.
    """
    weights = _weights(request)
    request = replace(request, weighting=str(weights.value))
    patches = patch_rules.patches(request)
    best = _best(request, int(patches.value))
    lost = 1 - best.signal / _most_signal(request, best)
    return {
        "patches_per_unit": patches,
        "oversample_foreground": patch_rules.foreground(request),
        "mirroring": patch_rules.mirroring(request),
        "augmentation": patch_rules.augmentation(request, best.sampling_rate * best.steps),
        "sampling_rate": given(request.sampling_rate) or Choice(best.sampling_rate, _why_rate(request, best, lost)),
        "steps": given(request.steps) or Choice(best.steps, _why_steps(request, best, int(patches.value))),
        "reserve_steps": given(request.reserve_steps)
        or Choice(request.reserve(best.steps), "a tenth of the steps or two rounds, paid for beforehand for interrupted rounds"),
        **_clipping(request, best),
        "noise_decay.final_ratio": given(request.noise_decay)
        or Choice(1.0, "constant: a decay to half costs 23 % more variance on average"),
        "optimizer.name": given(request.optimizer) or Choice("sgd", "Adam's second moments would follow the noise"),
        "optimizer.learning_rate": _learning_rate(request, best),
        "optimizer.ema_decay": _ema_decay(request, best.steps),
        "rounds.weights": weights,
    }


def widest(signal: float, parameters: Callable[[int], int]) -> tuple[Choice, float]:
    """Base features: the widest of WIDTHS whose signal to noise is high enough, and its signal to noise.

    Args:
        signal: A of the federation.
        parameters: base features -> number of trained parameters.
    """
    ratios = {width: signal / math.sqrt(parameters(width)) for width in WIDTHS}
    enough = [width for width, ratio in ratios.items() if ratio >= LEAST_SIGNAL_TO_NOISE]
    width = max(enough, default=WIDTHS[0])
    why = (
        f"the widest network whose expected signal to noise ({ratios[width]:.2f}) is {LEAST_SIGNAL_TO_NOISE:g} or more"
        if enough
        else f"the narrowest: its expected signal to noise ({ratios[width]:.2f}) is below {LEAST_SIGNAL_TO_NOISE:g} already"
    )
    return Choice(width, why), ratios[width]


def _weights(request: Request) -> Choice:
    """Of the sites in the average: by precision where that saves noise, and small sites still count in every fold."""
    if chosen := given(request.weighting):
        return chosen
    if request.strategy == "local":
        return Choice("declared", "nothing is averaged")
    gain = effective_units(request.units, "precision") / effective_units(request.units, "declared")
    if gain < LEAST_GAIN:
        return Choice("declared", f"by numbers of units; by precision would save {1 - 1 / gain:.0%} of the noise only")
    kept = min(_least_part(units) for units in (request.units, *request.folds))
    if kept < LEAST_PART:
        return Choice("declared", f"by numbers of units; by precision a site would keep only {kept:.0%} of its share")
    return Choice("precision", f"{1 - 1 / gain:.0%} less noise in the average; no site keeps less than {kept:.0%} of its share")


def _least_part(units: Sequence[int]) -> float:
    """Share by precision over that by numbers of units, of the site that loses most."""
    shares = zip(site_shares(units, "precision"), site_shares(units, "declared"), strict=True)
    return min(by_precision / by_number for by_precision, by_number in shares)


def _best(request: Request, patches: int) -> Candidate:
    """The best score among those that keep the signal, else among all."""
    found = [Candidate(rate, steps, _rough_noise(request, rate, steps)) for rate, steps in _affordable(request, patches)]
    if request.noise_multiplier is not None:
        found = _with_noise(request, found, request.noise_multiplier)
    return max([one for one in found if one.keeps_signal] or found, key=lambda one: one.score)


def _with_noise(request: Request, found: Sequence[Candidate], noise: float) -> list[Candidate]:
    """Those that this noise multiplier pays for, with it; else the one that needs the least, which calibration then refuses."""
    paid = [one for one in found if _pays(request, one, noise)] or [min(found, key=lambda one: one.noise)]
    return [replace(one, noise=ROUGH_EXCESS * noise) for one in paid]


def _pays(request: Request, one: Candidate, noise: float) -> bool:
    steps = accounting.poisson_gaussian(one.sampling_rate, noise, one.steps + request.reserve(one.steps))
    return accounting.epsilon([*request.spent, steps], request.delta) <= request.epsilon


def _affordable(request: Request, patches: int) -> list[tuple[float, int]]:
    """Sampling rates, each with the most steps that compute allows: fewer have a lower score and less noise to keep."""
    rates = RATES if request.sampling_rate is None else (request.sampling_rate,)
    if request.steps is not None and request.sampling_rate is not None:
        return [(request.sampling_rate, request.steps)]
    most = {rate: request.allowed(patches) / (patches * rate * request.total_units) for rate in rates}
    if request.steps is not None:
        pairs = [(rate, request.steps) for rate in rates if most[rate] >= request.steps]
    else:
        useful = _useful_steps(request)
        rounds = {rate: int(min(steps, useful) / request.local_steps + 1e-9) for rate, steps in most.items()}
        pairs = [(rate, number * request.local_steps) for rate, number in rounds.items() if number]
        pairs = [pair for pair in pairs if pair[1] >= FEWEST_STEPS] or pairs
    if pairs:
        return pairs
    if request.compute is None:  # a default limits nobody who asked for more
        fewest = request.local_steps * math.ceil(FEWEST_STEPS / request.local_steps)
        return [(rate, request.steps or fewest) for rate in rates]
    steps = request.steps or request.local_steps
    least = math.ceil(patches * min(rates) * steps * request.total_units)
    raise InputError(f"--compute {request.compute} does not pay for {steps} steps at all sites: allow {least} patches or more")


def _useful_steps(request: Request) -> float:
    """Steps at which the noise on weights still allows the least learning rate; within the public limits."""
    full = Candidate(1.0, SIGNAL_STEPS, _rough_noise(request, 1.0, SIGNAL_STEPS))
    signal = full.signal * ROUGH_EXCESS * request.effective_units
    return min(MOST_STEPS, max(FEWEST_STEPS, WEIGHT_NOISE * signal / LEAST_LEARNING_RATE))


def _rough_noise(request: Request, rate: float, steps: int) -> float:
    return noise_for(rate, steps + request.reserve(steps), request.epsilon, request.delta, request.spent, rough=True)


def _most_signal(request: Request, best: Candidate) -> float:
    """A of the same number of steps with every unit in every step."""
    return Candidate(1.0, best.steps, _rough_noise(request, 1.0, best.steps)).signal


def _why_rate(request: Request, best: Candidate, lost: float) -> str:
    if request.noise_multiplier is not None:
        return f"the best that the given noise pays for; {lost:.0%} of the signal is lost against q = 1 with the least noise"
    if best.keeps_signal:
        return f"keeps the noise multiplier at {LEAST_NOISE:g} or more, so {lost:.0%} of the signal is lost against q = 1"
    return f"the best score allowed; its noise multiplier is below {LEAST_NOISE:g} and {lost:.0%} of the signal is lost against q = 1"


def _why_steps(request: Request, best: Candidate, patches: int) -> str:
    total = patches * best.sampling_rate * best.steps * request.total_units
    allowed = request.allowed(patches)
    if total > 1.001 * allowed:
        return f"the fewest that can learn: {total:,.0f} patches over all sites, more than the default compute"
    if best.steps > min(MOST_STEPS, _useful_steps(request)) - request.local_steps:
        return f"as many as learning needs at this noise: {total:,.0f} of {allowed:,} patches over all sites"
    return f"as many as compute allows at this q: {total:,.0f} of {allowed:,} patches over all sites"


def _clipping(request: Request, best: Candidate) -> dict[str, Choice]:
    method = _clipping_method(request, best)
    if method.value != "percentile":
        return {"clipping.method": method}
    why = "most gradients reach C, which the noise goes by, and so count for as much as they can"
    return {"clipping.method": method, "clipping.quantile": given(request.clipping_quantile) or Choice(BELOW_CLIP_NORM, why)}


def _clipping_method(request: Request, best: Candidate) -> Choice:
    if chosen := given(request.clipping_method):
        return chosen
    noise = count_move_noise(request, best)
    if noise <= CLIP_MOVE_NOISE:
        return Choice("percentile", f"the noisy counts of a round tell the clip norm's quantile to {noise:.2f}")
    return Choice("auto_s", f"the noisy counts of a round would tell the clip norm's quantile only to {noise:.2f}: no clip norm at all")


def count_move_noise(request: Request, best: Candidate) -> float:
    """Standard deviation of a round's noisy share of units below C, over all sites: what it moves log C by at full rate."""
    steps = min(request.local_steps, best.steps)
    counted = steps * best.sampling_rate * request.total_units
    return request.count_noise_ratio * best.noise / ROUGH_EXCESS * math.sqrt(steps * len(request.units)) / counted


def _learning_rate(request: Request, best: Candidate) -> Choice:
    """Noise moves each weight by lr sqrt(T) z / (q N) = lr T / A; with momentum by 1 / (1 - momentum) times that."""
    if chosen := given(request.learning_rate):
        return chosen
    if request.optimizer == "adam":
        return Choice(ADAM_LEARNING_RATE, "Adam's steps have this size whatever the noise")
    signal = best.signal * ROUGH_EXCESS * request.effective_units
    lasting = 1 - request.momentum  # momentum applies what a step adds, its noise too, this often: 1 / lasting times
    limit = lasting * WEIGHT_NOISE * signal / best.steps
    if limit >= MOST_LEARNING_RATE:
        return Choice(MOST_LEARNING_RATE, "the largest that gradients of norm 1 or less allow")
    rate = _rounded_down(limit)
    return Choice(rate, f"noise then moves each weight by about {rate * best.steps / signal / lasting:.2g} over the training")


def _ema_decay(request: Request, steps: int) -> Choice:
    if chosen := given(request.ema_decay):
        return chosen
    if request.tail_share > 0:
        return Choice(0.0, "off: tail_share takes the plain mean of the last weights instead")
    window = max(2.0, min(AVERAGED_STEPS, AVERAGED_SHARE * steps))
    return Choice(round(1 - 1 / window, 3), f"averages the weights of the last {window:.0f} steps or so, which takes noise out for nothing")


def _rounded_down(value: float) -> float:
    """To two digits."""
    digits = 1 - math.floor(math.log10(value))
    return float(math.floor(value * 10**digits + 1e-9) / 10**digits)
