"""Shape and coding of nnU-Net's training patches, as plain data that any process can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

Region = int | tuple[int, ...]


@dataclass(frozen=True)
class PatchFormat:
    """What a network of a plan takes and is compared with.

    Attributes:
        size: voxels along each axis.
        spacing: of voxels, in mm (pixels for PNG).
        channels: of the image.
        labels: all but background and the ignore label.
        regions: in the order of the network's outputs; None where outputs are labels.
        scales: of the targets, one for each output under deep supervision; the first is 1 along each axis.
        ignore: whether there is an ignore label; it never occurs here, but takes a channel of the targets of regions.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: int
    labels: tuple[int, ...]
    regions: tuple[Region, ...] | None
    scales: tuple[tuple[float, ...], ...]
    ignore: bool = False

    def targets(self, labels: np.ndarray) -> list[torch.Tensor]:
        """Label map (*size) -> (1 or regions [+ 1], *scaled size) at each scale: int16, or bool for regions."""
        if self.regions is None:
            full = torch.from_numpy(labels.astype(np.int16))[None]
        else:
            ignored = [np.zeros(labels.shape, bool)] if self.ignore else []
            full = torch.from_numpy(np.stack([*(np.isin(labels, region) for region in self.regions), *ignored]))
        scaled: list[torch.Tensor] = DownsampleSegForDSTransform(self.scales)._apply_to_segmentation(full)
        return scaled


def patch_format(trainer: nnUNetTrainer) -> PatchFormat:
    """The format of a trainer that knows plan, configuration and labels."""
    settings, manager = trainer.configuration_manager, trainer.label_manager
    size = tuple(int(side) for side in settings.patch_size)
    regions = [_region(region) for region in manager.foreground_regions] if manager.has_regions else None
    return PatchFormat(
        size=size,
        spacing=tuple(float(step) for step in settings.spacing),
        channels=int(determine_num_input_channels(trainer.plans_manager, settings, trainer.dataset_json)),
        labels=tuple(int(label) for label in manager.all_labels if label != 0),
        regions=None if regions is None else tuple(regions),
        scales=tuple(tuple(map(float, scale)) for scale in trainer._get_deep_supervision_scales() or [[1.0] * len(size)]),
        ignore=bool(manager.has_ignore_label),
    )


def _region(region: int | Sequence[int]) -> Region:
    return int(region) if np.isscalar(region) else tuple(int(label) for label in region)  # type: ignore[union-attr, arg-type]
