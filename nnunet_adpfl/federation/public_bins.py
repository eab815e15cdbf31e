"""What a noisy fingerprint asks of every patient, and the bins of the answers: public, and fixed before data is seen.

Only what nnU-Net's planners use is asked (docs/fingerprint.md): the spacing of each axis (median, 10th percentile), the
extent of each axis after cropping (spacing x shape, whose median over the target spacing is the median shape), whether
cropping takes away a quarter of an image (only where a channel's normalisation can use the mask), and for CT channels
the bounds and the spread of the foreground. Each answer is a histogram of mass 1 over its bins.

A histogram leaves as R h, where R R is the matrix of prefix sums (Henzinger, Upadhyay and Upadhyay 2023): the noise of a
rank then grows with the logarithm of the number of bins, not with its root as it does when bins are noised one by one.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_adpfl.nnunet_compat import planning as stock

VERSION = 2  # of the questions and bins below; noisy histograms of another version are not read
SAMPLES = 100_000  # foreground voxels of a case; not nnU-Net's number, which depends on how many cases others have
MASK_SHARE = 0.75  # nnU-Net normalises inside the mask where the median relative size is below this
SPACINGS_MM = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2, 1.3,
    1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.5, 2.75, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0, 20.0,
)  # fmt: skip
EXTENTS = tuple(2.0 ** (step / 32) for step in range(13 * 32 + 1))  # 1 to 8192 mm (pixels of photographs), 2 % apart
HU = tuple(float(value) for value in range(-1020, 3072, 8))  # of 12 bits, -1024 to 3071
CT_PRIOR = {"low": -150.0, "high": 300.0, "mean": 75.0, "std": 100.0}  # soft tissue


@dataclass(frozen=True)
class Question:
    """One histogram.

    Attributes:
        name: of its array in the message of a site.
        centres: what the bins are read as, ascending; values beyond the ends fall in the outer bins.
        edges: upper ends of all bins but the last.
        share: of the squared weights: what matters more for a plan gets more, hence less noise.
        prior: read where the noise drowns the answers.
    """

    name: str
    centres: tuple[float, ...]
    edges: tuple[float, ...]
    share: float
    prior: float

    @classmethod
    def about(cls, name: str, centres: Sequence[float], share: float, prior: float, *, ratio: bool = False) -> Question:
        """Bins that end half way between two centres: in the ratio, or in the difference."""
        edges = [math.sqrt(a * b) if ratio else (a + b) / 2 for a, b in itertools.pairwise(centres)]
        return cls(name, tuple(centres), tuple(edges), share, prior)

    @property
    def column_norm(self) -> float:
        """Largest L2 norm of R h over histograms of mass 1: that of a patient in the first bin."""
        return float(np.linalg.norm(prefix_root(len(self.centres))[:, 0]))

    def histogram(self, values: Any) -> np.ndarray:
        """Mass 1 over the bins, shared by the finite values; all zero where there is none (no foreground)."""
        found = np.asarray(values, dtype=np.float64).ravel()
        found = found[np.isfinite(found)]
        counts = np.bincount(np.searchsorted(self.edges, found, side="right"), minlength=len(self.centres))
        return counts / max(found.size, 1)


@dataclass(frozen=True)
class Questions:
    """All histograms of one data set, in the order in which they make up a patient's vector."""

    asked: tuple[Question, ...]
    spacing_mm: tuple[float, ...] | None  # public where the reader makes it up; then it is not asked
    channels: tuple[str, ...]  # normalisation of each

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """Name -> w, with sum of squares 1: the joint L2 norm of a patient's vector is then at most 1."""
        total = sum(question.share for question in self.asked)
        return {question.name: math.sqrt(question.share / total) for question in self.asked}

    @property
    def size(self) -> int:
        return sum(len(question.centres) for question in self.asked)

    def answer(self, shape: Sequence[int], spacing_mm: Sequence[float], intensities: Sequence[Any], relative: float) -> np.ndarray:
        """One case's vector, float64 of shape (size,), norm at most 1; from nnU-Net's analysis of the case."""
        values: dict[str, Any] = {"relative_size": [relative]}
        for axis, (number, width) in enumerate(zip(shape, spacing_mm, strict=True)):
            values[f"spacing_{axis}"] = [width]
            values[f"extent_{axis}"] = [number * width]
        for channel, voxels in enumerate(intensities):
            bounds = np.percentile(voxels, [0.5, 99.5]) if len(voxels) else [np.nan, np.nan]
            values |= {f"low_{channel}": bounds[:1], f"high_{channel}": bounds[1:], f"voxels_{channel}": voxels}
        return np.concatenate([self._encoded(question, question.histogram(values[question.name])) for question in self.asked])

    def split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> its part of a vector, still weighted."""
        ends = np.cumsum([len(question.centres) for question in self.asked])
        return dict(zip(self.weights, np.split(vector, ends[:-1]), strict=True))

    def _encoded(self, question: Question, histogram: np.ndarray) -> np.ndarray:
        root = prefix_root(len(question.centres))
        return np.asarray(root @ histogram) * (self.weights[question.name] / question.column_norm)

    def cumulative(self, question: Question, part: np.ndarray) -> np.ndarray:
        """Noisy cumulative number of patients up to each bin, from the (summed) part of the vectors."""
        root = prefix_root(len(question.centres))
        return np.asarray(root @ part) * (question.column_norm / self.weights[question.name])

    def rank_noise(self, question: Question, noise: float) -> float:
        """Standard deviation of the last, noisiest number of `cumulative`, for this deviation on every coordinate."""
        return question.column_norm**2 / self.weights[question.name] * noise


def questions(dataset_json: Mapping[str, Any], reader: str) -> Questions:
    """What to ask of this data set: it depends on dataset.json and on the name of nnU-Net's reader alone.

    Shares: the spacings set the target spacing and, through it, everything else, and their 10th percentile is read too;
    one extent less so, because patch sizes are rounded to multiples of 8 or more; the mask is a majority vote of two bins.
    The bounds clip the image, mean and deviation only scale it.
    """
    spacing = stock.made_up_spacing(reader)
    channels = stock.normalisations(dataset_json)
    axes = [axis for axis in range(3) if spacing is None or axis > 0]
    asked = []
    if spacing is None:
        asked += [Question.about(f"spacing_{axis}", SPACINGS_MM, 3, 1.0, ratio=True) for axis in axes]
    asked += [Question.about(f"extent_{axis}", EXTENTS, 2, 128.0 if spacing is None else 512.0, ratio=True) for axis in axes]
    if any(stock.can_use_mask(name) for name in channels):
        asked.append(Question("relative_size", (0.5, 1.0), (MASK_SHARE,), 1, 1.0))
    for channel in (index for index, name in enumerate(channels) if name == stock.CT):
        asked += [Question.about(f"{name}_{channel}", HU, 2, CT_PRIOR[name]) for name in ("low", "high")]
        asked.append(Question.about(f"voxels_{channel}", HU, 1, CT_PRIOR["mean"]))
    return Questions(tuple(asked), spacing, tuple(channels))


@functools.cache
def prefix_root(bins: int) -> np.ndarray:
    """R, lower triangular of shape (bins, bins): R @ R has ones on and below the diagonal. Read only."""
    column = np.cumprod([1.0, *((2 * k - 1) / (2 * k) for k in range(1, bins))])
    lag = np.subtract.outer(np.arange(bins), np.arange(bins))
    root = np.where(lag >= 0, column[np.maximum(lag, 0)], 0.0)
    root.setflags(write=False)
    return root
