"""Damaged binary files: any bytes, and valid files of their format that hold what they should not."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import openpyxl
import safetensors.numpy
import torch
from damaged_text import NAMES, json_file, odd_values, sealed_lines, several_changes
from hypothesis import strategies as st
from PIL import Image


@st.composite
def any_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut, flipped, doubled, filled, emptied, or something else altogether."""
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        kind = draw(st.sampled_from(("cut", "flip", "flip", "insert", "delete", "repeat", "zeros", "tail", "empty", "random")))
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((1, 2, 8, 64, 1000)))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(max_size=16)) + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + length :]
        elif kind == "repeat":
            data = data[:at] + data[max(0, at - length) : at] + data[at:]
        elif kind == "zeros":
            data = data[:at] + bytes(min(length, max(0, len(data) - at))) + data[at + length :]
        elif kind == "tail":
            data = data[at:]
        elif kind == "empty":
            data = b""
        elif kind == "random":
            data = draw(st.binary(max_size=200))
    return data


def _odd_tensor(kind: str, like: torch.Tensor) -> Any:
    return {
        "nan": lambda: torch.full_like(like, float("nan")),
        "infinite": lambda: torch.full_like(like, float("inf")),
        "double": lambda: like.double(),
        "whole": lambda: torch.zeros(like.shape, dtype=torch.int64),
        "complex": lambda: torch.zeros(like.shape, dtype=torch.complex64),
        "stretched": lambda: torch.zeros(1).expand(10**9),
        "huge on no device": lambda: torch.empty(10**12, device="meta"),
        "sparse": lambda: torch.zeros(3, 3).to_sparse(),
        "shape": lambda: like[None],
        "scalar": lambda: torch.tensor(1.0),
        "numpy": lambda: np.float64(1.0),
        "array": lambda: np.zeros(3),
        "parameter": lambda: torch.nn.Parameter(like.clone()),
    }[kind]()


TENSORS = (
    "nan", "infinite", "double", "whole", "complex", "stretched", "huge on no device", "sparse", "shape", "scalar", "numpy",
    "array", "parameter",
)  # fmt: skip


def _tensors(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, torch.Tensor):
        return [path]
    return [p for key, inner in value.items() for p in _tensors(inner, (*path, key))] if isinstance(value, dict) else []


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@st.composite
def checkpoint(draw: st.DrawFn, data: bytes) -> bytes:
    """A checkpoint with an odd tensor, or with odd values around the tensors."""
    content = _copied(torch.load(io.BytesIO(data), weights_only=True))
    tensors = _tensors(content)
    if tensors and draw(st.booleans()):
        place = draw(st.sampled_from(tensors))
        holder = content
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = _odd_tensor(draw(st.sampled_from(TENSORS)), holder[place[-1]])
    else:
        key = draw(st.sampled_from(sorted(map(str, content))))
        plain = isinstance(content.get(key), dict) and not _tensors(content[key])
        content[key] = draw(several_changes(content[key]) if plain and content[key] else odd_values())
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=draw(st.sampled_from((True, True, True, False))))
    return buffer.getvalue()


@st.composite
def tensors_file(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file with other names, types, shapes, values or metadata, or with another header."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = draw(st.sampled_from(("header", "metadata", "length", "values")))
    if kind == "length":
        return struct.pack("<Q", draw(st.sampled_from((0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1)))) + data[8:]
    if kind == "values":
        weights = {name: value.copy() for name, value in safetensors.numpy.load(data).items()}
        name = draw(st.sampled_from(sorted(weights)))
        weights[name] = draw(st.sampled_from((weights[name] * np.float32("nan"), weights[name].astype(np.float64), weights[name][None])))
        return safetensors.numpy.save(weights, header.get("__metadata__"))
    if kind == "metadata":
        part = draw(st.sampled_from(sorted(header["__metadata__"])))
        old = header["__metadata__"][part]
        new = json.dumps(draw(several_changes(json.loads(old)))) if old.startswith("{") else draw(st.text(max_size=8))
        header["__metadata__"][part] = new
    else:
        header = draw(several_changes(header))
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + body


@st.composite
def nifti(draw: st.DrawFn, data: bytes) -> bytes:
    """Fields of a NIfTI header replaced: dimensions, types, scales, offsets, affine."""
    raw = bytearray(gzip.decompress(data))
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        at, form = draw(st.sampled_from(
            [(40 + 2 * i, "<h") for i in range(8)] + [(70, "<h"), (72, "<h"), (108, "<f"), (112, "<f"), (116, "<f"), (0, "<i")]
            + [(76 + 4 * i, "<f") for i in range(8)] + [(252, "<h"), (254, "<h")] + [(256 + 4 * i, "<f") for i in range(18)]
        ))  # fmt: skip
        numbers = (0, 1, -1, 2, 4, 8, 16, 64, 128, 512, 1792, 32767, -32768)
        extra = (float("nan"), float("inf"), 1e30, 1e-30, 348.5) if form == "<f" else ()
        struct.pack_into(form, raw, at, draw(st.sampled_from((*numbers, *extra))))
    if draw(st.booleans()):
        values = np.frombuffer(bytes(raw[352:]), dtype=np.uint8).copy()
        if values.size:
            values[draw(st.integers(0, values.size - 1))] = 255
        raw[352:] = values.tobytes()
    return gzip.compress(bytes(raw), 1, mtime=0)


@st.composite
def picture(draw: st.DrawFn, data: bytes) -> bytes:
    """An image of another mode, size or format."""
    image = Image.open(io.BytesIO(data))
    modes = ("RGB", "L", "1", "P", "RGBA", "CMYK", "I", "F", "LA", "I;16") if image.mode == "L" else ("L", "CMYK", "RGB")
    with contextlib.suppress(ValueError):  # not every mode can be made of every other
        image = image.convert(draw(st.sampled_from(modes)))
    image = image.resize((draw(st.integers(1, 40)), draw(st.integers(1, 40))))
    buffer = io.BytesIO()
    for form in (draw(st.sampled_from(("PNG", "JPEG", "GIF", "TIFF", "BMP"))), "PNG", "TIFF"):
        try:
            image.save(buffer, form)
            break
        except (OSError, ValueError):
            buffer = io.BytesIO()
    return buffer.getvalue()


@st.composite
def workbook(draw: st.DrawFn, data: bytes) -> bytes:
    """An .xlsx file with other cells, or with a part of it changed inside."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    if draw(st.booleans()):
        book = openpyxl.load_workbook(io.BytesIO(data))
        for _ in range(draw(st.integers(1, 4))):
            cell = book.active.cell(draw(st.integers(1, 7)), draw(st.integers(1, 7)))
            numbers, texts = (1.5, -1, True, 10**18), ("", "N/A", "../x", "a/b", "=1+1", "=A1:", "x" * 2_000, "ä", "#REF!")
            cell.value = draw(st.sampled_from((None, *numbers, *texts, "BraTS-GLI-00001-100")))
        buffer = io.BytesIO()
        book.save(buffer)
        return buffer.getvalue()
    name = draw(st.sampled_from(sorted(entries)))
    if draw(st.booleans()):
        entries[name] = draw(any_bytes(entries[name]))
    else:
        del entries[name]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return buffer.getvalue()


@st.composite
def release(draw: st.DrawFn, data: bytes) -> bytes:
    """A release whose entries are renamed, left out, repeated, linked, blown up or changed inside."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index = draw(st.integers(0, len(entries) - 1))
    name, content = entries[index]
    kind = draw(st.sampled_from(("inside", "inside", "inside", "rename", "drop", "repeat", "link", "bomb", "extra")))
    mode = 0o100644
    if kind == "inside":
        inner = json_file if name.endswith(".json") else sealed_lines if name.endswith(".jsonl") else checkpoint
        entries[index] = name, draw(st.one_of(inner(content), any_bytes(content)))
    elif kind == "rename":
        others = ("../" + name, "/" + name, name.upper(), name.replace("/", "\\"), "C:" + name, *NAMES[:5])
        entries[index] = draw(st.sampled_from(others)), content
    elif kind == "drop":
        del entries[index]
    elif kind == "repeat":
        entries.append((draw(st.sampled_from((name, name.upper(), name + " "))), content))
    elif kind == "link":
        mode, entries[index] = 0o120777, (name, b"/etc/passwd")
    elif kind == "bomb":
        entries[index] = name, bytes(draw(st.sampled_from((2**20 + 1, 2**24))))
    else:
        entries.append((draw(st.sampled_from(("evil.py", "__MACOSX/x", name + "/x", "Dataset801_Tiny/evil.pth"))), b"x"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2)))) as archive:
        for position, (entry, inside) in enumerate(entries):
            info = zipfile.ZipInfo(entry.replace("\0", "") or "x")
            info.compress_type = archive.compression
            info.external_attr = (mode if position == index else 0o100644) << 16
            archive.writestr(info, inside)
    return buffer.getvalue()
