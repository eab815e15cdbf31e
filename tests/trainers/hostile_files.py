"""Files that somebody made who wants more than to be read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Canary:
    """A pickle that leaves a file behind when it is executed."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._path, "w")


class Balloon:
    """A pickle of a few bytes that asks torch's restricted loader for this much memory."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (self._size,)


def compressed(path: Path) -> None:
    """The same checkpoint in a zip file that unpacks to more than its size."""
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def rewritten(archive: Path, change: Callable[[dict[str, bytes]], Any], modes: dict[str, int] | None = None) -> Path:
    """A release zip with other entries; ``modes`` are those of entries that are no ordinary files."""
    with zipfile.ZipFile(archive) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    change(entries)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            target.writestr(info, content)
    return archive


def edited_checkpoint(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = torch.load(io.BytesIO(data), weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
