"""Every pass over the parameters between the clipped sum and the next step, for nnU-Net's usual network of 31 million.

Each pass in the ways it can be done: as the package does it, and as it could be done (or was done before). Ways take turns,
medians of CPU time of the process, one thread; ratios are to the way that is listed first for its pass.

    python benchmarks/update_passes.py --json benchmarks/results/update_passes_cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networks import NetworkSize, planned_trainer
from torch import nn

from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.privacy.noise import SecretRandomness, Source, add_gaussian_, on_grid
from nnunet_adpfl.trainers import post_processing

SIZE = NetworkSize("plain", (128, 128, 128), 32, 6, 320, channels=4)
STD, EXPECTED_UNITS, DECAY, KEPT = 2.159, 13.25, 0.95, 0.1
CHUNK = 2**18
Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Way:
    """One way to do a pass; ``used``: the one of the package."""

    name: str
    run: Callable[[], object]
    used: bool = False


class State:
    """Parameters, a noisy gradient and averages, as a step has them."""

    def __init__(self) -> None:
        network = stock.build_network(planned_trainer(SIZE, torch.device("cpu")), 0)
        self.parameters = list(network.parameters())
        self.gradient = [torch.randn_like(parameter).detach() * 1e-3 for parameter in self.parameters]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def number(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    def own(self) -> list[nn.Parameter]:
        """Copies with gradients, for one optimizer."""
        copies = [nn.Parameter(parameter.detach().clone()) for parameter in self.parameters]
        for copy, gradient in zip(copies, self.gradient, strict=True):
            copy.grad = gradient.clone()
        return copies


def passes(state: State) -> dict[str, list[Way]]:
    """Pass -> its ways."""
    sums = [torch.zeros_like(parameter).detach() for parameter in state.parameters]
    found = {f"noise {source} {terms}": _noise(sums, source, terms) for source in ("os_seeded", "secure") for terms in (1, 4)}
    found["grid rounding (part of the noise)"] = [Way("in chunks", lambda: _rounded(state.number), used=True)]
    found["division by expected units"] = [Way("each tensor", lambda: [tensor.div_(1.0001) for tensor in sums], used=True)]
    found["SGD"] = _optimizers(state, torch.optim.SGD, lr=1e-6, momentum=0.9, nesterov=True, weight_decay=3e-5)
    found["AdamW"] = _optimizers(state, torch.optim.AdamW, lr=1e-6, weight_decay=3e-5)
    found["EMA"] = [
        Way("lerp of each tensor", lambda: _lerp_each(state)),
        Way("foreach lerp", lambda: _lerp_foreach(state), used=True),
    ]
    found["sparsification"] = [
        Way("kthvalue, masks", lambda: _keep_by_masks(_copies(state.gradient))),
        Way("partition, hardshrink", lambda: _keep_largest(_copies(state.gradient)), used=True),
    ]
    copies = state.own()
    found["zero_grad"] = [Way("set to None", torch.optim.SGD(copies, lr=0.0).zero_grad, used=True)]
    return found


def _noise(sums: Tensors, source: Source, terms: int) -> list[Way]:
    def each(add: Callable[[torch.Tensor, float, np.random.Generator, int], None]) -> Callable[[], None]:
        def run() -> None:
            generator = SecretRandomness(source).noise("site", 0)
            for tensor in sums:
                add(tensor, STD, generator, terms)

        return run

    return [Way("fresh memory for every chunk", each(_add_with_fresh_memory)), Way("memory used again", each(add_gaussian_), used=True)]


def _add_with_fresh_memory(tensor: torch.Tensor, deviation: float, generator: np.random.Generator, terms: int) -> None:
    flat = tensor.view(-1)
    for first in range(0, flat.numel(), CHUNK):
        part = flat[first : first + CHUNK]
        sample = np.zeros(part.numel())
        for _ in range(terms):
            sample += generator.standard_normal(part.numel())
        noisy = part.to(torch.float64).add_(torch.from_numpy(sample), alpha=deviation / terms**0.5)
        part.copy_(on_grid(noisy, deviation))


def _rounded(number: int) -> None:
    chunk = torch.full((CHUNK,), 0.3, dtype=torch.float64)
    for _ in range(number // CHUNK):
        on_grid(chunk, STD)


def _optimizers(state: State, kind: type[torch.optim.Optimizer], **settings: float) -> list[Way]:
    ways = []
    for name, choice in (("for loop", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
        ways.append(Way(name, kind(state.own(), **settings, **choice).step, used=name == "fused"))
    return ways


def _lerp_each(state: State) -> None:
    with torch.no_grad():
        for average, parameter in zip(state.averages, state.parameters, strict=True):
            average.lerp_(parameter, 1 - DECAY)


def _lerp_foreach(state: State) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(state.averages, list(state.parameters), 1 - DECAY)


def _copies(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {str(index): tensor.clone() for index, tensor in enumerate(tensors)}


def _keep_largest(gradient: dict[str, torch.Tensor]) -> None:
    post_processing.keep_largest_(gradient, KEPT)


def _keep_by_masks(gradient: dict[str, torch.Tensor]) -> None:
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in gradient.values()])
    kept = max(1, round(KEPT * magnitudes.numel()))
    threshold = torch.kthvalue(magnitudes, magnitudes.numel() - kept + 1).values
    for tensor in gradient.values():
        tensor.masked_fill_(tensor.abs() < threshold, 0.0)


def measure(ways: dict[str, list[Way]], repeats: int) -> list[dict[str, object]]:
    """Median CPU seconds of every way, after one run of each to warm up."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):
        for name, several in ways.items():
            for way in several:
                began = time.process_time()
                way.run()
                if repeat:
                    seconds.setdefault((name, way.name), []).append(time.process_time() - began)
    rows: list[dict[str, object]] = []
    for name, several in ways.items():
        first = statistics.median(seconds[name, several[0].name])
        for way in several:
            median = statistics.median(seconds[name, way.name])
            ratio = median / first if first else 1.0
            rows.append({"pass": name, "way": way.name, "used": way.used, "seconds": round(median, 4), "ratio": round(ratio, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="passes with this in their name")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = State()
    found = measure({name: ways for name, ways in passes(state).items() if options.only in name}, options.repeats)
    for row in found:
        print(f"{row['pass']:>34}  {row['way']:<28} {'used' if row['used'] else '':4} {row['seconds']:8.4f} s {row['ratio']:6.2f}")
    if options.json:
        content = {"parameters": state.number, "tensors": len(state.parameters), "threads": 1, "torch": torch.__version__, "passes": found}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
