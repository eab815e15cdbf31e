"""What the audit shows of the shipped mechanism: lower bound and claimed epsilon of one step, by noise and dimension.

    python benchmarks/audit.py --json benchmarks/results/audit_cpu.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.experiments import audit

NOISE_MULTIPLIERS = (1.0, 2.0, 4.0)
LEAST = 5_000  # releases in each world


def measure(noise_multiplier: float) -> list[dict[str, Any]]:
    """One row for each network; the bounds of both hold at once with the confidence in the row."""
    number = max(LEAST, audit.default_releases(noise_multiplier))
    report = audit.quick(noise_multiplier=noise_multiplier, releases=number).report
    rows = []
    for network in report["networks"]:
        ratios = [row["noise_ratio"] for row in network["per_tensor"]]
        rows.append(
            {
                "dims": network["dims"],
                "parameters": network["parameters"],
                "noise_multiplier": noise_multiplier,
                "delta": report["delta"],
                "confidence": report["confidence"],
                "releases": number,
                "epsilon_claimed": report["epsilon_claimed"],
                "verdict": report["verdict"],
                **{key: network[key] for key in _KEPT},
                "noise_ratio_min": min(ratios),
                "noise_ratio_max": max(ratios),
                "least_noise_p_value": min(row["noise_p_value"] for row in network["per_tensor"]),
                **network["power"],
            }
        )
    return rows


_KEPT = ("epsilon_lower_bound", "epsilon_lower_bound_assumption_free", "mu_claimed", "mu_lower_bound", "mu_estimate", "sensitivity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for noise_multiplier in NOISE_MULTIPLIERS for row in measure(noise_multiplier)]
    atomic_files.write_json(arguments.json, rows)
    for row in rows:
        print(
            f"{row['dims']}D z={row['noise_multiplier']:g}: epsilon >= {row['epsilon_lower_bound']:.2f} of "
            f"{row['epsilon_claimed']:.2f}, mu >= {row['mu_lower_bound']:.3f} of {row['mu_claimed']:.3f}"
        )


if __name__ == "__main__":
    main()
