"""What all made-up cohorts share: the folder that appears as a whole, the notice in it, and how units are dealt to sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_adpfl.dataset_conversion.atomic_folder import replacing_folder
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for
from nnunet_adpfl.errors import InputError

NOTICE_FILE = "SYNTHETIC.txt"  # says that a set in this layout was made up
UNITS_PER_SITE = 5  # at least: nnU-Net makes five folds
SMALLEST_SHARE = 0.4  # of an equal share; HAM10000's smallest site has 0.15


@dataclass(frozen=True)
class GeneratedSet:
    """What was written.

    Attributes:
        unit_kind: what was counted by --cases: ``lesion`` or ``patient``.
        units, images: site -> number of units, and of images or scans.
    """

    folder: Path
    unit_kind: str
    units: Mapping[str, int]
    images: Mapping[str, int]


def check_arguments(units: int, unit_kind: str, sites: int, heterogeneity: float, seed: int) -> None:
    """InputError, naming the option of ``adpfl synth``, for numbers out of range."""
    if sites < 1:
        raise InputError(f"--sites {sites}: give 1 or more")
    if units < UNITS_PER_SITE * sites:
        raise InputError(f"--cases {units} {unit_kind}s are too few for {sites} sites: give {UNITS_PER_SITE * sites} or more")
    if not 0 <= heterogeneity <= 1:
        raise InputError(f"--heterogeneity {heterogeneity} is out of range: give a number from 0 to 1")
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")


def check_size(size: tuple[int, ...], axes: int, smallest: int, largest: int) -> None:
    """InputError unless ``size`` has ``axes`` lengths within the limits (pixels or voxels)."""
    text = "x".join(map(str, size))
    if len(size) != axes:
        raise InputError(f"--size {text}: give {axes} lengths, one for each axis")
    if not all(smallest <= side <= largest for side in size):
        raise InputError(f"--size {text}: all sides must be {smallest} to {largest}")


@contextmanager
def new_set(out: Path, notice: str) -> Iterator[Path]:
    """Yield a folder to fill; on leaving without error it becomes ``out``, with ``notice`` in it.

    Raises InputError when ``out`` exists and is not empty. On any error ``out`` is left as it was.
    """
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: give a new folder")
    with replacing_folder(out) as folder:
        yield folder
        (folder / NOTICE_FILE).write_text(notice, encoding="utf-8")


def deal_units(names: list[str], weights: Mapping[str, float], seed: int) -> dict[str, str]:
    """Unit -> site, in random order: at least five units a site, the others as ``weights`` (site -> weight) say."""
    shares = np.maximum(_normalised(list(weights.values())), SMALLEST_SHARE / len(weights))
    spare = len(names) - UNITS_PER_SITE * len(weights)
    counts = [UNITS_PER_SITE + more for more in apportioned(spare, shares)]
    sites = np.repeat(list(weights), counts)
    order = generator_for(seed, "lesions").permutation(len(names))
    return {name: str(sites[at]) for name, at in zip(names, order, strict=True)}


def apportioned(total: int, weights: np.ndarray) -> list[int]:
    """``total`` in whole parts as near to ``weights`` as can be (largest remainders)."""
    exact = total * weights / weights.sum()
    parts = np.floor(exact).astype(int)
    parts[np.argsort(parts - exact, kind="stable")[: total - parts.sum()]] += 1
    return [int(part) for part in parts]


def _normalised(weights: list[float]) -> np.ndarray:
    values = np.array(weights, dtype=float)
    return values / values.sum()
