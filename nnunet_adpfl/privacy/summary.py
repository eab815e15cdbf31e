"""What `adpfl privacy` says about a run: epsilon per site and over all, recomputed from the ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain, ledger
from nnunet_adpfl.privacy.hash_chain import ChainContent, Line

NOT_COVERED = [
    "validation patients (their images never train the model, but metrics and overlays show them)",
    "hyper-parameters chosen by looking at earlier runs on the same patients",
    "other runs on the same patients: they add up (see the odometer)",
    "floating-point effects of Gaussian noise, and timing of the training process",
]
NOT_COVERED_PLAN = "the nnU-Net plan: it was made from a pooled fingerprint without noise"


def ledger_files(run: Path) -> list[Path]:
    """The ledgers of a run folder (one per site, or one for a central run), or the file itself."""
    if run.is_file():
        return [run]
    found = sorted(run.glob(f"sites/*/{ledger.FILE_NAME}"))
    central = run / ledger.FILE_NAME
    if central.is_file():
        found.append(central)
    if not found:
        raise InputError(f"{run} holds no {ledger.FILE_NAME}: give the run's fold folder or a ledger file")
    return found


def summarise(run: Path) -> dict[str, Any]:
    """Read the ledgers of a run and recompute what was spent.

    Returns the mapping of `adpfl privacy RUN --json`: epsilon (the maximum over sites, which hold different patients;
    null where a part of training had no guarantee), delta, unit, guarantee, not_covered, accountant, sites.
    """
    sites: dict[str, dict[str, Any]] = {}
    firsts: list[Line] = []
    scopes: set[str] = set()
    for path in ledger_files(run):
        content = hash_chain.read(path)
        first = ledger.first_line(path, content)
        sites[str(first["site"])] = _site_summary(path, content, first)
        firsts.append(first)
        scopes |= {str(line.get("scope")) for line in content.lines if line["event"] == "non_private"}
    deltas = {first["delta"] for first in firsts}
    units = {first["unit"] for first in firsts}
    if len(deltas) > 1 or len(units) > 1:
        raise PrivacyRefusedError(f"{run}: the sites' ledgers differ in delta or unit; they are not of one run")
    trained_openly = "training" in scopes
    epsilons = [site["epsilon"] for site in sites.values()]
    return {
        "epsilon": None if trained_openly or None in epsilons else max(epsilons),
        "delta": deltas.pop(),
        "unit": units.pop(),
        "adjacency": firsts[0]["adjacency"],
        "guarantee": "none" if trained_openly else "formal_given_plan" if "plan" in scopes else "formal",
        "not_covered": [*NOT_COVERED, *([NOT_COVERED_PLAN] if "plan" in scopes else [])],
        "accountant": "RDP filter" if firsts[0]["composition"] == "rdp_filter" else "PLD",
        "sampler": "Poisson over units",
        "noise": "Gaussian, keyed with operating system entropy",
        "sites": sites,
    }


def _site_summary(path: Path, content: ChainContent, first: Line) -> dict[str, Any]:
    events = ledger.spending_events(content, path)
    delta = float(first["delta"])
    openly = any(line["event"] == "non_private" and line.get("scope") == "training" for line in content.lines)
    return {
        "epsilon": None if openly else _reported_epsilon(events, first),
        "epsilon_prv": None if openly else accounting.epsilon_prv(events, delta),
        "steps": sum(int(event["steps"]) for event in events),
        "target_epsilon": first.get("target_epsilon"),
    }


def _reported_epsilon(events: list[Line], first: Line) -> float:
    """PLD where the schedule was declared; where it was driven by data only the filter's bound is valid (rule 10)."""
    if first["composition"] == "rdp_filter":
        return accounting.epsilon_rdp(events, float(first["delta"]), float(first["order"]))
    if first["composition"] != "declared":
        raise PrivacyRefusedError(f"ledger: unknown composition {first['composition']!r}")
    return accounting.epsilon(events, float(first["delta"]))
