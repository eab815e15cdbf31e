"""The odometer of a site: every ledger line of every run on the same patients, in one chain.

It is written first. A ledger that is behind it was interrupted (and is completed); a ledger that differs from it was
rewound or exchanged, and the run is refused. Restoring both files from a backup is not detected.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunet_adpfl import atomic_files
from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy import hash_chain
from nnunet_adpfl.privacy.hash_chain import Line

FILE_NAME = "privacy_odometer.jsonl"


@dataclass(frozen=True)
class Odometer:
    """Handle on one site's odometer file."""

    path: Path

    def record(self, line: Line, units_digest: str) -> None:
        """Note a ledger line that is about to be written. Durable before it returns; runs side by side take turns."""
        with self._locked():
            self._record(line, units_digest)

    def _record(self, line: Line, units_digest: str) -> None:
        self._append(
            {
                "run": line["run"],
                "site": line["site"],
                "ledger_head": line["hash"],
                "units_digest": units_digest,
                "line": line,
            }
        )

    def _append(self, entry: Line) -> None:
        content = hash_chain.read(self.path) if self.path.exists() else hash_chain.ChainContent(())
        previous = content.head
        if content.torn is not None:
            # The ledger line it announced was never written, so no step was taken on it: kept, named, passed over.
            mended = hash_chain.sealed({"event": "recovered", "torn": hash_chain.digest(content.torn)}, previous)
            hash_chain.append(self.path, mended)
            previous = str(mended["hash"])
        hash_chain.append(self.path, hash_chain.sealed(entry, previous))

    def note_plan(self, plans_digest: str, fingerprint: str) -> None:
        """Note once how an nnU-Net plan was made (rule 13); a privacy plan that says otherwise is not believed."""
        with self._locked():
            if fingerprint not in self.plan_kinds(plans_digest):
                self._append({"event": "plan", "plans_digest": plans_digest, "fingerprint": fingerprint})

    def runs(self) -> set[tuple[str, str]]:
        """(run, site) of every ledger that spent here, or began to; notes about plans alone cost nothing."""
        lines = hash_chain.read(self.path).lines if self.path.exists() else ()
        return {(str(entry["run"]), str(entry["site"])) for entry in lines if "line" in entry}

    def plan_kinds(self, plans_digest: str) -> set[str]:
        """The ways in which this nnU-Net plan was made, by the calls that wrote it."""
        if not self.path.exists():
            return set()
        lines = hash_chain.read(self.path).lines
        return {str(line.get("fingerprint")) for line in lines if line.get("plans_digest") == plans_digest}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        atomic_files.make_private_folder(self.path.parent)
        descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def last_line(self, run: str, site: str) -> Line | None:
        """The newest ledger line of a run that this odometer knows."""
        if not self.path.exists():
            return None
        for entry in reversed(hash_chain.read(self.path).lines):
            if entry.get("run") == run and entry.get("site") == site:
                line = entry.get("line")
                if not isinstance(line, dict) or not {"event", "hash", "previous"} <= set(line):
                    raise PrivacyRefusedError(f"{self.path}: an entry of run {run} holds no ledger line; restore the file")
                return line
        return None

    def check(self, run: str, site: str, ledger: hash_chain.ChainContent) -> Line | None:
        """Compare with a run's ledger; returns the one line that a crash kept from reaching the ledger, if any.

        Raises PrivacyRefusedError when the ledger is shorter than, or differs from, what was recorded here.
        """
        last = self.last_line(run, site)
        if last is None:
            raise PrivacyRefusedError(
                f"{self.path}: it does not know run {run}; odometer and ledger must be kept together, restore it"
            )
        if last["hash"] == ledger.head:
            return None
        if last["previous"] == ledger.head:
            return last
        raise PrivacyRefusedError(
            f"{self.path}: the ledger of run {run} is older than or differs from what was recorded; restore the ledger"
        )
