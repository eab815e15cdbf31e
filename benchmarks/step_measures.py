"""Time, memory and error of every method on one case, and why a method has none."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import step_memory
import torch
from step_methods import Bench, Case, Gradients, length, missing

from nnunet_adpfl.privacy.clipping import NoClip, NormClip

EXACT = 1e-5  # float64 (nnU-Net's loss sums in float32); a wrong gradient is wrong by 0.1 or more
FLOAT32 = 0.05  # kinks of activations make up to a percent; what bfloat16 makes is reported only
Result = TypeVar("Result")


@dataclass
class Seconds:
    """One step of one method: wall and CPU time, of the whole and of its gradient alone."""

    wall: float
    cpu: float
    gradient_wall: float
    gradient_cpu: float


@dataclass
class Measured:
    """Everything about one case, by method; ``reasons`` says why a method has no numbers."""

    parameters: int = 0
    seconds: dict[str, Seconds] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    exact_errors: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def attempt(self, method: str, work: Callable[[], Result]) -> Result | None:
        """What ``work`` gives, or None and a reason: one method's failure must not end the others' run."""
        try:
            return work()
        except Exception as error:  # out of memory, or whatever Opacus or functorch trip over
            lines = str(error).splitlines() or [""]
            self.reasons[method] = f"{type(error).__name__}: {lines[0]:.160}"
        return None


def measure(case: Case, wanted: list[str], device: torch.device, repeats: int) -> Measured:
    """Check every method against the loop engine, then time those that are right, in turn, then their memory."""
    found = Measured()
    found.exact_errors, wrong = exact_errors(case.small(), tuple(wanted), device)
    found.reasons.update(wrong)
    methods = [method for method in wanted if not missing(method, case) and method not in wrong]
    bench = Bench(case, device, methods)
    found.parameters = sum(parameter.numel() for parameter in bench.trained.values())
    _warm_up(bench, found, methods)
    _time(bench, found, methods, repeats)
    if device.type == "cuda":
        _memory(bench, found, methods, lambda method: step_memory.of_allocator(bench, method))
    bench.engines.clear()
    _free(device)
    if device.type != "cuda":
        _memory(bench, found, methods, lambda method: step_memory.of_process(case, method))
    return found


@functools.lru_cache
def exact_errors(case: Case, wanted: tuple[str, ...], device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    """Relative error of each method in float64 with one of two units clipped, and the reasons of those that are wrong."""
    found = Measured()
    methods = [method for method in wanted if not missing(method, case)]
    bench = Bench(case, device, {*methods, "loop"}, double=True)
    rule = _between_norms(bench)
    reference = bench.gradient("loop", rule)
    for method in methods:
        error = found.attempt(method, functools.partial(_error, bench, method, rule, reference))
        if error is not None:
            found.exact_errors[method] = error
            if not error < EXACT:
                found.reasons[method] = f"wrong: float64 error {error:.1e} on {case}"
        if method.startswith("fused") and bench.engines[method].unsupported:  # type: ignore[attr-defined]
            found.reasons[method] = f"left to the loop engine: {bench.engines[method].unsupported}"  # type: ignore[attr-defined]
    return found.exact_errors, found.reasons


def _error(bench: Bench, method: str, rule: NormClip, reference: Gradients) -> float:
    return bench.error(method, bench.gradient(method, rule), reference)


def _between_norms(bench: Bench) -> NormClip:
    """Clips some units and leaves others, so that a check sees both."""
    alone = [bench.engines["loop"].clipped_sum([unit], NoClip()).total for unit in bench.units]
    return NormClip(statistics.mean(length(total) for total in alone))


def _warm_up(bench: Bench, found: Measured, methods: list[str]) -> None:
    """The first gradient of each method warms it up and gives its error as it runs."""
    reference: Gradients = {}
    for method in methods:
        error = _attempt(bench, found, method, functools.partial(_first_gradient, bench, method, reference))
        if error is not None:
            found.errors[method] = error
            if not (bench.autocast or error < FLOAT32):
                found.reasons[method] = f"wrong: error {error:.1e} as run"
    if "plain" not in found.reasons:
        bench.update("plain", bench.gradient("plain"))  # the optimizer's state is made here


def _first_gradient(bench: Bench, method: str, reference: Gradients) -> float:
    """Error of a method as it runs; the loop engine's gradients become the reference."""
    gradients = bench.gradient(method)
    if method == "loop":
        reference.update((name, tensor.clone()) for name, tensor in gradients.items())
    return bench.error(method, gradients, reference)


def _time(bench: Bench, found: Measured, methods: list[str], repeats: int) -> None:
    """Medians; methods take turns, so that a busy machine hurts all alike."""
    times: dict[str, list[Seconds]] = {method: [] for method in methods}
    for _ in range(repeats):
        for method in _left(methods, found):
            seconds = _attempt(bench, found, method, functools.partial(_timed_step, bench, method))
            if seconds is not None:
                times[method].append(seconds)
    for method in _left(methods, found):
        values = [vars(seconds) for seconds in times[method]]
        found.seconds[method] = Seconds(**{name: statistics.median(one[name] for one in values) for name in values[0]})


def _memory(bench: Bench, found: Measured, methods: list[str], peak: Callable[[str], float]) -> None:
    for method in _left(methods, found):
        mib = _attempt(bench, found, method, functools.partial(peak, method))
        if mib is not None:
            found.memory[method] = mib


def _timed_step(bench: Bench, method: str) -> Seconds:
    began = _now(bench.device)
    gradients = bench.gradient(method)
    between = _now(bench.device)
    bench.update(method, gradients)
    ended = _now(bench.device)
    return Seconds(ended[0] - began[0], ended[1] - began[1], between[0] - began[0], between[1] - began[1])


def _now(device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _left(methods: list[str], found: Measured) -> list[str]:
    return [method for method in methods if method not in found.reasons]


def _attempt(bench: Bench, found: Measured, method: str, work: Callable[[], Result]) -> Result | None:
    """As `Measured.attempt`; a method that fails is dropped with all that it holds, to make room for the others."""
    result = found.attempt(method, work)
    if method in found.reasons:
        bench.engines.pop(method, None)
        bench.optimizer.zero_grad(set_to_none=True)
        _free(bench.device)
    return result


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
