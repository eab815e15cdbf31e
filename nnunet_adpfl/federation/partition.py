"""Simulated sites for a data set that has none: equal, of different sizes, or with different kinds of patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_adpfl.errors import InputError

KINDS = ("equal", "quantity", "dirichlet")
SMALLEST_SITE = 2  # one unit to train, one to validate
CATEGORIES = 5
_CONCENTRATIONS = (1e-3, 1e6)


@dataclass(frozen=True)
class Skew:
    """How the sites differ: ``kind`` of KINDS; the smaller the ``concentration``, the more they do."""

    kind: str
    concentration: float = math.inf

    @property
    def needs_foreground(self) -> bool:
        """True where the labels have to be read."""
        return self.kind == "dirichlet"


def parse_skew(text: str) -> Skew:
    """``equal``, ``quantity:A`` or ``dirichlet:A`` with A between 0.001 and 1,000,000; InputError otherwise."""
    kind, colon, number = text.partition(":")
    if text == "equal":
        return Skew("equal")
    if kind not in KINDS or kind == "equal" or not colon:
        raise InputError(f"--skew {text!r} is unknown; use equal, quantity:A or dirichlet:A, for example dirichlet:0.5")
    try:
        concentration = float(number)
    except ValueError:
        concentration = math.nan
    if not _CONCENTRATIONS[0] <= concentration <= _CONCENTRATIONS[1]:
        raise InputError(f"--skew {text!r}: A must be a number from 0.001 to 1000000, for example {kind}:0.5")
    return Skew(kind, concentration)


def simulate_sites(
    units: Sequence[str], n_sites: int, skew: Skew, seed: int, foreground: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Give every unit to one of ``n_sites`` sites, each of which gets at least two units.

    ``equal``: numbers of units differ by at most one. ``quantity``: the sites' shares of all units are drawn from a
    symmetric Dirichlet distribution. ``dirichlet``: units are put into up to five categories by their foreground (equal
    numbers in each, where values differ), and each category's shares are drawn so.

    Args:
        units: units without repetition; their order does not matter.
        seed: the same seed gives the same sites.
        foreground: unit -> amount of foreground; needed for ``dirichlet``.

    Returns unit -> site (``site-1``, ``site-2``, ...). Raises InputError for too many sites.
    """
    if n_sites < 1:
        raise InputError(f"--simulate-sites {n_sites} must be 1 or more")
    if len(units) < SMALLEST_SITE * n_sites:
        raise InputError(
            f"--simulate-sites {n_sites} needs at least {SMALLEST_SITE * n_sites} units, two for each site; the data set has "
            f"{len(units)}: ask for fewer sites"
        )
    generator = np.random.default_rng(seed)
    shuffled = [str(unit) for unit in generator.permutation(sorted(units))]
    sites: list[list[str]] = [[] for _ in range(n_sites)]
    for category in _categories(shuffled, foreground) if skew.needs_foreground else [shuffled]:
        if skew.kind == "equal":
            shares = np.full(n_sites, 1 / n_sites)
        else:
            shares = generator.dirichlet(np.full(n_sites, skew.concentration))
        ends = np.cumsum(_whole_numbers(shares, len(category)))
        for site, start, end in zip(sites, [0, *ends], ends, strict=False):
            site.extend(category[start:end])
    _fill_up(sites)
    width = len(str(n_sites))
    return {unit: f"site-{number:0{width}d}" for number, site in enumerate(sites, start=1) for unit in site}


def _categories(units: Sequence[str], foreground: Mapping[str, float] | None) -> list[list[str]]:
    """Units by quantile of their foreground; equal values are never told apart."""
    if foreground is None:
        raise InputError("--skew dirichlet needs the amount of foreground of every unit")
    values = np.array([foreground[unit] for unit in units])
    edges = np.quantile(values, np.arange(1, CATEGORIES) / CATEGORIES)
    category = np.searchsorted(edges, values, side="right")
    return [[unit for unit, found in zip(units, category, strict=True) if found == each] for each in range(CATEGORIES)]


def _whole_numbers(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to ``total``, nearest to the shares (largest remainders)."""
    exact = shares * total
    numbers = np.floor(exact).astype(int)
    order = np.argsort(numbers - exact, kind="stable")
    numbers[order[: total - numbers.sum()]] += 1
    return numbers


def _fill_up(sites: list[list[str]]) -> None:
    """Move units from the largest site to those with too few."""
    for site in sites:
        while len(site) < SMALLEST_SITE:
            site.append(max(sites, key=len).pop())
