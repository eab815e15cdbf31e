"""Metrics against known answers, an independent package and their algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import surface_distance
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.boundary import surface_distances
from nnunet_adpfl.evaluation.metrics import Scores, dice, score_masks

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference package uses names that SciPy is going to remove


def random_blob(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A few random ellipsoids: smooth parts, corners, holes and touching diagonals."""
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), -1)
    mask = np.zeros(shape, bool)
    for _ in range(3):
        centre = [generator.uniform(0, size) for size in shape]
        radii = [generator.uniform(1, size / 2) for size in shape]
        mask ^= (((grid - centre) / radii) ** 2).sum(-1) < 1
    return mask | (generator.random(shape) < 0.02)


@pytest.mark.parametrize("shape", [(21, 17), (13, 11, 9)])
@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_the_independent_package(shape: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    spacing = tuple(generator.uniform(0.3, 4.0, len(shape)))
    truth, prediction = random_blob(generator, shape), random_blob(generator, shape)
    found = score_masks(truth, prediction, spacing, tolerance_mm=1.5)
    reference = surface_distance.compute_surface_distances(truth, prediction, spacing)
    areas = reference["surfel_areas_gt"].sum(), reference["surfel_areas_pred"].sum()
    directed = surface_distance.compute_average_surface_distance(reference)
    assert found.dice == pytest.approx(surface_distance.compute_dice_coefficient(truth, prediction), abs=1e-12)
    assert found.hd95_mm == pytest.approx(surface_distance.compute_robust_hausdorff(reference, 95), rel=1e-6)
    assert found.nsd == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(reference, 1.5), rel=1e-5)
    assert found.assd_mm == pytest.approx(np.dot(directed, areas) / sum(areas), rel=1e-5)


def test_two_single_voxels_apart_have_the_distance_of_their_spacing() -> None:
    truth, prediction = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    truth[1, 2, 2] = prediction[3, 2, 2] = True
    found = score_masks(truth, prediction, (2.5, 1.0, 1.0), tolerance_mm=1.0)
    assert found.hd95_mm == 5.0
    assert found.dice == 0.0
    assert 2.5 <= found.assd_mm <= 5.0
    assert found.nsd == 0.0


def test_shifted_squares_are_worked_out_on_paper() -> None:
    truth = np.zeros((8, 8), bool)
    truth[2:6, 2:6] = True
    prediction = np.zeros((8, 8), bool)
    prediction[2:6, 3:7] = True
    found = score_masks(truth, prediction, (1.0, 3.0), tolerance_mm=0.0)
    assert found.dice == 24 / 32
    assert found.hd95_mm == 3.0
    # of both boundaries the rows above and below overlap: 4 corners of each row, one of them a corner element
    corner = 0.5 * math.hypot(1, 3)
    total = 4 * corner + 6 * 3.0 + 6 * 1.0
    shared = 2 * (3 * 3.0 + corner)
    assert found.nsd == pytest.approx(shared / total)


@pytest.mark.parametrize(
    ("truth_filled", "prediction_filled", "expected"),
    [
        (False, False, Scores(1.0, 0.0, 0.0, 1.0)),
        (True, False, Scores(0.0, 10.0, 10.0, 0.0)),
        (False, True, Scores(0.0, 10.0, 10.0, 0.0)),
    ],
)
def test_empty_masks_have_declared_figures(truth_filled: bool, prediction_filled: bool, expected: Scores) -> None:
    truth, prediction = np.zeros((6, 4), bool), np.zeros((6, 4), bool)
    truth[2, 2] = truth_filled
    prediction[3, 1] = prediction_filled
    assert score_masks(truth, prediction, (1.0, 2.0), tolerance_mm=1.0) == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_counts_as_an_image(axis: int) -> None:
    generator = np.random.default_rng(3)
    truth, prediction = random_blob(generator, (15, 12)), random_blob(generator, (15, 12))
    spacing = [0.7, 1.2]
    volume_spacing = [*spacing[:axis], 999.0, *spacing[axis:]]
    as_volume = score_masks(np.expand_dims(truth, axis), np.expand_dims(prediction, axis), volume_spacing, 1.0)
    assert as_volume == score_masks(truth, prediction, spacing, 1.0)


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6))
steps = st.floats(0.1, 5.0)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    truth = draw(masks)
    return truth, draw(hnp.arrays(bool, truth.shape)), tuple(draw(steps) for _ in truth.shape)


@settings(max_examples=60, deadline=None)
@given(pairs(), st.floats(0, 5))
def test_metrics_are_symmetric_and_bounded(pair: tuple, tolerance: float) -> None:
    truth, prediction, spacing = pair
    forth, back = score_masks(truth, prediction, spacing, tolerance), score_masks(prediction, truth, spacing, tolerance)
    assert vars(forth) == pytest.approx(vars(back))
    assert 0 <= forth.dice <= 1
    assert 0 <= forth.nsd <= 1 + 1e-12
    diagonal = math.hypot(*(size * step for size, step in zip(truth.shape, spacing, strict=True)))
    assert 0 <= forth.assd_mm <= diagonal + 1e-9
    assert 0 <= forth.hd95_mm <= diagonal + 1e-9


@settings(max_examples=40, deadline=None)
@given(pairs(), st.integers(0, 3))
def test_moving_both_masks_changes_nothing(pair: tuple, shift: int) -> None:
    truth, prediction, spacing = pair
    assume(truth.any() and prediction.any())
    here = [np.pad(mask, ((0, shift), *[(0, 0)] * (mask.ndim - 1))) for mask in (truth, prediction)]
    there = [np.pad(mask, ((shift, 0), *[(0, 0)] * (mask.ndim - 1))) for mask in (truth, prediction)]
    assert score_masks(*here, spacing, 1.0) == score_masks(*there, spacing, 1.0)


@settings(max_examples=40, deadline=None)
@given(masks, st.floats(0.2, 4.0))
def test_a_perfect_prediction_has_perfect_figures_and_distances_scale_with_spacing(
    mask: np.ndarray, scale: float
) -> None:
    assume(mask.any())
    ones = (1.0,) * mask.ndim
    assert score_masks(mask, mask, ones, 0.0) == Scores(1.0, 0.0, 0.0, pytest.approx(1.0))
    other = np.roll(mask, 1, axis=0)
    small = surface_distances(mask, other, ones)
    large = surface_distances(mask, other, tuple(scale * step for step in ones))
    assert large.truth_to_prediction_mm == pytest.approx(scale * small.truth_to_prediction_mm)


def test_dice_of_empty_masks_is_one() -> None:
    empty = np.zeros((2, 2), bool)
    assert dice(empty, empty) == 1.0


@pytest.mark.parametrize(
    ("truth", "prediction", "spacing", "tolerance", "words"),
    [
        (np.zeros((2, 2), bool), np.zeros((2, 3), bool), (1, 1), 1, "must be equal"),
        (np.zeros((2, 2), int), np.zeros((2, 2), bool), (1, 1), 1, "boolean"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 1, 1), 1, "spacing per axis"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 0), 1, "above 0"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 1), -1, "tolerance_mm"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), (1, 1), math.nan, "tolerance_mm"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple, tolerance: float, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        score_masks(truth, prediction, spacing, tolerance)
