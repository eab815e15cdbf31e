"""Atomic writes: a reader sees the old file or the new one, never half of one.

Temporary file in the same folder, flush, fsync, rename, fsync of the folder. On any error (a full disk, say) the
temporary file is removed and the previous file stays as it was.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path | str, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on leaving without error it becomes ``path``, durably.

    Args:
        private: only the owner may read it; otherwise the umask decides, as for any file of nnU-Net.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _fsync(temporary)
        os.chmod(temporary, 0o600 if private else 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(target.parent)


def write_bytes(path: Path | str, data: bytes | memoryview, *, private: bool = False) -> None:
    with replacing(path, private=private) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Indented JSON; NaN and infinity are refused, because other readers would not accept them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_line(path: Path | str, line: str) -> None:
    """Append one line and force it to disk before returning (used for ledgers: write ahead, then act).

    A new file is the owner's alone: such files tell when a site trained, and what it spent.
    """
    target = Path(path)
    new_folders = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    is_new = not target.exists()
    descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        data = (line + "\n").encode("utf-8")
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        _fsync(target.parent)
        for folder in new_folders:
            _fsync(folder.parent)


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it, that only the owner may open; one that is there is left as it is."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        _fsync(path.parent)


def make_private_file(path: Path) -> None:
    """Make an empty file that only the owner may read, for others to append to; one that is there becomes the owner's."""
    path.touch(mode=0o600)
    path.chmod(0o600)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
