"""Runs of a comparison, one after the other or in processes of their own, which end when the comparison does."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Any

import torch

from nnunet_adpfl import worker_process
from nnunet_adpfl.errors import AdpflError
from nnunet_adpfl.experiments.comparison import runs
from nnunet_adpfl.experiments.comparison.runs import RunTask


def outcomes(tasks: Sequence[RunTask], jobs: int) -> Iterator[tuple[RunTask, dict[str, Any] | AdpflError]]:
    """Every task with its result, or with the error that is meant for the user, as they are done."""
    if jobs == 1:
        for task in tasks:
            yield task, _outcome(task)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (jobs, os.getpid())) as pool:
        running: dict[Future[Any], RunTask] = {pool.submit(_outcome, task): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _outcome(task: RunTask) -> dict[str, Any] | AdpflError:
    """An error of the plugin is a result, too: an exception of a pool would lose its sentence in a traceback."""
    try:
        return runs.run(task)
    except AdpflError as error:
        return error


def _begin(jobs: int, parent: int) -> None:
    """In a new process: its share of the cores. A comparison that was killed must not go on training, and spending, unseen."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    worker_process.end_with(parent)
