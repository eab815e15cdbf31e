"""From the noisy histograms of all sites to nnU-Net's fingerprint: post-processing, which costs no privacy.

Nothing here looks at data. A cumulative histogram is made monotone, and counts within THRESHOLD standard deviations of
their noise of nobody (or of everybody) are read as that: quantiles further out than the noise allows are taken where it
allows them. Where not even a median can be told from noise, the prior of the question is read instead, and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_adpfl.federation.public_bins import CT_PRIOR, Question, Questions
from nnunet_adpfl.nnunet_compat import planning as stock

THRESHOLD = 1.5  # standard deviations; 1 lets wild plans through, 2 gives up answers that are of use (docs/fingerprint.md)
LISTED = 201  # cases in the list that is made up for nnU-Net's planners: odd, so that the median is one of them
_LEAST_WIDTH = 50.0  # HU between the clip bounds; a window narrower than this is noise
_PROPERTIES = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")  # nnU-Net's, of a channel


@dataclass(frozen=True)
class Margin:
    """What one question was answered, noise removed as far as possible.

    Attributes:
        shares: cumulative share of patients up to each bin, ends with 1; None where the noise drowned the answers.
        uncertainty: share of patients that THRESHOLD standard deviations of the noise are.
    """

    question: Question
    shares: np.ndarray | None = None
    uncertainty: float = 1.0

    def quantile(self, q: float | np.ndarray) -> np.ndarray:
        """Centre of the first bin that holds the share q of patients; the prior where the noise drowned them."""
        if self.shares is None:
            return np.full(np.shape(q), self.question.prior)
        return np.asarray(self.question.centres)[np.searchsorted(self.shares, q)]

    @property
    def quartile(self) -> float:
        """1/4, or as far from the median as can be read without falling among the empty bins; at most the median."""
        return 0.5 - float(np.clip(0.5 - 2 * self.uncertainty, 0.0, 0.25))


@dataclass(frozen=True)
class Answers:
    """The margins of all questions.

    Attributes:
        asked: what was asked.
        margins: name -> answers.
    """

    asked: Questions
    margins: dict[str, Margin]

    @property
    def drowned(self) -> list[str]:
        """Questions for which the prior is read."""
        return [name for name, margin in self.margins.items() if margin.shares is None]

    def fingerprint(self) -> dict[str, Any]:
        """nnU-Net's fingerprint, JSON-ready, with a made-up list of cases.

        The list couples the axes' quantiles in ascending order, which keeps every axis's median and percentiles, and the
        median of the extent (spacing x shape), whatever the true coupling is. Minimum and maximum of intensities cannot
        be told privately: they are the percentiles.
        """
        ranks = (np.arange(LISTED) + 0.5) / LISTED
        spacings, shapes = [], []
        for axis in range(3):
            made_up = self.asked.spacing_mm
            widths = self._quantile(f"spacing_{axis}", ranks, made_up[axis] if made_up else 1.0)
            extents = self._quantile(f"extent_{axis}", ranks, widths)
            spacings.append(widths)
            shapes.append(np.maximum(np.rint(extents / widths), 1))
        relative = float(self._quantile("relative_size", np.array(0.5), 1.0))
        return {
            "foreground_intensity_properties_per_channel": {
                str(channel): self._ct_properties(channel) if name == stock.CT else dict.fromkeys(_PROPERTIES, 0.0)
                for channel, name in enumerate(self.asked.channels)
            },
            "median_relative_size_after_cropping": relative,
            "shapes_after_crop": np.stack(shapes, axis=1).astype(int).tolist(),
            "spacings": np.stack(spacings, axis=1).tolist(),
        }

    def _quantile(self, name: str, q: np.ndarray, public: Any) -> np.ndarray:
        """``public`` for what was not asked: the reader's spacing, one slice, no cropping."""
        return self.margins[name].quantile(q) if name in self.margins else np.broadcast_to(public, q.shape)

    def _ct_properties(self, channel: int) -> dict[str, float]:
        """Bounds: outer quartiles of the patients' own, because the pooled ones lie outside of the median patient's; the
        rest: of all voxels, each patient's weighing the same."""
        lower, upper = self.margins[f"low_{channel}"], self.margins[f"high_{channel}"]
        low, high = float(lower.quantile(lower.quartile)), float(upper.quantile(1 - upper.quartile))
        if high - low < _LEAST_WIDTH:
            low, high = CT_PRIOR["low"], CT_PRIOR["high"]
        voxels = self.margins[f"voxels_{channel}"]
        mean, deviation, median = CT_PRIOR["mean"], CT_PRIOR["std"], CT_PRIOR["mean"]
        if voxels.shares is not None:
            values, shares = np.clip(voxels.question.centres, low, high), np.diff(voxels.shares, prepend=0.0)
            mean = float(values @ shares)
            deviation, median = float(np.sqrt((values - mean) ** 2 @ shares)), float(voxels.quantile(0.5))
        found = (high, mean, median, low, low, high, max(deviation, 1.0))
        return dict(zip(_PROPERTIES, found, strict=True))


def answers(asked: Questions, total: np.ndarray, units: int, noise: float) -> Answers:
    """Read the sum over all sites.

    Args:
        total: noisy sum of the vectors of all units, float64 of shape (size,).
        units: declared number of units.
        noise: standard deviation on each coordinate of ``total``.
    """
    parts = asked.split(total)
    margins = {}
    for question in asked.asked:
        uncertainty = THRESHOLD * asked.rank_noise(question, noise)
        shares = _shares(asked.cumulative(question, parts[question.name]), units, uncertainty)
        margins[question.name] = Margin(question, shares, uncertainty / units)
    return Answers(asked, margins)


def drowning(asked: Questions, units: int, noise: float) -> list[str]:
    """Questions whose answers this noise drowns whatever they are; known before anything is asked or spent."""
    return [question.name for question in asked.asked if THRESHOLD * asked.rank_noise(question, noise) >= units / 2]


def prior(asked: Questions) -> Answers:
    """Answers that nobody gave: every question's prior."""
    return Answers(asked, {question.name: Margin(question) for question in asked.asked})


def _shares(counts: np.ndarray, units: int, uncertainty: float) -> np.ndarray | None:
    """Noisy cumulative counts -> cumulative shares; None where their median cannot be told from noise."""
    upwards, downwards = np.maximum.accumulate(counts), np.minimum.accumulate(counts[::-1])[::-1]
    monotone = np.clip((upwards + downwards) / 2, 0, units)
    answering = float(monotone[-1])  # fewer than all, where patients have no foreground
    if uncertainty >= answering / 2:
        return None
    monotone[monotone < uncertainty] = 0
    monotone[monotone > answering - uncertainty] = answering
    return np.asarray(monotone / answering)
