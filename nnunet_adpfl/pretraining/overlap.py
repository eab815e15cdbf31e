"""Dice of hard predictions on patches, for each label or region."""

from __future__ import annotations

import torch

from nnunet_adpfl.nnunet_compat.patch_format import PatchFormat


class HardDice:
    """Gathers the Dice of every label (or region) in every patch that shows it."""

    def __init__(self, patches: PatchFormat) -> None:
        self._labels = patches.labels if patches.regions is None else None
        self._found: list[float] = []

    def add(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Logits (patches, outputs, *size); target (patches, 1 or regions, *size) of the same scale."""
        if self._labels is None:
            found, truth = logits > 0, target[:, : logits.shape[1]] > 0  # without the channel of an ignore label
        else:
            labels = torch.tensor(self._labels, device=target.device).reshape(1, -1, *[1] * (target.ndim - 2))
            found, truth = logits.argmax(1, keepdim=True) == labels, target == labels
        both = 2 * (found & truth).flatten(2).sum(2)
        shown = truth.flatten(2).sum(2)
        dice = both / (found.flatten(2).sum(2) + shown).clamp(min=1)
        self._found += dice[shown > 0].tolist()

    def mean(self) -> float | None:
        return sum(self._found) / len(self._found) if self._found else None
