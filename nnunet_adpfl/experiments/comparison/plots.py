"""Pictures of a comparison: learning curves with their spread over seeds, and the final Dice of every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nnunet_adpfl import atomic_files
from nnunet_adpfl.evaluation.figures import COLOURS, STYLE
from nnunet_adpfl.experiments.comparison.methods import PUBLIC

CURVES_FILE_NAME, SCORES_FILE_NAME = "curves.svg", "scores.svg"


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Write curves.svg and scores.svg of the methods that have runs."""
    finished = {name: results for name, results in runs.items() if results}
    if not finished:
        return
    with mpl.rc_context(STYLE):
        _save(_curves(finished), folder / CURVES_FILE_NAME)
        _save(_scores(finished), folder / SCORES_FILE_NAME)


def _curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, results in runs.items():
        curves = [result["curve"] for result in results if result["curve"]]
        length = min(map(len, curves), default=0)
        if not length:
            continue
        values = np.array([curve[:length] for curve in curves])
        rounds = np.arange(1, length + 1)
        colour, dashes = _colour(name, runs), "-" if name.endswith(f"@{PUBLIC}") else "--"
        axes.plot(rounds, values.mean(axis=0), label=name, linewidth=1.4, color=colour, linestyle=dashes)
        if len(values) > 1:
            axes.fill_between(rounds, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="round", ylabel="Dice (some held-out cases)", ylim=(0, 1))
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _scores(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    figure = Figure(figsize=(6.4, 0.32 * len(runs) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, results) in enumerate(runs.items()):
        dice = [result["mean"]["dice"] for result in results]
        axes.plot(dice, [row] * len(dice), "o", color=_colour(name, runs), markersize=4, alpha=0.6)
        axes.plot([float(np.mean(dice))], [row], "|", color="black", markersize=14)
    axes.set(xlabel="Dice of each seed, all held-out cases", yticks=range(len(runs)), yticklabels=list(runs))
    axes.invert_yaxis()
    return figure


def _colour(name: str, runs: Mapping[str, Any]) -> str:
    """The same for a method with both starts."""
    bases = list(dict.fromkeys(known.removesuffix(f"@{PUBLIC}") for known in runs))
    return COLOURS[bases.index(name.removesuffix(f"@{PUBLIC}")) % len(COLOURS)]


def _save(figure: Figure, path: Path) -> None:
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
