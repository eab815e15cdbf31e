"""Generated patches: nnU-Net's format, labels where they belong, the same bits for the same seed and number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from workspace import CONFIGURATION, PLANS, Workspace, read

from nnunet_adpfl.nnunet_compat.patch_format import PatchFormat, patch_format
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer, build_loss, build_network, random_batch
from nnunet_adpfl.procedural import families
from nnunet_adpfl.procedural.fields import Space, smooth_noise
from nnunet_adpfl.procedural.generated_patches import FRESH, GeneratedPatches

FLAT = PatchFormat((48, 64), (1.0, 1.0), 3, (1, 2), None, ((1.0, 1.0), (0.5, 0.5)))
THIN = PatchFormat((6, 48, 40), (6.0, 0.8, 0.8), 2, (1, 2, 3), ((1, 2, 3), (2, 3), 3), ((1.0, 1.0, 1.0), (1.0, 0.5, 0.5)))
FORMATS = {"2d labels": FLAT, "thin 3d regions": THIN}


@pytest.mark.parametrize("patches", FORMATS.values(), ids=FORMATS)
def test_a_patch_has_the_format_of_the_plan(patches: PatchFormat) -> None:
    image, targets = GeneratedPatches(patches, 1, seed=3)[0]
    assert image.dtype == torch.float32
    assert tuple(image.shape) == (patches.channels, *patches.size)
    outputs = 1 if patches.regions is None else len(patches.regions)
    for target, scale in zip(targets, patches.scales, strict=True):
        assert target.dtype == (torch.int16 if patches.regions is None else torch.bool)
        assert tuple(target.shape) == (outputs, *(round(n * s) for n, s in zip(patches.size, scale, strict=True)))


def test_a_patch_is_a_function_of_seed_stream_and_number_alone() -> None:
    def image(number: int, seed: int = 5, stream: int = 0, count: int = 9) -> torch.Tensor:
        return GeneratedPatches(FLAT, count, seed, stream)[number][0]

    generated = GeneratedPatches(FLAT, 4, 5)
    in_turn = [generated[number][0] for number in range(3)]
    assert torch.equal(in_turn[2], image(2))
    assert not any(torch.equal(in_turn[2], other) for other in (image(1), image(2, seed=6), image(2, stream=FRESH)))


@pytest.mark.parametrize("patches", FORMATS.values(), ids=FORMATS)
def test_patches_are_normalised_and_mostly_show_labels(patches: PatchFormat) -> None:
    generated = GeneratedPatches(patches, 60, seed=1)
    empty, seen = 0, set()
    for number in range(60):
        image, labels = generated.image_and_labels(number)
        assert np.isfinite(image).all()
        assert abs(image.mean()) < 3
        assert 0.1 < image.std() < 4
        empty += not labels.any()
        seen |= set(np.unique(labels))
        assert (labels > 0).mean() < 0.95
    assert 1 <= empty <= 15
    assert seen == {0, *patches.labels}  # and never the ignore label, which no format lists


def test_regions_are_nested() -> None:
    generated = GeneratedPatches(THIN, 40, seed=2)
    for number in range(40):
        outer, middle, inner = generated[number][1][0]
        assert not (inner & ~middle).any()
        assert not (middle & ~outer).any()


def test_families_follow_the_regions() -> None:
    assert families.of_regions([(1, 2, 3), (2, 3), 3]) == [[[1], [2], [3]]]
    assert families.of_regions([(1, 2), 2, (4, 5)]) == [[[1], [2]], [[4, 5]]]  # two that have nothing in common
    assert families.of_regions([(1, 2, 3), 2, 3]) == [[[1], [2, 3]]]
    random = np.random.default_rng(0)
    for _ in range(50):
        found = families.of_labels(random, (1, 2, 3, 4, 5))
        assert [label for family in found for level in family for label in level] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("wavelength", [0.03, 0.1, 0.4, 2.0])
def test_smooth_noise_has_deviation_one_and_the_wavelength_asked_for(wavelength: float) -> None:
    space = Space.of((40, 90), (2.0, 1.0))
    random = np.random.default_rng(4)
    fields = np.stack([smooth_noise(random, space, wavelength) for _ in range(300)])
    assert fields.shape[1:] == space.shape
    assert fields.std(0).mean() == pytest.approx(1, abs=0.05)
    if wavelength == 0.4:  # apart by it, values have little to do with each other; closer, they have
        def alike(voxels: int) -> float:
            return float((fields[:, 20, 20] * fields[:, 20, 20 + voxels]).mean())

        step = 90 / space.extent[1]
        assert alike(round(0.1 * step)) > 0.7
        assert abs(alike(round(0.8 * step))) < 0.25


def test_bodies_are_as_round_as_they_are_in_mm() -> None:
    """The spacing counts: a thick slice has few voxels of a body, but the same length of it."""
    thick_slices = PatchFormat((12, 96, 96), (8.0, 1.0, 1.0), 1, (1,), None, ((1.0, 1.0, 1.0),))
    generated, sides = GeneratedPatches(thick_slices, 80, 7), []
    for number in range(80):
        _, labels = generated.image_and_labels(number)
        body, count = ndimage.label(labels)
        sides += [[slice_.stop - slice_.start for slice_ in box] for box in ndimage.find_objects(body)[:count]]
    thick, wide, high = np.mean(sides, axis=0)
    assert 0.6 < 8 * thick / np.sqrt(wide * high) < 1.7


@pytest.mark.parametrize("configuration", [CONFIGURATION, "2d"])
@pytest.mark.parametrize("labels", ["labels", "regions", "regions and ignore"])
def test_the_loss_of_nnunet_takes_them(configuration: str, labels: str, workspace: Workspace) -> None:
    dataset_json: dict[str, Any] = read(workspace.preprocessed / "dataset.json")
    if labels != "labels":
        dataset_json |= {"labels": {"background": 0, "ball": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    trainer = PlannedTrainer(read(workspace.preprocessed / f"{PLANS}.json"), configuration, dataset_json, torch.device("cpu"))
    if labels != "regions and ignore":
        like_image, like_targets = random_batch(trainer, 1, torch.Generator().manual_seed(0))
    else:
        dataset_json["labels"]["ignore"] = 3
        trainer.label_manager = trainer.plans_manager.get_label_manager(dataset_json)
    patches = patch_format(trainer)
    assert patches.labels == (1, 2)
    image, targets = GeneratedPatches(patches, 1, seed=0)[0]
    if labels != "regions and ignore":  # nnU-Net's transforms give the ignore label a channel, random_batch does not
        assert image[None].shape == like_image.shape
        assert [(t[None].shape, t.dtype) for t in targets] == [(t.shape, t.dtype) for t in like_targets]
    outputs = build_network(trainer, 0)(image[None])
    inner = build_loss(trainer).loss  # of one scale: deep supervision gives the one output of these tiny networks no weight
    assert bool(torch.isfinite(inner(outputs[0], targets[0][None])))
