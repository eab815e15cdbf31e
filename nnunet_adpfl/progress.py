"""Progress of long work: a rich bar on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_PLAIN_LINES = 20.0


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while showing how far the work is. ``total`` is needed where ``len(items)`` is unknown."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415  (a plain log needs no rich)
        from rich.progress import track as rich_track  # noqa: PLC0415

        yield from rich_track(items, description=description, total=count, console=Console(stderr=True))
        return
    last = time.monotonic()
    for index, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > SECONDS_BETWEEN_PLAIN_LINES or index == count:
            note(f"{description}: {index}/{count}")
            last = time.monotonic()


def note(message: str) -> None:
    """One plain line on standard error (standard output belongs to results and ``--json``)."""
    print(message, file=sys.stderr, flush=True)
