"""The figure of an audit: what the adversary measured in both worlds, and what the claim says that it should see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from nnunet_adpfl import atomic_files
from nnunet_adpfl.experiments.audit import AuditResult, Panel

_OUT, _IN = "#4477aa", "#cc6677"  # readable with any colour vision


def write(result: AuditResult, path: Path) -> None:
    """Write a PNG atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (only where a figure is wanted)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6.0 * len(result.panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(result.panels), squeeze=False)[0], result.panels, strict=True):
        _draw(axes, panel)
    figure.suptitle(headline(result.report), fontsize=11)
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def headline(report: dict[str, Any]) -> str:
    """The result in one line."""
    steps = "1 step" if report["steps"] == 1 else f"{report['steps']} steps"
    return (
        f"epsilon >= {report['epsilon_lower_bound']:.3g} ({report['confidence']:.1%} confidence), claimed "
        f"{report['epsilon_claimed']:.3g} at delta {report['delta']:g} for {steps}: {report['verdict']}"
    )


def _draw(axes: Any, panel: Panel) -> None:
    pooled = np.concatenate([panel.out, panel.inside])
    edges = np.histogram_bin_edges(pooled, bins=min(60, max(10, len(pooled) // 25)))
    worlds: Sequence[tuple[Any, str, str]] = ((panel.out, _OUT, "without the canary"), (panel.inside, _IN, "with the canary"))
    for sample, colour, name in worlds:
        axes.hist(sample, bins=edges, density=True, color=colour, alpha=0.45, label=f"{name} (n = {len(sample)})")
    if panel.mu is not None:
        grid = np.linspace(edges[0], edges[-1], 400)
        for mean, colour in ((0.0, _OUT), (panel.mu, _IN)):
            axes.plot(grid, stats.norm.pdf(grid, mean), color=colour, linewidth=1.5)
        axes.plot([], [], color="black", linewidth=1.5, label=f"claim: shift of {panel.mu:.3g} deviations")
    axes.axvline(panel.threshold, color="black", linestyle="--", linewidth=1, label="threshold, from the first half")
    axes.set(title=panel.title, xlabel="the adversary's log-likelihood ratio (scaled)", ylabel="density")
    axes.legend(fontsize=8, frameon=False)
