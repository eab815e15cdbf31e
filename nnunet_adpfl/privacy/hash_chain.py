"""An append-only file of JSON lines in which every line holds the hash of the one before it.

A line that was torn by a crash stays in the file; the next line must then be a ``recovered`` line that names the
sha256 of the torn bytes. Editing, removing or reordering lines breaks the chain and is refused. A forger who can
write the whole file, or a restored disk, is not detected by a chain alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.errors import PrivacyRefusedError

GENESIS = "0" * 64
Line = dict[str, Any]


@dataclass(frozen=True)
class ChainContent:
    """What a chain file holds: its intact lines in order and the torn text at its end, if any."""

    lines: tuple[Line, ...]
    torn: str | None = None

    @property
    def head(self) -> str:
        return str(self.lines[-1]["hash"]) if self.lines else GENESIS


def line_hash(fields: Mapping[str, Any]) -> str:
    """sha256 of a line's canonical JSON without its ``hash``."""
    body = {key: value for key, value in fields.items() if key != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sealed(fields: Mapping[str, Any], previous: str) -> Line:
    """The line as it will stand in the file: fields in the given order, then ``previous`` and ``hash``."""
    line = {**fields, "previous": previous}
    return {**line, "hash": line_hash(line)}


def append(path: Path, line: Line) -> None:
    """Append a sealed line durably; a torn line before it is closed first, never overwritten."""
    if path.exists():
        raw = path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            atomic_files.append_line(path, "")
    atomic_files.append_line(path, json.dumps(line, allow_nan=False))


def read(path: Path) -> ChainContent:
    """Read and verify a chain file.

    Raises PrivacyRefusedError when it is missing or a line was edited, removed, reordered or torn without recovery.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise PrivacyRefusedError(
            f"{path} is missing: without it the privacy spent is unknown, so nothing may go on"
        ) from None
    lines: list[Line] = []
    torn: str | None = None
    for number, raw in enumerate((part for part in text.split("\n") if part), start=1):
        line = _parse(raw)
        if line is None:
            if torn is not None:
                raise PrivacyRefusedError(f"{path}: line {number} is damaged; restore the file, it cannot be trusted")
            torn = raw
            continue
        if torn is not None and (line.get("event") != "recovered" or line.get("torn") != digest(torn)):
            raise PrivacyRefusedError(f"{path}: line {number - 1} is damaged; restore the file, it cannot be trusted")
        torn = None
        if line.get("previous") != (lines[-1]["hash"] if lines else GENESIS) or line.get("hash") != line_hash(line):
            raise PrivacyRefusedError(
                f"{path}: line {number} was edited or a line before it is missing; restore the file"
            )
        lines.append(line)
    return ChainContent(tuple(lines), torn)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _parse(raw: str) -> Line | None:
    try:
        value = json_files.parse(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "hash" in value else None
