"""Draws the ratios of step_cost.py: one line of points for each network and K, one point for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

Rows = list[dict[str, Any]]
PANELS = {
    "gradient_ratio": "Time of the gradient",
    "time_ratio": "Time of the step",
    "memory_ratio": "Peak memory of the step",
}
STYLES = {  # colours that colour-blind readers can tell apart
    "loop": ("#0072B2", "o"),
    "fused": ("#D55E00", "D"),
    "fused inverted": ("#E69F00", "d"),
    "opacus hooks": ("#009E73", "s"),
    "opacus ghost": ("#CC79A7", "^"),
    "vmap": ("#777777", "v"),
}
TICKS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16]


def draw(result: dict[str, Any], file: Path) -> None:
    """One panel for each ratio, on a logarithmic axis: half and double are equally far from 1."""
    cases: dict[str, Rows] = {}
    for row in result["rows"]:
        cases.setdefault(_label(row), []).append(row)
    figure, panels = plt.subplots(1, len(PANELS), sharey=True, figsize=(13, 2.2 + 0.42 * len(cases)))
    for axes, (ratio, title) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, list(cases.values()), ratio)
        axes.set_title(title)
    panels[0].set_yticks(range(len(cases)), list(cases))
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(STYLES), frameon=False)
    figure.suptitle(f"Cost of a private step, as a ratio to nnU-Net's own\n{_machine(result)}", fontsize=11)
    figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _panel(axes: Axes, cases: list[Rows], ratio: str) -> None:
    values = []
    for method, (colour, marker) in STYLES.items():
        points = [
            (row[ratio], place)
            for place, rows in enumerate(cases)
            for row in rows
            if row["method"] == method and row[ratio] is not None
        ]
        axes.scatter(*zip(*points, strict=True) if points else ([], []), c=colour, marker=marker, s=36, label=method, zorder=3)
        values += [value for value, _ in points]
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min([0.7, *values]) / 1.15, max([1.5, *values]) * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("ratio to a plain step (1 = the same)")
    axes.grid(axis="both", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: dict[str, Any]) -> str:
    patch = "x".join(map(str, row["patch_size"]))
    network = "ResEnc" if row["network"] == "resenc" else "plain"
    return (
        f"{network} {row['dims']}D, {row['parameters'] / 1e6:.1f} M, {patch}\n"
        f"{row['patients']} patients, K = {row['patches_per_patient']}"
    )


def _machine(result: dict[str, Any]) -> str:
    about = result["machine"]
    clock = {row["clock"] for row in result["rows"]}
    where = about["gpu"] or f"{about['cpu']}, {about['threads']} thread(s)"
    return f"{where}, {' and '.join(sorted(clock))} time, PyTorch {about['torch']}, Opacus {about['opacus']}"
