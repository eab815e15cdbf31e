"""The figures of a comparison as text: what `adpfl compare` prints and keeps in comparison.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_adpfl.privacy.summary import OF_TRAINING


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as text: methods, what their shares of the gap are, and each site and class."""
    methods = found["methods"]
    lines = [*_methods_table(methods), *_shares(found), *_steadiness(found["stability"])]
    for part in ("sites", "classes"):
        lines += _parts_table(methods, part)
    total = found.get("all_runs_on_these_patients")
    if total:
        epsilon = "no bound (a run without privacy is among them)" if total["epsilon"] is None else f"epsilon {total['epsilon']:.3g}"
        lines.append(f"\nThe epsilons are of one run each. All {total['runs']} runs ever made on these patients together: {epsilon}.")
    lines += [f"\n{name}: {reason}" for name, row in methods.items() for reason in row["not_covered"] if reason.startswith(OF_TRAINING)]
    lines.append("\nFigures about held-out patients: not for release.")
    return "\n".join(lines) + "\n"


def _methods_table(methods: Mapping[str, Any]) -> list[str]:
    lines = [
        "| method | tuned to | Dice | over seeds | over patients | HD95 | NSD | rounds to 90 % | last rounds | epsilon | guarantee |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in methods.items():
        dice = row["dice"]
        cells = [
            name, _settings(row["tuned"]), _text(dice["mean"]), _text(dice["std_seeds"], 4), _text(dice["std_units"]),
            _text(row["hd95_mm"]["mean"], 2), _text(row["nsd"]["mean"]), _text(row["rounds_to_90"], 1),
            _text(row["last_rounds_std"], 4), _text(row["epsilon"], 2), row["guarantee"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shares(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind, gap in found["gap_closed"]["dice"].items():
        share = "no share: the gap's interval is not above 0" if gap["share"] is None else (
            f"{gap['share']:.0%} closed (95 % interval {gap['ci95'][0]:.0%} to {gap['ci95'][1]:.0%})"
        )  # fmt: skip
        lines.append(f"\n{kind}: gap {gap['gap']:.4f} ({gap['gap_ci95'][0]:.4f} to {gap['gap_ci95'][1]:.4f}), {share}.")
        untuned = [name for name in gap["of"] if not found["methods"][name]["tuned"]]
        if untuned:
            lines.append(f"{', '.join(untuned)} not tuned (--tune-on): this share is no evidence for or against a method.")
    return lines


def _steadiness(stability: Mapping[str, Any]) -> list[str]:
    """ADP-FL's deviations over DP-FL's, as far as they are known."""
    lines = []
    for kind, entry in stability.items():
        told = {"over seeds": entry["deviation_over_seeds"], "over the last rounds": entry.get("deviation_over_last_rounds")}
        parts = [
            f"{what} {ratio['value']:.2f} ({_end(ratio['ci95'][0])} to {_end(ratio['ci95'][1])})"
            for what, ratio in told.items()
            if ratio and ratio["value"] is not None
        ]
        if entry.get("share_of_rounds") is not None:
            parts.append(f"rounds to DP-FL's final Dice {entry['share_of_rounds']:.0%} (runs that never reach it count as all rounds)")
        if parts:
            lines.append(f"\n{kind}, ADP-FL's deviation over DP-FL's: {'; '.join(parts)}.")
    return lines


def _parts_table(methods: Mapping[str, Any], part: str) -> list[str]:
    """Dice of each site, or of each class."""
    names = list(dict.fromkeys(name for row in methods.values() for name in row[part]))
    if not names:
        return []
    lines = ["", f"| Dice of {part} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for method, row in methods.items():
        cells = [_text(row[part][name]["dice"]) if name in row[part] else "none" for name in names]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _settings(tuned: Mapping[str, Any]) -> str:
    """``learning_rate 0.3, clip_norm 0.1``; a method whose grid was not tried says so."""
    return ", ".join(f"{path.rpartition('.')[2]} {value:g}" for path, value in tuned.items()) or "not tuned"


def _text(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _end(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.2f}"
