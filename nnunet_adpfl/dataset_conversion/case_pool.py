"""Runs a function over many cases on all cores, and collects those that are broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, SourceCase

MEMORY_PER_BYTE = 12  # a CT takes 8 times its packed size while it is checked


def run(function: Callable[[SourceCase], None], cases: Collection[SourceCase], title: str) -> dict[str, str]:
    """Call ``function`` for every case, with progress; returns case -> what is wrong with it, for the broken ones.

    Threads: nearly all time goes into zlib and file access, which release the lock, and nothing is orphaned by a kill.
    """
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(_workers(cases)) as pool:
        running: dict[Future[None], str] = {pool.submit(function, case): case.name for case in cases}
        try:
            for done in progress.track(as_completed(running), title, total=len(running)):
                try:
                    done.result()
                except BrokenCaseError as error:
                    broken[running[done]] = str(error)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return dict(sorted(broken.items()))


def _workers(cases: Collection[SourceCase]) -> int:
    """nnU-Net's variable nnUNet_def_n_proc, or up to 8 where it is not set; fewer where the largest files need the memory."""
    configured = os.environ.get("nnUNet_def_n_proc", "")  # noqa: SIM112
    if configured.isdigit() and int(configured) > 0:
        return int(configured)
    largest = max((path.stat().st_size for case in cases for path in case.files), default=0)
    fitting = _free_memory() // (2 * MEMORY_PER_BYTE * largest) if largest else 8
    return max(1, min(8, os.cpu_count() or 1, fitting))


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 8 * 2**30
