"""The figure of a budget: what steps cost at a noise, and how much signal q and steps leave at the target epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_adpfl import atomic_files
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.experiments.budget import chosen_row, epsilon_curves

_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")  # readable with any colour vision


def check_name(path: Path) -> str:
    """Format of the figure; InputError for a name that says none."""
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"--plot {path} must end with .png or .svg")
    return path.suffix[1:]


def write(found: dict[str, Any], path: Path) -> None:
    """Write a PNG or SVG atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (only where a figure is wanted)
    from matplotlib.figure import Figure  # noqa: PLC0415

    kind = check_name(path)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_cost(left, found)
    _draw_signal(right, found)
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    patients = " + ".join(map(str, found["units"]))
    figure.suptitle(f"{patients} training patients, epsilon {found['epsilon']:g}, delta {found['delta']:g}", fontsize=11)
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=130)


def _draw_cost(axes: Any, found: dict[str, Any]) -> None:
    row = chosen_row(found)
    for colour, (z, curve) in zip(_COLOURS, epsilon_curves(found).items(), strict=False):
        axes.plot(*zip(*curve, strict=True), color=colour, marker="o", markersize=3, label=f"z = {z:g}")
    axes.axhline(found["epsilon"], color="black", linestyle="--", linewidth=1, label="target epsilon")
    paid = row["steps"] + int(found["choices"]["reserve_steps"]["value"])
    axes.plot(paid, found["epsilon"], "k*", markersize=11, label="the planner's choice, with its reserve")
    axes.set(xlabel="steps of a site", ylabel="epsilon", title=f"cost of steps at q = {row['sampling_rate']:g}")
    axes.set_ylim(0, 3 * found["epsilon"])


def _draw_signal(axes: Any, found: dict[str, Any]) -> None:
    row = chosen_row(found)
    numbers = sorted({one["steps"] for one in found["table"]} - {row["steps"]})
    for colour, steps in zip(_COLOURS, numbers, strict=False):
        line = [(one["sampling_rate"], one["accumulated_signal"]) for one in found["table"] if one["steps"] == steps]
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=3, label=f"{steps} steps")
    axes.plot(row["sampling_rate"], row["accumulated_signal"], "k*", markersize=11, label=f"the planner's choice, {row['steps']} steps")
    axes.set(xlabel="sampling rate q", ylabel="A = q N sqrt(T) / z, all sites", title="accumulated signal over noise")
    axes.set_ylim(bottom=0)
