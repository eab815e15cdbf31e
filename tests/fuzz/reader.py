"""A reader of an external file, and the watch that is kept over it while it reads a damaged one."""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from nnunet_adpfl.errors import AdpflError

MOST_SECONDS = 20
MOST_MEMORY = 4 * 2**30  # above what the process has already
Strategy = Callable[[bytes], st.SearchStrategy[bytes]]


@dataclass(frozen=True)
class Reader:
    """A file and what reads it.

    Attributes:
        name: for reports.
        file: the file that is damaged.
        read: reads it; must return or raise AdpflError.
        structured: makes damaged files that still have the format of the valid one.
        restored: other files that reading may change; they are put back before every example.
        may_write: names (patterns) of files that reading may leave behind below the watched folder.
        cost: examples are divided by this.
    """

    name: str
    file: Path
    read: Callable[[], Any]
    structured: Strategy
    restored: tuple[Path, ...] = ()
    may_write: tuple[str, ...] = ()
    cost: int = 1
    check: Callable[[Any], None] = field(default=lambda _: None)


def try_one(reader: Reader, data: bytes, valid: dict[Path, bytes], root: Path) -> None:
    """The property: a value or one line that names what is wrong; nothing written elsewhere, no hang, no bomb."""
    for path, content in valid.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    reader.file.write_bytes(data)
    before = names(root)
    try:
        with watched():
            reader.check(reader.read())
    except AdpflError as error:
        text = str(error)
        assert text.isprintable(), repr(text)
        assert 10 < len(text) < 1_200
    written = {path for path in names(root) - before if not any(Path(path).match(pattern) for pattern in reader.may_write)}
    assert not written


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@contextmanager
def watched() -> Iterator[None]:
    """Ends what takes too long, or takes too much memory, with an error that is not AdpflError."""

    def late(*_: object) -> None:
        raise TimeoutError("a reader hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MEMORY, limit[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limit)
