"""Files of a downloaded data set, found by name wherever they lie below its folder."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion.synthetic.generated_set import NOTICE_FILE
from nnunet_adpfl.errors import InputError

NOT_OURS = re.compile(r"__MACOSX|\..+")
_HELD_OUT = re.compile(r"(?<![a-z])(validation|val(?![a-z])|valid(?![a-z])|test)", re.IGNORECASE)


def walk(source: Path, left_out: re.Pattern[str] = NOT_OURS, *, quiet: bool = False) -> Iterator[Path]:
    """All files below ``source``, in the same order everywhere; links to folders are followed once, so that loops end.

    Folders whose names match ``left_out`` are passed over, and said so unless ``quiet``.

    Raises InputError when ``source`` is no folder, or a folder below it cannot be read (its cases would be missed).
    """
    if not source.is_dir():
        raise InputError(f"{source} is no folder: give the one that the data set was unpacked into")
    seen: set[str] = set()
    for folder, names, files in os.walk(source, followlinks=True, onerror=_refuse_unreadable):
        seen.add(os.path.realpath(folder))
        below = sorted(name for name in names if os.path.realpath(os.path.join(folder, name)) not in seen)
        skipped = [name for name in below if left_out.fullmatch(name)]
        if skipped and not quiet:
            progress.note(f"left out, not part of the labelled set: {', '.join(skipped)}")
        names[:] = [name for name in below if name not in skipped]
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("._"))


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}), and cases may lie in it: make it readable, or remove it")


def add_once(found: dict[str, Path], key: str, path: Path) -> None:
    """Some copies hold files twice, in two spellings of the folder's name: fine while they are the same.

    Raises InputError where they differ.
    """
    earlier = found.setdefault(key, path)
    if earlier != path and not filecmp.cmp(earlier, path, shallow=False):
        raise InputError(f"{key} is there twice and differs ({earlier} and {path}): remove one")


def generated_notice(source: Path) -> dict[str, str]:
    """What dataset.json says of a made-up set (`adpfl synth`); empty for a real one."""
    notice = source / NOTICE_FILE
    return {"description": " ".join(notice.read_text(encoding="utf-8").split())} if notice.is_file() else {}


def is_held_out(path: Path, source: Path) -> bool:
    """Whether a file lies in a folder of the challenge's validation or test set, whose labels are not for training."""
    for part in reversed(path.relative_to(source).parts[:-1]):
        if "train" in part.lower():
            return False
        if _HELD_OUT.search(part):
            return True
    return False
