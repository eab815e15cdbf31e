"""From events to epsilon: privacy loss distributions (dp-accounting), with Opacus PRV and RDP as cross-checks.

An event is a plain dictionary as it stands in the ledger::

    {"event": "poisson_gaussian", "sampling_rate": 0.25, "noise_multiplier": 3.1, "steps": 5}

>>> round(epsilon([poisson_gaussian(0.05, 2.0, 1000)], 1e-5), 2)
3.7
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from nnunet_adpfl.errors import InputError, PrivacyRefusedError

Event = Mapping[str, Any]
PLD_INTERVAL = 1e-3
NO_PROMISE = 30_000.0  # above this (loose) bound nobody is protected, and a loss distribution would fill the memory
MOST_STEPS, LEAST_NOISE = 10**7, 1e-4  # beyond these a ledger line is damaged, and composing it would not end
FILTER_ORDERS = (*(float(order) for order in range(2, 17)), 20.0, 24.0, 32.0, 48.0, 64.0)  # whole: exact sums
SPENDING_EVENTS = ("poisson_gaussian", "gaussian", "recovered")
_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE  # zero-out has the same loss distribution here


def poisson_gaussian(sampling_rate: float, noise_multiplier: float, steps: int) -> dict[str, Any]:
    """The event of ``steps`` DP-SGD steps: Poisson sampling, then a Gaussian of this joint noise multiplier."""
    return {
        "event": "poisson_gaussian",
        "sampling_rate": sampling_rate,
        "noise_multiplier": noise_multiplier,
        "steps": steps,
    }


def gaussian(noise_multiplier: float) -> dict[str, Any]:
    """The event of one Gaussian release of all units: standard deviation / joint L2 sensitivity of one unit."""
    return {"event": "gaussian", "noise_multiplier": noise_multiplier, "steps": 1}


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Epsilon at ``delta`` of all spending events together, by privacy loss distributions (an upper bound).

    Raises PrivacyRefusedError for an event that is unknown or malformed: it is never guessed.
    """
    merged = _merge(events)
    if not merged:
        return 0.0
    if (bound := _quick_bound(merged, delta)) > NO_PROMISE:
        return bound
    accountant = PLDAccountant(_RELATION, value_discretization_interval=PLD_INTERVAL)
    return float(_composed(accountant, merged).get_epsilon(delta))


def epsilon_rdp(events: Sequence[Event], delta: float, order: float | None = None) -> float:
    """The same by Renyi DP; with ``order`` at that fixed order alone, as a privacy filter has to report."""
    merged = _merge(events)
    if not merged:
        return 0.0
    if order is not None:
        return epsilon_of_rdp(rdp(events, order), delta, order)
    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512]
    return float(_composed(RdpAccountant(orders, _RELATION), merged).get_epsilon(delta))


def rdp(events: Sequence[Event], order: float) -> float:
    """Renyi divergence of all events together at one order; infinite where rounding spoils it (extreme noise)."""
    merged = _merge(events)
    found = float(_composed(RdpAccountant([order], _RELATION), merged).rdp[0])
    if not merged:
        return 0.0
    return found if math.isfinite(found) and found > 0 else math.inf


def epsilon_of_rdp(divergence: float, delta: float, order: float) -> float:
    """(order, divergence)-Renyi privacy as epsilon at delta (Canonne, Kamath and Steinke 2020, proposition 12)."""
    return max(0.0, divergence + _conversion(delta, order))


def rdp_of_epsilon(target: float, delta: float, order: float) -> float:
    """The divergence that a filter of this order allows for a target epsilon: the inverse of `epsilon_of_rdp`."""
    return max(0.0, target - _conversion(delta, order))


def _conversion(delta: float, order: float) -> float:
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def epsilon_prv(events: Iterable[Event], delta: float) -> float | None:
    """The same by Opacus' PRV accountant, an independent implementation; None where it is known to be impractical."""
    from opacus.accountants import PRVAccountant  # noqa: PLC0415  (slow to import, used for reports only)

    merged = _merge(events)
    total_steps = sum(merged.values())
    if not merged or total_steps > 20_000 or _quick_bound(merged, delta) > NO_PROMISE:
        return 0.0 if not merged else None
    accountant = PRVAccountant()
    accountant.history = [(z, q, n) for (_, q, z), n in merged.items()]
    try:
        with np.errstate(divide="ignore"):  # of a release without sampling it takes the logarithm of 1 - q = 0
            return float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        return None  # PRV fails for very large epsilon (known limitation); PLD stays the reported figure


def calibrate(
    events_of: Callable[[float], Sequence[Event]],
    target_epsilon: float,
    delta: float,
    measure: Callable[[Sequence[Event], float], float] = epsilon,
) -> float:
    """Smallest noise multiplier (to 4 digits, rounded up) with ``measure(events_of(z), delta) <= target_epsilon``."""
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise InputError(f"epsilon must be a finite number above 0, not {target_epsilon}")
    if not 0 < delta < 1:
        raise InputError(f"delta must lie between 0 and 1, not {delta}")
    low, high = 0.05, 1.0
    while measure(events_of(high), delta) > target_epsilon:
        low, high = high, high * 2
        if high > 1e5:
            raise InputError(
                f"no noise reaches epsilon {target_epsilon} at delta {delta}; take fewer steps or a larger epsilon"
            )
    while high / low > 1 + 2e-4:
        middle = math.sqrt(low * high)
        if measure(events_of(middle), delta) > target_epsilon:
            low = middle
        else:
            high = middle
    digits = 4 - math.ceil(math.log10(high))
    return math.ceil(high * 10**digits) / 10**digits


def best_filter_order(
    events_of: Callable[[float], Sequence[Event]], target_epsilon: float, delta: float, noise_multiplier: float | None
) -> float:
    """The Renyi order at which a privacy filter allows the planned events with the least noise.

    A filter adds up the Renyi divergence at ONE order, fixed beforehand; the composition of steps whose noise depends on
    earlier outputs is bounded by it (Feldman and Zrnic 2021, theorem 4.3).

    Args:
        noise_multiplier: where it is given already, the order with the smallest epsilon is taken.
    """

    def cost(order: float) -> float:
        def measure(events: Sequence[Event], delta: float) -> float:
            return epsilon_rdp(events, delta, order)

        if noise_multiplier is not None:
            return measure(events_of(noise_multiplier), delta)
        try:
            return calibrate(events_of, target_epsilon, delta, measure)
        except InputError:
            return math.inf  # small orders cannot reach a small epsilon whatever the noise

    best = min(FILTER_ORDERS, key=cost)
    if math.isinf(cost(best)):
        raise InputError(f"no noise reaches epsilon {target_epsilon} at delta {delta}; take fewer steps or a larger epsilon")
    return best


def check_event(event: Event) -> None:
    """Refuse an event that a reader could misunderstand."""
    kind = event.get("event")
    if kind not in SPENDING_EVENTS:
        raise PrivacyRefusedError(f"ledger: unknown event {kind!r}; it was written by another version or damaged")
    q = 1.0 if kind == "gaussian" else event.get("sampling_rate")
    z, steps = event.get("noise_multiplier"), event.get("steps")
    valid = (
        _is_number(q)
        and 0 < q <= 1  # type: ignore[operator]
        and _is_number(z)
        and z >= LEAST_NOISE  # type: ignore[operator]
        and isinstance(steps, int)
        and not isinstance(steps, bool)
        and 0 < steps <= MOST_STEPS
    )
    if not valid:
        raise PrivacyRefusedError(f"ledger: event {dict(event)!r} has impossible figures; the ledger is damaged")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _quick_bound(merged: Mapping[tuple[str, float, float], int], delta: float) -> float:
    """An upper bound on epsilon in a millisecond, loose by a factor of a few where it is large."""
    return float(_composed(RdpAccountant([2, 4, 8, 16, 32, 64], _RELATION), merged).get_epsilon(delta))


def _merge(events: Iterable[Event]) -> dict[tuple[str, float, float], int]:
    """Equal events counted once with all their steps, so that a ledger of many rounds is composed quickly."""
    merged: Counter[tuple[str, float, float]] = Counter()
    for event in events:
        check_event(event)
        q = 1.0 if event["event"] == "gaussian" else float(event["sampling_rate"])
        merged["gaussian" if q == 1.0 else "poisson", q, float(event["noise_multiplier"])] += int(event["steps"])
    return dict(merged)


def _composed(accountant: Any, merged: Mapping[tuple[str, float, float], int]) -> Any:
    for (kind, q, z), steps in merged.items():
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(z)
        if kind == "poisson":
            event = dp_accounting.PoissonSampledDpEvent(q, event)
        accountant.compose(event, steps)
    return accountant
