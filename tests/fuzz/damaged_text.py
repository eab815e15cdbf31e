"""Damaged text files: a valid one whose values, fields, lines or cells were changed, in any encoding."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from nnunet_adpfl.privacy import hash_chain

DEEP = '"@deep@"'  # stands for more brackets than a parser survives
NAMES = ("../../evil", "/etc/evil", "a\nb", "a\x1b[31m", "a\\b", "", ".", "x" * 300, "päñ 患者", "\ud800", "a\0b", "nan", "NaN", " ")
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**18, 10**400, 1e308, -1e308, 1e-320, 0.5, float("nan"), float("inf"), -float("inf"), True)


def odd_values() -> st.SearchStrategy[Any]:
    """What a field should not hold."""
    flat = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(NAMES), st.none(), st.just("@deep@"), st.text(max_size=8))
    return st.one_of(flat, st.lists(flat, max_size=3), st.dictionaries(st.sampled_from([*NAMES, "0", "a"]), flat, max_size=3))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        found += [place for key in value for place in _places(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [place for index in range(len(value)) for place in _places(value[index], (*path, index))]
    return found


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one of its places replaced, removed, renamed, wrapped or repeated."""
    value = copy.deepcopy(value)
    place = draw(st.sampled_from(_places(value)))
    if not place:
        return draw(odd_values())
    holder = value
    for step in place[:-1]:
        holder = holder[step]
    key = place[-1]
    kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "wrap", "text", "scale", "extra")))
    if kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(NAMES))] = holder.pop(key)
    elif kind == "wrap":
        holder[key] = [holder[key]] if draw(st.booleans()) else {"0": holder[key]}
    elif kind == "text":
        holder[key] = str(holder[key])
    elif kind == "scale" and isinstance(holder[key], (int, float)):
        holder[key] = draw(st.sampled_from((-1, 0, 1e-9, 10**6, 10**12))) * holder[key]
    elif kind == "extra" and isinstance(holder, dict):
        holder[draw(st.sampled_from(NAMES))] = draw(odd_values())
    elif kind == "extra" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = draw(odd_values())
    return value


@st.composite
def several_changes(draw: st.DrawFn, value: Any) -> Any:
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        value = draw(changed(value))
    return value


def _as_text(value: Any) -> str:
    return json.dumps(value).replace(DEEP, "[" * 100_000 + "]" * 100_000)


@st.composite
def encoded(draw: st.DrawFn, text: str) -> bytes:
    kind = draw(st.sampled_from(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "latin-1", "crlf")))
    if kind == "crlf":
        return text.replace("\n", "\r\n").encode("utf-8", "surrogatepass")
    return text.encode(kind, "replace" if kind == "latin-1" else "surrogatepass")


def json_file(data: bytes) -> st.SearchStrategy[bytes]:
    return several_changes(json.loads(data)).map(_as_text).flatmap(encoded)


@st.composite
def json_lines(draw: st.DrawFn, data: bytes, seal: Callable[[list[Any]], list[Any]] | None = None) -> bytes:
    """Lines changed, removed, repeated or in another order; with ``seal`` in a chain that fits again."""
    lines = [json.loads(line) for line in data.splitlines()]
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        kind = draw(st.sampled_from(("change", "change", "change", "remove", "repeat", "swap")))
        index = draw(st.integers(0, max(len(lines) - 1, 0)))
        if kind == "change" and lines:
            lines[index] = draw(several_changes(lines[index]))
        elif kind == "remove" and lines:
            del lines[index]
        elif kind == "repeat" and lines:
            lines.insert(index, lines[index])
        elif lines:
            other = draw(st.integers(0, len(lines) - 1))
            lines[index], lines[other] = lines[other], lines[index]
    if seal is not None and draw(st.booleans()):
        lines = seal(lines)
    return draw(encoded("".join(_as_text(line) + "\n" for line in lines)))


def resealed(lines: list[Any]) -> list[Any]:
    """As somebody would who knows how the chain is made."""
    head, sealed = hash_chain.GENESIS, []
    for line in lines:
        if isinstance(line, dict):
            try:
                line = hash_chain.sealed({k: v for k, v in line.items() if k not in ("previous", "hash")}, head)
                head = str(line["hash"])
            except (ValueError, TypeError, RecursionError):
                pass  # NaN: no line that could be sealed
        sealed.append(line)
    return sealed


def sealed_lines(data: bytes) -> st.SearchStrategy[bytes]:
    return json_lines(data, resealed)


CELLS = ("", "nan", "inf", "-1", "1e999", '"', '""', "'", "a\tb", ";", "\x00", "=1+1", "../x", "9" * 400, "ä", "a,b", "\u2028")


@st.composite
def table(draw: st.DrawFn, data: bytes) -> bytes:
    """Cells, rows, columns and separators of a table changed."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, max(len(rows[row]) - 1, 0)))
        kind = draw(st.sampled_from(("cell", "cell", "cell", "drop row", "drop cell", "add cell", "double")))
        if kind == "cell" and rows[row]:
            rows[row][column] = draw(st.one_of(st.sampled_from(CELLS), st.text(max_size=6)))
        elif kind == "drop row" and len(rows) > 1:
            del rows[row]
        elif kind == "drop cell" and rows[row]:
            del rows[row][column]
        elif kind == "add cell":
            rows[row].append(draw(st.sampled_from(CELLS)))
        else:
            rows.insert(row, list(rows[row]))
    separator = draw(st.sampled_from((",", ",", ",", ";", "\t", "|")))
    return draw(encoded("\n".join(separator.join(row) for row in rows) + "\n"))
