"""Unpacks the zip of a release that somebody else may have made: every name, size and byte is checked, not believed.

`zipfile.extractall` and the stock install command write whatever names and amounts an archive asks for.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl import cohort
from nnunet_adpfl.errors import InputError

MOST_ENTRIES = 2_000  # six files, and one ledger a site
MOST_RATIO = 100  # of unpacked to packed bytes; weights do not shrink, plans and ledgers to a tenth
_SMALL = 2**20  # below this a high ratio harms nobody
_MIB = 2**20
_END = struct.Struct("<4s4H2LH")  # end of central directory
_MOST_DIRECTORY_BYTES = 1_000 * MOST_ENTRIES
_CHUNK = 2**20
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
_FOLDER = rf"(?P<dataset>Dataset\d{{3}}_{_NAME})/(?P<model>nnUNetTrainer__{_NAME}__{_NAME})/"
_FILES = {  # what may be in a release -> most bytes
    re.compile(rf"{_FOLDER}(plans|dataset|privacy_plan|privacy_statement)\.json"): 16 * _MIB,
    re.compile(rf"{_FOLDER}privacy/(?P<site>[^/]+)\.privacy_ledger\.jsonl"): 64 * _MIB,
    re.compile(rf"{_FOLDER}fold_([0-9]{{1,3}}|all)/checkpoint_final\.pth"): 4_000 * _MIB,
}
_REQUIRED = ("plans.json", "dataset.json", "privacy_plan.json", "privacy_statement.json")


@dataclass(frozen=True)
class Unpacked:
    """A release on disk: ``folder/dataset/model`` holds plans, statement, ledgers and one fold's checkpoint."""

    folder: Path
    dataset: str
    model: str

    @property
    def path(self) -> Path:
        return self.folder / self.dataset / self.model

    @property
    def checkpoint(self) -> Path:
        return next(self.path.glob("fold_*/checkpoint_final.pth"))


def unpack(archive: Path, folder: Path) -> Unpacked:
    """Unpack a release into an empty folder.

    Raises InputError, naming the archive and the entry, for anything that `adpfl export` does not write.
    """
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            dataset, model = _check_names(entries)
            for entry in entries:
                _extract(file, entry, folder)
    except InputError as error:
        raise InputError(f"{archive}: {error}; it was not written by `adpfl export` or is damaged, nothing was installed") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, NotImplementedError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{archive} cannot be read as a zip file ({reason}); nothing was installed") from None
    return Unpacked(folder, dataset, model)


def _check_directory(archive: Path) -> None:
    """The table of contents at the end of the file, before `zipfile` takes all of it into memory."""
    size = archive.stat().st_size
    if size > sum(most for most in _FILES.values()):
        raise InputError(f"it has {size} bytes, more than a release can have")
    with archive.open("rb") as file:
        file.seek(max(0, size - _END.size))
        tail = file.read()
    if len(tail) < _END.size or tail[:4] != b"PK\5\6":
        raise InputError("it does not end as a zip file of a release does")
    _, _, _, _, entries, directory_bytes, _, comment = _END.unpack(tail)
    if entries > MOST_ENTRIES or directory_bytes > _MOST_DIRECTORY_BYTES or comment:
        raise InputError(f"it has {entries} entries in a table of {directory_bytes} bytes, more than a release has")


def _check_names(entries: list[zipfile.ZipInfo]) -> tuple[str, str]:
    """Names of data set and model. InputError for links, odd or repeated names, and a set of files that is not a release's."""
    seen: set[str] = set()
    folders: set[tuple[str, str]] = set()
    for entry in entries:
        match = next((m for pattern in _FILES if (m := pattern.fullmatch(entry.filename))), None)
        if match is None or entry.filename != entry.orig_filename or ".." in entry.filename:
            raise InputError(f"entry {entry.filename!r:.200} does not belong into a release")
        site = match.groupdict().get("site")
        if site is not None and not cohort.names_a_folder(site):
            raise InputError(f"entry {entry.filename!r:.200} is named after no site")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 0x1:
            raise InputError(f"entry {entry.filename} is a link, a device or encrypted")
        folded = unicodedata.normalize("NFC", entry.filename).casefold()
        if folded in seen:
            raise InputError(f"entry {entry.filename} is there twice")
        seen.add(folded)
        folders.add((match["dataset"], match["model"]))
    if len(folders) != 1:
        raise InputError(f"it holds {len(folders)} models, a release has one")
    (dataset, model) = folders.pop()
    names = [entry.filename.removeprefix(f"{dataset}/{model}/") for entry in entries]
    missing = [name for name in _REQUIRED if name not in names]
    if sum(name.endswith(".pth") for name in names) != 1:
        missing.append("one checkpoint_final.pth")
    if not any(name.startswith("privacy/") for name in names):
        missing.append("privacy ledgers")
    if missing:
        raise InputError(f"it lacks {missing[0]}")
    return dataset, model


def _extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Write one entry, counting its bytes: the size in its header is a claim."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"entry {entry.filename} is compressed in another way than releases are")
    most = next(most for pattern, most in _FILES.items() if pattern.fullmatch(entry.filename))
    most = min(most, max(_SMALL, MOST_RATIO * entry.compress_size))
    target = folder / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with file.open(entry) as source, target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > most:
                raise InputError(f"entry {entry.filename} unpacks to more than {most} bytes")
            out.write(chunk)
