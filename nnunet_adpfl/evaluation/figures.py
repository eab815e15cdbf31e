"""Figures of the report as data URIs: one style, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from nnunet_adpfl.evaluation.boundary import Mask

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
TRUTH_COLOUR, PREDICTION_COLOUR = "#56D0FF", "#FF8C1A"
MAX_LEGEND_ENTRIES = 12
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "svg.hashsalt": "adpfl",
}
Points = Sequence[tuple[float, float]]


def curves(
    series: Mapping[str, Points], y_label: str, *, log: bool = False, limit: tuple[str, float] | None = None
) -> str:
    """Lines over rounds, one per name; ``limit`` is a horizontal line with its label, and starts the axis at 0."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(4.6, 2.7)
        for index, (name, points) in enumerate(series.items()):
            x, y = zip(*points, strict=True) if points else ((), ())
            marker = "o" if len(points) <= 12 else None
            axes.plot(x, y, color=COLOURS[index % len(COLOURS)], label=name, marker=marker, markersize=3, linewidth=1.4)
        if limit:
            axes.axhline(limit[1], color="#888888", linestyle="--", linewidth=1, label=limit[0])
        axes.set(xlabel="round", ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter())
        if limit:
            axes.set_ylim(bottom=0)
        if len(series) + bool(limit) > 1 and len(series) <= MAX_LEGEND_ENTRIES:
            axes.legend(frameon=False, fontsize=8)
        return _svg(figure)


def bars(values: Mapping[str, Sequence[float]], y_label: str) -> str:
    """One bar per name at the mean of its values, each value as a dot; axis from 0 to 1."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(max(3.4, 0.55 * len(values) + 1.6), 2.7)
        axes.bar(list(values), [float(np.mean(v)) for v in values.values()], color="#BFD9EA", width=0.6)
        for index, points in enumerate(values.values()):
            spread = np.linspace(-0.18, 0.18, len(points)) if len(points) > 1 else np.zeros(1)
            axes.plot(index + spread, points, "o", color=COLOURS[0], markersize=2.5, alpha=0.7)
        axes.set(ylabel=y_label, ylim=(0, 1.02))
        axes.grid(axis="x", visible=False)
        if max(map(len, values)) > 8 or len(values) > 8:
            axes.tick_params(axis="x", rotation=60)
        return _svg(figure)


def overlay(image: np.ndarray, truth: Sequence[Mask], prediction: Sequence[Mask], spacing: tuple[float, float]) -> str:
    """An image (y, x) or (y, x, RGB) with contours of truth (solid) and prediction (dashed); one mask per class."""
    with mpl.rc_context({"svg.hashsalt": "adpfl"}):
        height = 2.8 * min(2.0, max(0.5, image.shape[0] * spacing[0] / (image.shape[1] * spacing[1])))
        figure = Figure(figsize=(2.8, height), facecolor="black")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(_shown(image), cmap="gray", aspect=spacing[0] / spacing[1], interpolation="nearest")
        for masks, colour, line in ((truth, TRUTH_COLOUR, "solid"), (prediction, PREDICTION_COLOUR, "dashed")):
            for mask in masks:
                if mask.any() and not mask.all():
                    axes.contour(mask, levels=[0.5], colors=colour, linestyles=line, linewidths=1.3)
        axes.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return _uri(buffer.getvalue(), "image/png")


def _shown(image: np.ndarray) -> np.ndarray:
    """Grey values between the 1st and 99th percentile, so that a bright rim does not hide the rest."""
    low, high = np.percentile(image, (1, 99))
    return np.clip((image.astype(float) - low) / max(float(high - low), 1e-9), 0, 1)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _uri(buffer.getvalue(), "image/svg+xml")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
