"""Epsilon spent up to each round, recomputed from the ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_adpfl.privacy import accounting, hash_chain, ledger
from nnunet_adpfl.privacy.hash_chain import Line
from nnunet_adpfl.privacy.summary import ledger_files

Curve = list[tuple[int, float]]
MAX_POINTS = 10  # each point is one composition of loss distributions


def epsilon_over_rounds(run: Path, max_points: int = MAX_POINTS) -> dict[str, Curve]:
    """Site -> (round, epsilon spent up to its end) for at most ``max_points`` rounds, the last one always among them.

    A round counts every attempt at it. Sites that trained without guarantee are left out: they have no epsilon.
    """
    curves: dict[str, Curve] = {}
    known: dict[tuple[object, ...], float] = {}
    for path in ledger_files(run):
        content = hash_chain.read(path)
        first = ledger.first_line(path, content)
        if any(line["event"] == "non_private" and line.get("scope") == "training" for line in content.lines):
            continue
        events = ledger.spending_events(content, path)
        rounds = sorted({_round(event) for event in events})
        curves[str(first["site"])] = [
            (number, _epsilon([event for event in events if _round(event) <= number], first, known))
            for number in _spread(rounds, max_points)
        ]
    return {site: curve for site, curve in curves.items() if curve}


def _round(event: Line) -> int:
    return int(event.get("round", 0))


def _epsilon(events: Sequence[Line], first: Line, known: dict[tuple[object, ...], float]) -> float:
    """Sites usually spend alike, so equal spending is composed once."""
    delta = float(first["delta"])
    order = float(first["order"]) if first["composition"] == "rdp_filter" else None
    spent = sorted((e["event"], e.get("sampling_rate", 1.0), e["noise_multiplier"], e["steps"]) for e in events)
    key = (delta, order, tuple(spent))
    if key not in known:
        known[key] = (
            accounting.epsilon(events, delta) if order is None else accounting.epsilon_rdp(events, delta, order)
        )
    return known[key]


def _spread(rounds: Sequence[int], count: int) -> list[int]:
    """At most ``count`` rounds, evenly spread, with the first and the last."""
    if len(rounds) <= count:
        return list(rounds)
    return [rounds[index * (len(rounds) - 1) // (count - 1)] for index in range(count)]
