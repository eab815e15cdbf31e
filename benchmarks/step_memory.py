"""Peak memory of one step of one method, above what network, optimizer and patches take."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from step_methods import Bench, Case

SMALL_BLOCK = 1 << 16  # bytes
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def of_allocator(bench: Bench, method: str) -> float:
    """MiB on a GPU: PyTorch's allocator counts exactly, whatever else lives there."""
    bench.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    bench.update(method, bench.gradient(method))
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def of_process(case: Case, method: str) -> float:
    """MiB on a CPU: growth of the resident set (Linux), in a process of its own that has run no other method."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server that forks finds modules by it alone
    context.set_forkserver_preload(["__main__", __name__])  # PyTorch and nnU-Net are imported once for all processes
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, case, method, torch.get_num_threads()), daemon=True)
    process.start()
    sender.close()  # so that the end of a process that dies is noticed
    try:
        found = receiver.recv()
    except EOFError:
        found = "the process died, perhaps for lack of memory"
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return float(found)


def _send(sender: Connection, case: Case, method: str, threads: int) -> None:
    try:
        sender.send(_of_this_process(case, method, threads))
    except Exception as error:  # goes on in the parent as the method's reason
        sender.send(f"{type(error).__name__}: {error!s:.160}")


def _of_this_process(case: Case, method: str, threads: int) -> float:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALL_BLOCK)  # freed tensors go back to the system at once
    torch.set_num_threads(threads)
    bench = Bench(case, torch.device("cpu"), [method])
    bench.update(method, bench.gradient(method))  # the optimizer's state and whatever is built on first use
    bench.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    bench.update(method, bench.gradient(method))
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    """A size in KiB from the system's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
