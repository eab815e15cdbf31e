"""The pooled fingerprint: what each site tells about its images so that one plan fits all, and what is made of it.

A site sends one histogram of foreground intensities per channel, and one joint histogram of spacing, shape and relative
size after cropping: sums over its cases, in which no case is named or listed. It is not noisy, so the guarantee of a run
then holds *given the plan*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_adpfl.errors import InputError

MOST_BINS = 2**20
Geometry = tuple[tuple[float, ...], tuple[int, ...], float]  # spacing_mm, shape after cropping, relative size


@dataclass(frozen=True)
class IntensityHistogram:
    """Foreground intensities of one channel. Merging is exact: any order and grouping of sites gives the same histogram.

    Every distinct float32 value is a bin, until there are more than ``MOST_BINS``: then the last bits of the values are
    dropped, as few as needed. (Bins of a coarser histogram are unions of finer ones, hence the exact merge.)

    Attributes:
        keys: sorted distinct bins; unsigned integers that are ordered as the float32 values are.
        counts: number of voxels in each.
        dropped_bits: last bits of each value that the bins do not tell apart.
        low, high: smallest and largest value.
    """

    keys: np.ndarray
    counts: np.ndarray
    dropped_bits: int = 0
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, intensities: np.ndarray | Sequence[float]) -> IntensityHistogram:
        """Histogram of finite values; none at all is fine (a case without foreground)."""
        values = np.asarray(intensities, dtype=np.float32)
        if not values.size:
            return cls(np.empty(0, np.uint32), np.empty(0, np.int64))
        keys, counts = np.unique(_keys(values), return_counts=True)
        return _limited(cls(keys, counts.astype(np.int64), 0, float(values.min()), float(values.max())))

    def merge(self, other: IntensityHistogram) -> IntensityHistogram:
        """Histogram of both together."""
        keys, counts = np.concatenate([self.keys, other.keys]), np.concatenate([self.counts, other.counts])
        order = np.argsort(keys, kind="stable")
        bits, low, high = max(self.dropped_bits, other.dropped_bits), min(self.low, other.low), max(self.high, other.high)
        return _limited(IntensityHistogram(*_without_bits(keys[order], counts[order], bits), bits, low, high))

    def properties(self) -> dict[str, float]:
        """nnU-Net's foreground_intensity_properties_per_channel of this channel.

        Exact, except that with dropped bits a value counts as the middle of its bin (minimum and maximum stay exact).
        """
        if not self.keys.size:
            raise InputError("no case has any foreground: nnU-Net cannot plan for this data set; check the labels")
        values, number = self._values(), int(self.counts.sum())
        mean = float((values * self.counts).sum() / number)
        variance = float((self.counts * (values - mean) ** 2).sum() / number)
        low, median, high = (_percentile(values, np.cumsum(self.counts), share) for share in (0.5, 50.0, 99.5))
        return {
            "max": self.high,
            "mean": mean,
            "median": median,
            "min": self.low,
            "percentile_00_5": low,
            "percentile_99_5": high,
            "std": math.sqrt(variance),
        }

    def _values(self) -> np.ndarray:
        middle = np.uint32(1 << (self.dropped_bits - 1) if self.dropped_bits else 0)
        return np.clip(_values_of(self.keys + middle), self.low, self.high)


@dataclass(frozen=True)
class SiteFingerprint:
    """What one case, one site, or several merged sites tell.

    Attributes:
        channels: foreground intensities of each channel.
        geometries: (spacing_mm, shape after cropping, relative size) -> number of cases.
    """

    channels: tuple[IntensityHistogram, ...]
    geometries: Mapping[Geometry, int]


def of_case(shape: Sequence[int], spacing_mm: Sequence[float], intensities: Iterable[Any], relative: float) -> SiteFingerprint:
    """Fingerprint of a single case, from nnU-Net's analysis of it; it is merged before anything leaves the site."""
    geometry = (tuple(float(value) for value in spacing_mm), tuple(int(value) for value in shape), float(relative))
    return SiteFingerprint(tuple(IntensityHistogram.of(values) for values in intensities), {geometry: 1})


def merge(fingerprints: Iterable[SiteFingerprint]) -> SiteFingerprint:
    """Fingerprint of all together, whatever their order and grouping.

    Raises InputError when there is none, or the numbers of channels differ.
    """
    channels: tuple[IntensityHistogram, ...] | None = None
    geometries: Counter[Geometry] = Counter()
    for one in fingerprints:
        if channels is not None and len(one.channels) != len(channels):
            raise InputError("the sites' images have different numbers of channels; convert them alike")
        channels = one.channels if channels is None else tuple(a.merge(b) for a, b in zip(channels, one.channels, strict=True))
        geometries.update(one.geometries)
    if channels is None:
        raise InputError("there is no case to make a fingerprint of")
    return SiteFingerprint(channels, dict(sorted(geometries.items())))


def as_nnunet_fingerprint(merged: SiteFingerprint) -> dict[str, Any]:
    """nnU-Net's fingerprint, JSON-ready, with a case list synthesised from the joint histogram in sorted order."""
    listed = sorted(Counter(merged.geometries).elements())
    return {
        "foreground_intensity_properties_per_channel": {
            str(index): channel.properties() for index, channel in enumerate(merged.channels)
        },
        "median_relative_size_after_cropping": float(np.median([relative for _, _, relative in listed])),
        "shapes_after_crop": [list(shape) for _, shape, _ in listed],
        "spacings": [list(spacing) for spacing, _, _ in listed],
    }


_SIGN = np.uint32(0x80000000)


def _keys(values: np.ndarray) -> np.ndarray:
    """float32 -> uint32 of the same order (sign bit flipped; all bits for negative values)."""
    bits = (values + np.float32(0)).view(np.uint32)  # + 0: one key for both zeros
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint32)


def _values_of(keys: np.ndarray) -> np.ndarray:
    bits = np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32)
    return bits.view(np.float32).astype(np.float64)


def _without_bits(keys: np.ndarray, counts: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted bins joined where they agree in all but the last ``bits`` bits."""
    if not keys.size:
        return keys, counts
    kept = (keys >> np.uint32(bits)) << np.uint32(bits)
    first = np.flatnonzero(np.concatenate([[True], kept[1:] != kept[:-1]]))
    return kept[first], np.add.reduceat(counts, first)


def _limited(histogram: IntensityHistogram) -> IntensityHistogram:
    keys, counts, bits = histogram.keys, histogram.counts, histogram.dropped_bits
    while len(keys) > MOST_BINS:
        bits += 1
        keys, counts = _without_bits(keys, counts, bits)
    return IntensityHistogram(keys, counts, bits, histogram.low, histogram.high)


def _percentile(ordered: np.ndarray, upper: np.ndarray, percent: float) -> float:
    """np.percentile (linear interpolation) of the list that the histogram stands for."""
    position = percent / 100 * (int(upper[-1]) - 1)
    below, above = math.floor(position), math.ceil(position)
    first = float(ordered[np.searchsorted(upper, below, side="right")])
    second = float(ordered[np.searchsorted(upper, above, side="right")])
    return first + (second - first) * (position - below)
