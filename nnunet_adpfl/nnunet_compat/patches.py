"""nnU-Net's own patch cropping and augmentation, of chosen cases and repeatable."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading import data_loader as stock_loader
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from threadpoolctl import ThreadpoolController

from nnunet_adpfl.nnunet_compat.training import Patches


@dataclass(frozen=True)
class PatchSettings:
    """Which patches of a unit, and how they are changed.

    Attributes:
        patches_per_unit: K, number of patches of one unit and step.
        oversample_foreground: probability of each patch to be centred on foreground, drawn for each patch alone.
        mirroring: whether patches are flipped; without it the trainer's ``inference_allowed_mirroring_axes`` are none, as in
            nnU-Net's own trainers without mirroring.
        augmentation: ``nnunet``, or ``none``: the rest of nnU-Net's augmentation is left out, as in its nnUNetTrainerNoDA.
    """

    patches_per_unit: int
    oversample_foreground: float
    mirroring: bool = True
    augmentation: str = "nnunet"


class PatchSource:
    """Crops and augments patches exactly as nnU-Net does, from chosen cases and a key instead of its own choice.

    Args:
        trainer: gives patch size, augmentation and label handling.
        folder: preprocessed cases of the configuration.
        settings: which patches, and how they are changed.
    """

    def __init__(self, trainer: nnUNetTrainer, folder: Path, settings: PatchSettings) -> None:
        planned = trainer.configuration_manager
        rotation, dummy_2d, initial_size, mirror_axes = (
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not settings.mirroring:
            mirror_axes = trainer.inference_allowed_mirroring_axes = None
        if settings.augmentation == "none":
            initial_size = planned.patch_size
            transforms = _unaugmented(trainer, mirror_axes)
        else:
            transforms = trainer.get_training_transforms(
                planned.patch_size,
                rotation,
                trainer._get_deep_supervision_scales(),
                mirror_axes,
                dummy_2d,
                use_mask_for_norm=planned.use_mask_for_norm,
                is_cascaded=False,
                **_label_arguments(trainer),
            )
        _switch_off_benchmarks(transforms)
        self.units_at_once = max(1, planned.batch_size // settings.patches_per_unit)  # that the fused engine takes in one batch
        dataset = infer_dataset_class(str(folder))(str(folder))
        self._loader = _ChosenCasesLoader(
            _OneCaseCache(dataset),
            settings.patches_per_unit,
            initial_size,
            planned.patch_size,
            trainer.label_manager,
            oversample_foreground_percent=settings.oversample_foreground,
            probabilistic_oversampling=True,
            transforms=transforms,
        )

    @property
    def cases(self) -> set[str]:
        return set(self._loader.indices)

    def patches(self, cases: Sequence[str], key: bytes) -> Patches:
        """K patches spread over a unit's cases: a function of the cases and the key alone.

        Returns:
            data (K, channels, *patch size) float32, and the segmentation or a list of it for deep supervision.
        """
        with _seeded(key):
            turns = -(-self._loader.batch_size // len(cases))
            order = np.random.permutation(len(cases)).tolist() * turns
            self._loader.chosen = sorted(cases[index] for index in order[: self._loader.batch_size])
            batch = self._loader.generate_train_batch()
        return batch["data"], batch["target"]


class _ChosenCasesLoader(nnUNetDataLoader):
    chosen: Sequence[str] = ()

    def get_indices(self) -> Sequence[str]:
        return self.chosen

    def generate_train_batch(self) -> dict[str, Any]:
        """nnU-Net limits all thread pools for every batch, and looks them up anew (5 ms, more than a small patch takes)."""
        looked_up = stock_loader.threadpool_limits
        stock_loader.threadpool_limits = _thread_pools().limit
        try:
            batch: dict[str, Any] = super().generate_train_batch()
        finally:
            stock_loader.threadpool_limits = looked_up
        return batch


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """Thread pools of the libraries in this process, looked up at the first patch, when all of them are loaded."""
    return ThreadpoolController()


class _OneCaseCache:
    """Keeps the case read last, so that K patches of one case read it once."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.identifiers = dataset.identifiers
        self._last: tuple[str, Any] | None = None

    def load_case(self, identifier: str) -> Any:
        if self._last is None or self._last[0] != identifier:
            self._last = (identifier, self._dataset.load_case(identifier))
        return self._last[1]

    def __len__(self) -> int:
        return len(self.identifiers)


def _label_arguments(trainer: nnUNetTrainer) -> dict[str, Any]:
    labels = trainer.label_manager
    return {
        "foreground_labels": labels.foreground_labels,
        "regions": labels.foreground_regions if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
    }


def _unaugmented(trainer: nnUNetTrainer, mirror_axes: tuple[int, ...] | None) -> ComposeTransforms:
    """What nnU-Net does to validation patches, after flips where these are wanted."""
    scales = trainer._get_deep_supervision_scales()
    plain = trainer.get_validation_transforms(scales, is_cascaded=False, **_label_arguments(trainer))
    flips = [MirrorTransform(allowed_axes=mirror_axes)] if mirror_axes else []
    return ComposeTransforms([*flips, *plain.transforms])


def _switch_off_benchmarks(transforms: Any) -> None:
    """The blur transform times two methods and keeps the faster one, which would make patches irreproducible."""
    for transform in transforms.transforms:
        inner = getattr(transform, "transform", transform)
        if hasattr(inner, "benchmark"):
            inner.benchmark = False


@contextmanager
def _seeded(key: bytes) -> Iterator[None]:
    """All generators that nnU-Net's augmentation draws from, seeded by the key and restored afterwards."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(key)
    np.random.seed(np.frombuffer(key, dtype=np.uint32))
    torch.random.default_generator.manual_seed(int.from_bytes(key[:8], "little") >> 1)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
