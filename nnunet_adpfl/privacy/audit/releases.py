"""Many releases of one clipped sum through the shipped mechanism, as the white-box adversary sees them.

The adversary knows the sum of the others and what the canary adds. Of every released tensor it keeps the projection on
the canary's change (the centred count is one more component), and the squares and products of the noise for the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from nnunet_adpfl.privacy.audit.bounds import Sample
from nnunet_adpfl.privacy.audit.canary import Difference
from nnunet_adpfl.privacy.clipping import gradient_noise_multiplier
from nnunet_adpfl.privacy.gradients.interface import ClippedSum
from nnunet_adpfl.privacy.mechanism import Mechanism, Permit
from nnunet_adpfl.privacy.noise import Randomness

COUNT = "centred count"


@dataclass(frozen=True)
class ClaimedNoise:
    """What the mechanism's event says about the noise of one step.

    Attributes:
        joint: z, the noise multiplier in the ledger.
        gradient: standard deviation of the noise on the clipped sum.
        count: that on the centred count; None where no count is released.
    """

    joint: float
    gradient: float
    count: float | None

    @classmethod
    def of(cls, mechanism: Mechanism, noise_multiplier: float) -> ClaimedNoise:
        clipping = mechanism.plan.clipping
        if clipping.method != "percentile":
            return cls(noise_multiplier, noise_multiplier, None)
        count = clipping.count_noise_ratio * noise_multiplier
        return cls(noise_multiplier, gradient_noise_multiplier(noise_multiplier, count), count)

    def sensitivity(self, change: Difference) -> float:
        """Joint sensitivity: z times the distance of both worlds in standard deviations. The claim is that it is <= 1."""
        count = abs(change.count) / self.count if self.count else 0.0
        return self.joint * math.hypot(change.norm / self.gradient, count)


@dataclass
class Arm:
    """Releases of one world.

    Attributes:
        projections: <release - sum of the others, canary's direction> of each component, (releases, components).
        squares: sum over the releases of the squared noise over its claimed variance, (components,).
        products: sums of products of unit noise, of neighbouring tensors and of consecutive releases; standard normal
            once divided by the square root of their ``numbers`` of terms.
    """

    projections: Sample
    squares: Sample
    products: Sample
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Observer:
    """The adversary's knowledge, and what it does with a release.

    Args:
        mechanism: the shipped one.
        site: whose divisor the mechanism uses.
        without: clipped sum of the others.
        change: what the canary adds.
        noise_multiplier: z of the ledger's event, which the permit of each release carries.
    """

    mechanism: Mechanism
    site: str
    without: ClippedSum
    change: Difference
    noise_multiplier: float

    @property
    def claimed(self) -> ClaimedNoise:
        return ClaimedNoise.of(self.mechanism, self.noise_multiplier)

    @property
    def sizes(self) -> dict[str, int]:
        """Component -> number of noisy coordinates."""
        sizes = {name: part.numel() for name, part in self.without.total.items()}
        return sizes | ({COUNT: 1} if self.claimed.count else {})

    @property
    def shifts(self) -> Sample:
        """How far the canary moves the projection of each component, (components,)."""
        norms = [float(torch.linalg.vector_norm(part)) for part in self.change.gradient.values()]
        return np.array(norms + ([abs(self.change.count)] if self.claimed.count else []))

    def watch(self, with_canary: bool, releases: int, randomness: Randomness) -> Arm:
        """Release the same sum many times, each with noise of its own, and keep what the adversary needs."""
        total = {name: part.clone() for name, part in self.without.total.items()}
        for name, part in total.items() if with_canary else ():
            part += self.change.gradient[name].to(part.dtype)
        count = self.without.centred_count + (self.change.count if with_canary else 0.0)
        known, origin = _flat(total), _flat(self.without.total)
        reader = _Reader(self, known - origin, count - self.without.centred_count)
        first = releases if with_canary else 0  # every release is a step of its own, with noise of its own
        for index in range(first, first + releases):
            summed = ClippedSum({name: part.clone() for name, part in total.items()}, count)
            permit = Permit({index: self.noise_multiplier})
            update = self.mechanism.release(summed, permit, self.site, index, randomness)
            reader.read(_flat(update.gradient) * self.mechanism.expected_units(self.site) - origin, update.noisy_count)
        return reader.arm()


class _Reader:
    """Takes releases apart; ``moved`` is what this world's sum has above that of the others, so the rest is noise."""

    def __init__(self, observer: Observer, moved: Sample, moved_count: float) -> None:
        self._claimed, self._moved, self._moved_count = observer.claimed, moved, moved_count
        self._origin_count = observer.without.centred_count
        sizes = [part.numel() for part in observer.without.total.values()]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        norms = np.maximum(observer.shifts[: len(sizes)], 1e-300)
        self._direction = _flat(observer.change.gradient) / np.repeat(norms, sizes)
        self._count_sign = math.copysign(1.0, observer.change.count)
        self._pairs = _neighbours(self._starts, sizes)
        self._rows: list[Sample] = []
        self._squares = np.zeros(len(sizes) + (1 if self._claimed.count else 0))
        self._products = np.zeros(2)
        self._previous: Sample | None = None

    def read(self, above: Sample, noisy_count: float | None) -> None:
        """``above``: released sum less the sum of the others, (parameters,)."""
        noise = (above - self._moved) / self._claimed.gradient
        row = np.add.reduceat(above * self._direction, self._starts)
        squares = np.add.reduceat(noise * noise, self._starts)
        if self._claimed.count and noisy_count is not None:
            count = noisy_count - self._origin_count
            row = np.append(row, count * self._count_sign)
            squares = np.append(squares, ((count - self._moved_count) / self._claimed.count) ** 2)
        self._rows.append(row)
        self._squares += squares
        self._products[0] += noise[self._pairs[0]] @ noise[self._pairs[1]]
        if self._previous is not None:
            self._products[1] += noise @ self._previous
        self._previous = noise

    def arm(self) -> Arm:
        number = len(self._rows)
        numbers = np.array([number * len(self._pairs[0]), max(1, number - 1) * len(self._moved)])
        return Arm(np.array(self._rows), self._squares, self._products, numbers)


def noise_tests(observer: Observer, arms: tuple[Arm, Arm]) -> dict[str, tuple[float, float]]:
    """Component -> (measured deviation / claimed deviation, p value of "at least the claimed variance"), by chi square.

    All coordinates of a tensor are in it, so 1 % less noise is seen where a random direction sees nothing.
    """
    squares, releases = arms[0].squares + arms[1].squares, len(arms[0].projections) + len(arms[1].projections)
    found = {}
    for (name, size), total in zip(observer.sizes.items(), squares, strict=True):
        degrees = size * releases
        found[name] = (math.sqrt(float(total) / degrees), float(stats.chi2.cdf(float(total), degrees)))
    return found


def shift_tests(observer: Observer, arms: tuple[Arm, Arm]) -> dict[str, tuple[float, float]]:
    """Component -> (measured shift between the worlds, p value of "not above what the clipped sums differ by")."""
    out, inside = arms[0].projections, arms[1].projections
    shifts = inside.mean(axis=0) - out.mean(axis=0)
    errors = np.sqrt(out.var(axis=0, ddof=1) / len(out) + inside.var(axis=0, ddof=1) / len(inside))
    scores = (shifts - observer.shifts) / np.maximum(errors, 1e-6)  # rounding, where there is no noise at all
    return {
        name: (float(shift), float(stats.norm.sf(score)))
        for name, shift, score in zip(observer.sizes, shifts, scores, strict=True)
    }


def independence_tests(arms: tuple[Arm, Arm]) -> dict[str, float]:
    """p values of "the noise of neighbouring tensors, and of consecutive releases, is uncorrelated", two-sided."""
    scores = (arms[0].products + arms[1].products) / np.sqrt(arms[0].numbers + arms[1].numbers)
    names = ("neighbouring tensors", "consecutive releases")
    return {name: float(2 * stats.norm.sf(abs(score))) for name, score in zip(names, scores, strict=True)}


def statistics(observer: Observer, out: Sample, inside: Sample) -> tuple[Sample, Sample]:
    """The adversary's statistic in both worlds: the log-likelihood ratio of the joint Gaussian, up to a linear map.

    Components are weighted by shift / variance, with the variances *measured on the first half* (the half that the
    threshold is chosen on), so that a component with less noise than claimed is found and used. Scaled such that the
    claim means deviation 1 and shift 1/z.
    """
    shifts = observer.shifts
    halves = out[: len(out) // 2], inside[: len(inside) // 2] - shifts
    variances = np.maximum((np.mean(halves[0] ** 2, axis=0) + np.mean(halves[1] ** 2, axis=0)) / 2, 1e-30)
    claimed = observer.claimed
    deviations = np.full(len(shifts), claimed.gradient)
    if claimed.count:
        deviations[-1] = claimed.count
    weights = shifts / variances
    weights /= math.sqrt(float(((weights * deviations) ** 2).sum()))
    return out @ weights, inside @ weights


def with_noise_scaled(arm: Arm, shifts: Sample, factor: float) -> Sample:
    """The arm's projections if its mechanism had this share of the noise: the same releases, shrunk around their mean."""
    return np.asarray(shifts + factor * (arm.projections - shifts))


def _flat(tensors: Mapping[str, torch.Tensor]) -> Sample:
    flat: Sample = torch.cat([part.detach().reshape(-1) for part in tensors.values()]).cpu().numpy().astype(np.float64)
    return flat


def _neighbours(starts: npt.NDArray[np.int64], sizes: list[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Index of coordinate i of every tensor, and of coordinate i of the tensor after it."""
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for index in range(len(sizes) - 1):
        common = np.arange(min(sizes[index], sizes[index + 1]))
        first.append(starts[index] + common)
        second.append(starts[index + 1] + common)
    return np.concatenate(first), np.concatenate(second)
