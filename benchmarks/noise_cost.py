"""What one step's noise costs by source, for as many parameters as nnU-Net's usual network has.

    python benchmarks/noise_cost.py [--parameters 30000000] [--repeats 5] [--json FILE]

Prints a table; times are medians of interleaved repeats on one thread, ratios are to the default source.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from nnunet_adpfl.privacy.noise import SecretRandomness, Source, add_gaussian_

CASES: tuple[tuple[Source, int], ...] = (("os_seeded", 1), ("secure", 1), ("os_seeded", 4), ("secure", 4))


def measure(parameters: int, repeats: int) -> list[dict[str, object]]:
    """Seconds of adding noise to all parameters, as `Mechanism.release` does."""
    tensor = torch.zeros(parameters)
    seconds: dict[tuple[Source, int], list[float]] = {case: [] for case in CASES}
    for _ in range(repeats):
        for source, terms in CASES:
            generator = SecretRandomness(source).noise("site", 0)
            began = time.perf_counter()
            add_gaussian_(tensor, 1.0, generator, terms)
            seconds[source, terms].append(time.perf_counter() - began)
    base = statistics.median(seconds[CASES[0]])
    return [
        {
            "noise_source": source,
            "noise_terms": terms,
            "parameters": parameters,
            "seconds": round(statistics.median(found), 3),
            "ratio": round(statistics.median(found) / base, 2),
        }
        for (source, terms), found in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=30_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.parameters, options.repeats)
    for row in found:
        print(f"{row['noise_source']:>10}  {row['noise_terms']} Gaussian(s)  {row['seconds']:7.3f} s  {row['ratio']:5.2f} x")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
