"""Epsilon by three accountants over a grid: PLD (what is reported), PRV and RDP (cross-checks), with times.

    python benchmarks/accountants.py [--quick] [--json FILE]

PLD and PRV are independent implementations (dp-accounting, Opacus); both are upper bounds, so they must agree up to
their discretisation. RDP has to lie above PLD.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
import warnings
from pathlib import Path

from nnunet_adpfl.privacy import accounting

RATES = (0.02, 0.05, 0.1, 0.25, 0.5)
MULTIPLIERS = (0.7, 1.0, 2.0, 4.0)
STEPS = (50, 200, 1000)
DELTA = 1e-5
MOST_EPSILON = 30.0  # PRV takes minutes above


def measure(rate: float, multiplier: float, steps: int) -> dict[str, float | None] | None:
    """One row; None where epsilon is of no interest."""
    events = [accounting.poisson_gaussian(rate, multiplier, steps)]
    began = time.perf_counter()
    pld = accounting.epsilon(events, DELTA)
    seconds = time.perf_counter() - began
    if pld > MOST_EPSILON:
        return None
    prv, rdp = accounting.epsilon_prv(events, DELTA), accounting.epsilon_rdp(events, DELTA)
    difference = None if prv is None else abs(prv - pld)
    return {
        "sampling_rate": rate, "noise_multiplier": multiplier, "steps": steps, "pld": pld, "prv": prv, "rdp": rdp,
        "pld_minus_prv": difference, "pld_seconds": round(seconds, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("absl").setLevel(logging.ERROR)
    rows = []
    for point in list(itertools.product(RATES, MULTIPLIERS, STEPS))[:: 6 if options.quick else 1]:
        row = measure(*point)
        if row is None:
            continue
        rows.append(row)
        prv = "-" if row["prv"] is None else f"{row['prv']:8.4f}"
        print(f"q {point[0]:<5} z {point[1]:<4} T {point[2]:<5} PLD {row['pld']:8.4f}  PRV {prv}  RDP {row['rdp']:8.4f}", flush=True)
    worst = max(row["pld_minus_prv"] or 0.0 for row in rows)
    print(f"{len(rows)} points, largest |PLD - PRV| {worst:.4f}, RDP above PLD everywhere: {all(r['rdp'] >= r['pld'] for r in rows)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
