"""The privacy ledger of one run at one site: what was spent, written and fsynced before anything it pays for is used.

The first line says what holds for the whole ledger, the others are events (see `accounting`) and notes of releases
without guarantee. Epsilon is always computed from these lines, never kept as a counter.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain
from nnunet_adpfl.privacy.hash_chain import ChainContent, Line
from nnunet_adpfl.privacy.odometer import Odometer

FILE_NAME = "privacy_ledger.jsonl"
KNOWN_EVENTS = (*accounting.SPENDING_EVENTS, "start", "non_private")


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 1e15  # type: ignore[operator]


_START_FIELDS: dict[str, Callable[[Any], bool]] = {  # field of the start line -> whether a value is possible
    "run": lambda value: isinstance(value, str),
    "site": lambda value: isinstance(value, str),
    "unit": lambda value: isinstance(value, str),
    "adjacency": lambda value: isinstance(value, str),
    "delta": lambda value: type(value) is float and 0 < value < 1,
    "composition": lambda value: value in ("declared", "rdp_filter"),
    "order": lambda value: value is None or (_is_positive(value) and value > 1),
    "target_epsilon": lambda value: value is None or _is_positive(value),
    "declared_steps": lambda value: value is None or (type(value) is int and 0 <= value <= accounting.MOST_STEPS),
    "noise_terms": lambda value: value is None or (type(value) is int and 0 < value < 100),
    "largest_block": lambda value: value is None or isinstance(value, dict),
    "planned_events": lambda value: value is None or (isinstance(value, list) and all(isinstance(event, dict) for event in value)),
    "declarations": lambda value: value is None or (isinstance(value, list) and all(isinstance(text, str) for text in value)),
}


@dataclass
class Ledger:
    """Writer of one ledger. Create it with `start` or `resume`; both leave the file verified.

    Attributes:
        path: the file.
        run: name of the run, part of every line.
        site: name of the site, part of every line.
        units_digest: digest of the units that train here.
        odometers: odometers of the sites whose units train here; written before the ledger on every append.
    """

    path: Path
    run: str
    site: str
    units_digest: str
    odometers: Sequence[Odometer]
    content: ChainContent = field(default_factory=lambda: ChainContent(()))

    @classmethod
    def start(cls, path: Path, run: str, site: str, odometers: Sequence[Odometer], first: Mapping[str, Any]) -> Ledger:
        """Begin a ledger with its ``start`` line. Refused where one exists: earlier spending must not vanish."""
        if path.exists():
            raise PrivacyRefusedError(
                f"{path} exists: continue that run (--continue, or --c with nnU-Net) or use another folder"
            )
        ledger = cls(path, run, site, str(first["units_digest"]), odometers)
        ledger.append({"event": "start", **first}, round_index=0, attempt=0)
        return ledger

    @classmethod
    def resume(cls, path: Path, run: str, site: str, units_digest: str, odometers: Sequence[Odometer]) -> Ledger:
        """Open an existing ledger: verify it, compare it with the odometers, complete what a crash interrupted."""
        ledger = cls(path, run, site, units_digest, odometers, hash_chain.read(path))
        first = first_line(path, ledger.content)
        if first.get("run") != run or first.get("site") != site or first.get("units_digest") != units_digest:
            raise PrivacyRefusedError(
                f"{path} belongs to another run, site or set of {first.get('unit')}s; restore the right ledger"
            )
        pending: Line | None = None
        for odometer in odometers:
            pending = odometer.check(run, site, ledger.content) or pending
        if ledger.content.torn is not None:
            announced = announced_event(ledger.content.torn, first)
            if pending is not None and pending["event"] in accounting.SPENDING_EVENTS:
                # The odometer was written first and whole; what is torn may have been edited to announce less.
                rate = pending.get("sampling_rate", 1.0)
                announced = accounting.poisson_gaussian(rate, pending["noise_multiplier"], pending["steps"])
            recovered = {**announced, "event": "recovered", "torn": hash_chain.digest(ledger.content.torn)}
            ledger.append(recovered, round_index=0, attempt=0)
        elif pending is not None:
            ledger._complete(pending)
        return ledger

    def append(self, event: Mapping[str, Any], *, round_index: int, attempt: int) -> None:
        """Write one event, odometers first; durable before it returns. No time of day: durations show draw sizes."""
        if event["event"] in accounting.SPENDING_EVENTS:
            accounting.check_event(event)
        fields = {
            **event,
            "run": self.run,
            "site": self.site,
            "round": round_index,
            "attempt": attempt,
            "date": datetime.date.today().isoformat(),
        }
        line = hash_chain.sealed(fields, self.content.head)
        for odometer in self.odometers:
            odometer.record(line, self.units_digest)
        hash_chain.append(self.path, line)
        self.content = ChainContent((*self.content.lines, line))

    def _complete(self, pending: Line) -> None:
        """Write a line that a crash left in some odometers only: to the other odometers, then to the ledger."""
        for odometer in self.odometers:
            known = odometer.last_line(self.run, self.site)
            if known is None or known["hash"] != pending["hash"]:
                odometer.record(pending, self.units_digest)
        hash_chain.append(self.path, pending)
        self.content = hash_chain.read(self.path)

    @property
    def head(self) -> str:
        return self.content.head

    def events(self) -> list[Line]:
        return spending_events(self.content, self.path)

    def check_contains(self, head: str, origin: str) -> None:
        """Refuse when a checkpoint was made at a point of the ledger that the ledger no longer has."""
        if all(line["hash"] != head for line in self.content.lines):
            raise PrivacyRefusedError(
                f"{self.path} does not contain the state that {origin} was saved at; restore the ledger"
            )


def units_digest(units: Sequence[str]) -> str:
    """Digest of a set of units; tells whether two runs used the same patients. Stays at the site."""
    return hashlib.sha256(json.dumps(sorted(units)).encode()).hexdigest()


def first_line(path: Path, content: ChainContent) -> Line:
    if not content.lines or content.lines[0].get("event") != "start":
        raise PrivacyRefusedError(
            f"{path} has no readable start line, so no step was taken on it: start the run in a new folder"
        )
    first = content.lines[0]
    odd = next((name for name, fits in _START_FIELDS.items() if not fits(first.get(name))), None)
    if odd:
        raise PrivacyRefusedError(f"{path}: {odd} in its start line is {first.get(odd)!r:.80}, which is impossible; restore the file")
    return first


def spending_events(content: ChainContent, path: Path) -> list[Line]:
    """All events that spend, in order; a torn last line counts as spent, an unknown event is refused."""
    first = first_line(path, content)
    events = []
    for line in content.lines:
        if line.get("event") not in KNOWN_EVENTS:
            raise PrivacyRefusedError(
                f"{path}: unknown event {line.get('event')!r}; it was written by another version or damaged"
            )
        if line["event"] in accounting.SPENDING_EVENTS:
            accounting.check_event(line)
            known = [name for name in ("round", "attempt") if name in line or line["event"] != "recovered"]  # a release drops them
            if len(known) == 1 or not all(type(line.get(name)) is int and line[name] >= 0 for name in known):
                raise PrivacyRefusedError(f"{path}: an event belongs to no round or attempt; restore the file")
            events.append(line)
    if content.torn is not None:
        events.append({**announced_event(content.torn, first), "event": "recovered", "round": 0, "attempt": 0})
    return events


def steps_taken(events: Sequence[Line]) -> int:
    """Steps of a run, not counting attempts that were repeated (those of a torn line among them)."""
    attempts: Counter[tuple[int, int]] = Counter()
    for event in events:
        if event["event"] == "poisson_gaussian":
            attempts[int(event.get("round", 0)), int(event.get("attempt", 0))] += int(event["steps"])
    return sum(max(n for (r, _), n in attempts.items() if r == number) for number in {r for r, _ in attempts})


def went_as_declared(events: Sequence[Line], first: Line) -> bool:
    """Whether a run took exactly the steps that it declared, each once: only then what it realised is what it promised.

    A run that stopped early, or repeated a round, ended when something had happened on the way (rule 10).
    """
    paid = sum(int(event["steps"]) for event in events if event["event"] != "gaussian")
    declared = first.get("declared_steps")
    return paid == steps_taken(events) and declared in (None, paid)


def announced_event(torn: str, first: Line) -> dict[str, Any]:
    """What a torn line announced, or the costliest line that the ledger's start allows if that was torn off too."""
    rate = re.search(r'"sampling_rate": ([0-9.eE+-]+),', torn)
    noise = re.search(r'"noise_multiplier": ([0-9.eE+-]+),', torn)
    steps = re.search(r'"steps": (\d+),', torn)
    if rate and noise and steps:
        return accounting.poisson_gaussian(float(rate[1]), float(noise[1]), int(steps[1]))
    largest = first.get("largest_block")
    if not largest:
        raise PrivacyRefusedError(
            "the ledger's last line is torn and its start line names no largest block; it cannot be continued"
        )
    accounting.check_event(largest)
    return dict(largest)
