"""The declared noise schedule: which noise multiplier each step has, fixed before the run starts."""

from __future__ import annotations

from dataclasses import dataclass

# Noise multipliers are rounded so that equal levels are equal as numbers; upwards, which only adds noise.
_DECIMALS = 6


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise in plateaus of equal length, falling geometrically from 1 to ``final_ratio`` times the base.

    Attributes:
        steps: number of steps of the whole training.
        plateaus: number of distinct noise levels, 1 for constant noise.
        final_ratio: last level divided by the first.
    """

    steps: int
    plateaus: int = 1
    final_ratio: float = 1.0

    def ratio_at(self, step: int) -> float:
        """Noise of a step (0-based) relative to the base noise multiplier; steps past the end have the last level."""
        if self.plateaus == 1:
            return 1.0
        plateau = min(step * self.plateaus // self.steps, self.plateaus - 1)
        return self.final_ratio ** (plateau / (self.plateaus - 1))

    def noise_multiplier_at(self, step: int, base: float) -> float:
        return rounded_up(base * self.ratio_at(step))

    def levels(self, base: float, first: int = 0, count: int | None = None) -> list[tuple[float, int]]:
        """(noise multiplier, number of steps) of ``count`` steps from ``first`` on, in order."""
        levels: list[tuple[float, int]] = []
        for step in range(first, first + (self.steps if count is None else count)):
            level = self.noise_multiplier_at(step, base)
            if levels and levels[-1][0] == level:
                levels[-1] = (level, levels[-1][1] + 1)
            else:
                levels.append((level, 1))
        return levels


def rounded_up(noise_multiplier: float) -> float:
    """To as many decimals as a ledger line holds."""
    return round(noise_multiplier + 0.5 * 10**-_DECIMALS, _DECIMALS)
