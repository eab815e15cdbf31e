"""A folder that appears as a whole or not at all: it is built under a hidden name beside its place, then renamed.

A process that is killed leaves only the hidden folder; the next one that builds the same folder removes it (a lock
tells the leavings of the dead from the work of the living).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_adpfl.errors import InputError


@contextmanager
def replacing_folder(target: Path, *, resume_key: str | None = None, may_replace: bool = True) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``target``; on leaving without error it becomes ``target``.

    A folder that stands at ``target`` is kept until the new one is complete. On any error the hidden folder is removed
    and ``target`` is as before. Where ``target`` is a link, the folder that it leads to is replaced.

    Args:
        resume_key: where given, what a killed or interrupted process left for the same key is yielded again, as it is.
        may_replace: False: a folder that somebody else put at ``target`` meanwhile is kept, and the new one refused.

    Raises InputError where ``target`` is a file, or another process writes the same target.
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: give the name of a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _sole_writer(target):
        kept = None if resume_key is None else target.with_name(f".{target.name}.{resume_key}.tmp")
        _clear_leavings(target, kept)
        if kept is None:
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        else:
            temporary = kept
            temporary.mkdir(mode=0o700, exist_ok=True)
        try:
            yield temporary
            _flush_to_disk(temporary)
            temporary.chmod(0o777 & ~_umask())
            _put_in_place(temporary, target, may_replace)
        except BaseException as error:
            if kept is None or not isinstance(error, KeyboardInterrupt):
                shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _sole_writer(target: Path) -> Iterator[None]:
    """Hold a lock on ``target``'s name, in a hidden file beside it; the system releases it when the process ends."""
    path = target.with_name(f".{target.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _lock(descriptor, path):
            raise InputError(f"another process is writing {target}: wait for it, or stop it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: whoever opened it before finds that it is gone
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except OSError:
        return False


def _put_in_place(temporary: Path, target: Path, may_replace: bool) -> None:
    previous = _previous(target)
    if target.exists() and any(target.iterdir()) and not may_replace:
        raise InputError(f"{target} was made by somebody else meanwhile: look at it, and give --overwrite to replace it")
    if target.exists():
        os.replace(target, previous)
    try:
        os.replace(temporary, target)
    except OSError:
        if previous.exists():
            os.replace(previous, target)
        raise
    _fsync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _clear_leavings(target: Path, kept: Path | None) -> None:
    """Undo what a killed process left: its half-built folder goes, a folder caught in the middle of a swap comes back."""
    previous = _previous(target)
    if previous.exists() and not target.exists():
        os.replace(previous, target)
    shutil.rmtree(previous, ignore_errors=True)
    for leaving in target.parent.iterdir():
        if leaving != kept and leaving.name.startswith(f".{target.name}.") and leaving.name.endswith(".tmp") and leaving.is_dir():
            shutil.rmtree(leaving, ignore_errors=True)  # its process is dead: this one holds the lock


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _flush_to_disk(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _fsync(Path(root) / name)
        _fsync(Path(root))


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
