"""Randomness that repeats itself. For tests only: the package has nothing like it, so that no real run can use it."""

from __future__ import annotations

import hashlib

import numpy as np


class InjectedRandomness:
    """Draws, noise and patch keys are functions of (seed, site, step): an interrupted run can be compared with a whole one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draws(self, site: str, step: int) -> np.random.Generator:
        return self._generator("draws", site, step)

    def noise(self, site: str, step: int) -> np.random.Generator:
        return self._generator("noise", site, step)

    def patch_key(self, site: str, step: int, unit: str) -> bytes:
        return hashlib.sha256(f"{self._seed}|{site}|{step}|{unit}".encode()).digest()

    def _generator(self, purpose: str, site: str, step: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed}|{purpose}|{site}|{step}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))
