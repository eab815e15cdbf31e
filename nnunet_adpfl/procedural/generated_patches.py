"""Labelled patches in the format of a plan: a function of the seed and their number alone, whichever process draws them."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_adpfl.nnunet_compat.patch_format import PatchFormat
from nnunet_adpfl.procedural import appearance, families, scenes
from nnunet_adpfl.procedural.fields import Space

Patch = tuple[torch.Tensor, list[torch.Tensor]]
TRAINING, FRESH, SUBSPACE = 0, 1, 2  # streams of patches that have none in common


class GeneratedPatches(Dataset[Patch]):
    """Patch ``number`` is image (channels, *size) float32, and its targets at each scale of deep supervision.

    Args:
        plan: size, channels and labels; nothing else is known of the data set.
        count: how many.
        seed: the same seed gives the same patches.
        stream: `TRAINING`, or `FRESH` ones to judge by.
    """

    def __init__(self, plan: PatchFormat, count: int, seed: int, stream: int = TRAINING) -> None:
        self._plan, self._count, self._key = plan, count, (seed, stream)
        self._space = Space.of(plan.size, plan.spacing)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Patch:
        image, labels = self.image_and_labels(number)
        return torch.from_numpy(image), self._plan.targets(labels)

    def image_and_labels(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (channels, *size) float32, label map (*size) int16."""
        random = np.random.default_rng([*self._key, number])
        plan = self._plan
        groups = families.of_labels(random, plan.labels) if plan.regions is None else families.of_regions(plan.regions)
        scene = scenes.draw(random, self._space, groups)
        image = appearance.paint(random, scene, plan.channels)
        return image, scene.labels
