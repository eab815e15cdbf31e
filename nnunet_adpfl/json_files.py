"""Reads JSON that others may have written or spoilt: whatever is wrong with it is one ValueError, nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from nnunet_adpfl.errors import InputError

MOST_BYTES = 256 * 2**20  # a data set of 100,000 cases has a fiftieth of this


def load(path: Path) -> Any:
    """The value in a UTF-8 file.

    Raises OSError where it cannot be opened, ValueError for everything else that `parse` refuses.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, more than any such file needs")
    return parse(path.read_bytes().decode("utf-8"))


def load_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file that the user's commands wrote; InputError, with the remedy, for anything else."""
    try:
        content = load(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): {remedy}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: {remedy}")
    return content


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError for text that is not JSON, for NaN and infinity (JSON has neither, and a NaN passes comparisons
    unnoticed), for half of a surrogate pair (which no file can hold) and for nesting beyond what a parser survives.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is beyond the range of numbers")
    return value
