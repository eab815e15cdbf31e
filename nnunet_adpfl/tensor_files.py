"""The only place that opens a file of tensors in torch's format: nothing in it is executed, whoever wrote it.

torch's own restricted loader does the reading. What it would still do for a hostile file is refused beforehand: unpack
a bomb (torch itself never compresses), or call a constructor that allocates as much as the file asks for.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_adpfl.errors import InputError

MOST_PICKLE_BYTES = 64 * 2**20  # names and shapes only; the largest nnU-Net has a hundredth of this
_NUMBERS = (np.float64, np.float32, np.int64, np.int32, np.bool_)  # nnU-Net logs means and epochs in these
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # written with numpy 1
    np.dtype,
    *(type(np.dtype(kind)) for kind in _NUMBERS),
]
_PLAIN_CLASSES = {
    "collections OrderedDict", "torch Size", "torch device", "_codecs encode", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch.nn.parameter Parameter",
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
}  # fmt: skip
_NUMPY_CLASSES = {"numpy dtype", "numpy._core.multiarray scalar", "numpy.core.multiarray scalar"}


def load(path: Path, *, most_bytes: int | None = None, numpy_scalars: bool = False) -> Any:
    """Read dictionaries of tensors, numbers and text, onto the CPU.

    Args:
        most_bytes: refuse a larger file before reading it; None where its size cannot be known.
        numpy_scalars: also accept numbers of numpy, which stock nnU-Net has in the training log of its checkpoints.

    Raises InputError naming the file when it is missing, too large, damaged, or holds anything else than plain values.
    """
    try:
        size = path.stat().st_size
        if most_bytes is not None and size > most_bytes:
            raise InputError(f"{path} has {size} bytes, this network needs {most_bytes} at the most; give the file that belongs to it")
        _check_archive(path, size, numpy_scalars)
        with torch.serialization.safe_globals(_NUMPY_SCALARS if numpy_scalars else []):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # a damaged file makes the loader raise whatever its bytes suggest
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint of plain tensors ({reason})") from None


def _check_archive(path: Path, size: int, numpy_scalars: bool) -> None:
    """ValueError unless the file is what torch.save writes: stored, not compressed, and of plain classes alone."""
    allowed = _PLAIN_CLASSES | (_NUMPY_CLASSES if numpy_scalars else set())
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("its tensors are compressed")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE_BYTES:
            raise ValueError("it has no table of tensors of a usual size")
        table = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(io.BytesIO(table)):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4") or (
            opcode.name == "GLOBAL" and argument not in allowed
        ):
            raise ValueError(f"it holds {str(argument or opcode.name)[:60]!r}, which is neither tensor nor number")
