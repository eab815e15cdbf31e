"""Runs a function over many cases on all cores, and collects those that are broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from nnunet_adpfl import progress
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, SourceCase


def run(function: Callable[[SourceCase], None], cases: Collection[SourceCase], title: str) -> dict[str, str]:
    """Call ``function`` for every case, with progress; returns case -> what is wrong with it, for the broken ones.

    Threads: nearly all time goes into zlib and file access, which release the lock, and nothing is orphaned by a kill.
    """
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(_workers()) as pool:
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


def _workers() -> int:
    """nnU-Net's variable nnUNet_def_n_proc, or up to 8 where it is not set."""
    configured = os.environ.get("nnUNet_def_n_proc", "")  # noqa: SIM112
    return int(configured) if configured.isdigit() and int(configured) > 0 else min(8, os.cpu_count() or 1)
