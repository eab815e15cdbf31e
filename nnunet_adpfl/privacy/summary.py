"""What `adpfl privacy` says about a run: epsilon per site and over all, recomputed from the ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_adpfl import tensor_files
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, hash_chain, ledger
from nnunet_adpfl.privacy.hash_chain import ChainContent, Line
from nnunet_adpfl.privacy.mechanism import ALL_SITES

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")  # nnU-Net's names, newest first
NOT_COVERED = [
    "validation patients (their images never train the model, but metrics and overlays show them)",
    "hyper-parameters chosen by looking at earlier runs on the same patients",
    "other runs on the same patients: they add up (see the odometer)",
    "a run that stops because a patient's file cannot be read: it shows that the patient was drawn",
    "floating-point effects of Gaussian noise, and timing of the training process",
]
NOT_COVERED_PLAN = "the nnU-Net plan: it was made from a pooled fingerprint without noise"
OF_TRAINING = "the training: "  # begins the reason why a training has no guarantee at all


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
    null where a part of training had no guarantee), delta, unit, guarantee, not_covered, accountant, sites. Of a run
    that took fewer steps than it declared, or repeated a round, the epsilon is the target (rule 10); what was spent
    stands beside it.

    Raises PrivacyRefusedError for a ledger that is damaged, missing or shorter than the run's checkpoint knows it.
    """
    sites: dict[str, dict[str, Any]] = {}
    firsts: list[Line] = []
    scopes: set[str] = set()
    reasons: set[str] = set()
    for path in ledger_files(run):
        content = hash_chain.read(path)
        first = ledger.first_line(path, content)
        sites[str(first["site"])] = _site_summary(path, content, first)
        firsts.append(first)
        openly = [line for line in content.lines if line["event"] == "non_private"]
        scopes |= {str(line.get("scope")) for line in openly}
        reasons |= {f"{OF_TRAINING}{line.get('reason')}" for line in openly if line.get("scope") == "training"}
    if run.is_dir():
        _check_against_checkpoint(run)
    deltas = {first["delta"] for first in firsts}
    units = {first["unit"] for first in firsts}
    if len(deltas) > 1 or len(units) > 1:
        raise PrivacyRefusedError(f"{run}: the sites' ledgers differ in delta or unit; they are not of one run")
    trained_openly = "training" in scopes
    epsilons = [site["epsilon"] for site in sites.values()]
    return {
        "epsilon": None if trained_openly or None in epsilons else max(epsilons),
        "complete": all(site["complete"] for site in sites.values()),
        "delta": deltas.pop(),
        "unit": units.pop(),
        "adjacency": firsts[0]["adjacency"],
        "guarantee": "none" if trained_openly else "formal_given_plan" if "plan" in scopes else "formal",
        "not_covered": [
            *NOT_COVERED,
            *([NOT_COVERED_PLAN] if "plan" in scopes else []),
            *sorted(reasons),
            *sorted({text for first in firsts for text in first.get("declarations") or ()}),
        ],
        "accountant": "RDP filter" if firsts[0]["composition"] == "rdp_filter" else "PLD",
        "sampler": "Poisson over units",
        "noise": _noise_text(firsts[0]),
        "sites": sites,
    }


def _check_against_checkpoint(run: Path) -> None:
    """Every ledger that the newest checkpoint paid into must be there, with the line that it was saved at."""
    path = next((run / name for name in _CHECKPOINTS if (run / name).is_file()), None)
    content = tensor_files.load(path) if path else {}
    state = (content.get("adpfl") if isinstance(content, dict) else None) or {}
    heads = state.get("ledger_heads", {}) if isinstance(state, dict) else None
    present = {ALL_SITES, *(folder.name for folder in run.glob("sites/*"))}
    if not isinstance(heads, dict) or not present >= set(heads) or (heads and not {"run", "plan_hash"} <= set(state)):
        raise PrivacyRefusedError(f"{path}: the site of one of its ledgers is missing, or what it says about them is damaged; restore it")
    for site, head in (heads or {}).items():
        folder = run if site == ALL_SITES else run / "sites" / site
        content = hash_chain.read(folder / ledger.FILE_NAME)
        first = ledger.first_line(folder / ledger.FILE_NAME, content)
        if (first["run"], first.get("plan_hash")) != (state["run"], state["plan_hash"]):
            raise PrivacyRefusedError(f"{folder / ledger.FILE_NAME} belongs to another run than {path}; restore it")
        if all(line["hash"] != head for line in content.lines):
            raise PrivacyRefusedError(
                f"{folder / ledger.FILE_NAME} is shorter than when {path} was saved: restore it, the privacy spent is unknown"
            )


def _site_summary(path: Path, content: ChainContent, first: Line) -> dict[str, Any]:
    events = ledger.spending_events(content, path)
    delta, target = float(first["delta"]), first.get("target_epsilon")
    openly = any(line["event"] == "non_private" and line.get("scope") == "training" for line in content.lines)
    spent = None if openly else _reported_epsilon(events, first)
    complete = ledger.steps_taken(events) >= int(first.get("declared_steps") or 0)
    filtered = first["composition"] == "rdp_filter"  # then the filter's bound holds, not what was realised (rule 10)
    realised_holds = ledger.went_as_declared(events, first) and not filtered
    return {
        "epsilon": spent if realised_holds or spent is None or target is None else max(spent, float(target)),
        "epsilon_spent": spent,
        "epsilon_prv": None if openly or filtered else accounting.epsilon_prv(events, delta),
        "steps": sum(int(event["steps"]) for event in events if event["event"] != "gaussian"),
        "complete": complete or openly,
        "target_epsilon": target,
    }


def _noise_text(first: Line) -> str:
    source = "ChaCha20" if first.get("noise_source") == "secure" else "Philox (not a cipher)"
    terms = int(first.get("noise_terms") or 1)
    return f"Gaussian, from {source} keyed with operating system entropy" + (f", sum of {terms}" if terms > 1 else "")


def _reported_epsilon(events: list[Line], first: Line) -> float:
    """PLD where the schedule was declared; where it was driven by data only the filter's bound is valid (rule 10)."""
    if first["composition"] == "rdp_filter":
        return accounting.epsilon_rdp(events, float(first["delta"]), float(first["order"]))
    if first["composition"] != "declared":
        raise PrivacyRefusedError(f"ledger: unknown composition {first['composition']!r}")
    return accounting.epsilon(events, float(first["delta"]))
