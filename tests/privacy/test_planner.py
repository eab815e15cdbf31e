"""The rules by which a privacy plan configures itself, as known answers and properties."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import accounting, planner, signal
from nnunet_adpfl.privacy.choices import CHOSEN, Request, default_delta
from nnunet_adpfl.privacy.planned_images import PlannedImages, planned_images
from nnunet_adpfl.privacy.planner import plan_training

FEW = (77, 24, 16)


@pytest.fixture(autouse=True, scope="module")
def remembered_noise() -> Any:
    """Equal calibrations once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        known = functools.cache(lambda *key, rough: signal.noise_for(*key[:4], list(map(dict, key[4])), rough=rough))

        def remembering(rate: float, steps: int, epsilon: float, delta: float, spent: Any = (), *, rough: bool = False) -> float:
            return known(rate, steps, epsilon, delta, tuple(tuple(event.items()) for event in spent), rough=rough)

        monkeypatch.setattr(planner, "noise_for", remembering)
        yield


def request(units: tuple[int, ...] = FEW, epsilon: float = 8.0, **fixed: Any) -> Request:
    return Request(units, epsilon, default_delta(sum(units)), **fixed)


def values(asked: Request) -> dict[str, Any]:
    return {name: choice.value for name, choice in plan_training(asked).items()}


def patches(chosen: dict[str, Any], asked: Request) -> float:
    return float(chosen["patches_per_unit"] * chosen["sampling_rate"] * chosen["steps"] * asked.total_units)


def exact_noise(chosen: dict[str, Any], asked: Request) -> float:
    return signal.noise_for(chosen["sampling_rate"], chosen["steps"] + chosen["reserve_steps"], asked.epsilon, asked.delta)


def test_momentum_takes_from_the_learning_rate_what_it_adds_to_the_noise() -> None:
    fixed = {"sampling_rate": 0.25, "steps": 200}
    plain, heavy = (values(request(**fixed, momentum=momentum))["optimizer.learning_rate"] for momentum in (0.0, 0.9))
    assert heavy == pytest.approx(plain / 10, rel=0.1)  # rounded down to two digits


def test_noise_is_that_of_an_independent_computation() -> None:
    """q = 0.25, T = 500, epsilon 8, delta 1/3000, by privacy loss distributions and by Renyi DP."""
    assert signal.noise_for(0.25, 500, 8.0, 1 / 3000) == pytest.approx(2.95, rel=0.005)
    assert signal.noise_for(0.25, 500, 8.0, 1 / 3000, rough=True) == pytest.approx(3.18, rel=0.005)


def test_signal_is_that_of_an_independent_computation() -> None:
    """By Renyi DP, A is about 545 for N = 300 at epsilon 8 where z is well above 2; q = 0.1 over 100 steps loses 38 % of q = 1."""
    found = {
        (rate, steps): signal.accumulated_signal(rate, 300, steps, signal.noise_for(rate, steps, 8.0, 0.1 / 300, rough=True))
        for rate, steps in ((1.0, 100), (1.0, 500), (0.25, 500), (0.1, 100))
    }
    assert found[1.0, 500] == pytest.approx(545, rel=0.02)
    assert found[0.25, 500] == pytest.approx(545, rel=0.04)
    assert 1 - found[0.1, 100] / found[1.0, 100] == pytest.approx(0.38, abs=0.02)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_rough_noise_is_a_little_too_high(rate: float, epsilon: float) -> None:
    ratio = signal.noise_for(rate, 110, epsilon, 1e-4, rough=True) / signal.noise_for(rate, 110, epsilon, 1e-4)
    assert 1.03 < ratio < 1.15


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.sampled_from(["declared", "equal", "precision"]))
@settings(deadline=None, max_examples=20)
def test_effective_units_give_the_noise_of_the_average(units: list[int], weighting: str) -> None:
    parts = {"declared": np.array(units), "equal": np.ones(len(units)), "precision": np.array(units) ** 2}[weighting]
    shares = parts / parts.sum()
    deviation = math.sqrt(((shares / np.array(units)) ** 2).sum())
    assert signal.effective_units(units, weighting) == pytest.approx(1 / deviation)
    if len(set(units)) == 1 or weighting == "declared":
        assert signal.effective_units(units, weighting) == pytest.approx(sum(units) / math.sqrt(len(units)))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6))
@settings(deadline=None, max_examples=50)
def test_no_weights_give_less_noise_than_those_by_precision(units: list[int], parts: list[float]) -> None:
    shares = np.array(parts[: len(units)]) / sum(parts[: len(units)])
    assert signal.effective_units(units, "precision") >= 1 / math.sqrt(((shares / np.array(units)) ** 2).sum()) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("units", "expected", "why"),
    [((56, 17, 13), "precision", "17% less noise in the average; no site keeps less than 31%"),
     ((48, 48, 48, 48), "declared", "save 0%"), ((60, 40), "declared", "save 2%"), ((80,), "declared", "save 0%"),
     ((1000, 50), "declared", "keep only 5% of its share"), ((77, 24, 9), "declared", "keep only 15% of its share")],
)  # fmt: skip
def test_sites_are_weighed_by_precision_where_they_differ_but_not_too_much(units: tuple[int, ...], expected: str, why: str) -> None:
    found = plan_training(request(units))["rounds.weights"]
    assert found.value == expected
    assert why in found.why


def test_small_sites_count_in_every_fold_and_sites_that_are_not_averaged_have_no_weights() -> None:
    one_left_out = {"folds": ((60, 20), (200, 20), (200, 60), (200, 60, 20))}
    assert values(request((60, 20)))["rounds.weights"] == "precision"
    found = plan_training(request((60, 20), **one_left_out))["rounds.weights"]
    assert (found.value, "only 11% of its share" in found.why) == ("declared", True)
    assert values(request((56, 17, 13), strategy="local"))["rounds.weights"] == "declared"


def test_sites_that_are_not_averaged_are_planned_for_the_smallest() -> None:
    assert signal.effective_units([56, 17, 13], strategy="local") == 13
    alone, averaged = (values(request((56, 17, 13), strategy=strategy)) for strategy in ("local", "fedavg"))
    assert alone["optimizer.learning_rate"] < 0.5 * averaged["optimizer.learning_rate"]


def test_less_noise_in_the_average_allows_a_larger_learning_rate() -> None:
    rates = [values(request(weighting=weighting))["optimizer.learning_rate"] for weighting in (None, "precision", "declared")]
    assert rates[0] == rates[1] > 1.15 * rates[2]


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("units", [FEW, (48,) * 4, (300,), (5, 5)])
def test_the_default_keeps_the_signal_and_the_compute(units: tuple[int, ...], epsilon: float) -> None:
    asked = request(units, epsilon)
    chosen = values(asked)
    assert patches(chosen, asked) <= asked.allowed(chosen["patches_per_unit"])
    assert chosen["steps"] % asked.local_steps == 0
    assert planner.FEWEST_STEPS <= chosen["steps"] <= planner.MOST_STEPS
    assert exact_noise(chosen, asked) >= 0.97 * planner.LEAST_NOISE


@given(
    st.lists(st.integers(4, 300), min_size=1, max_size=5), st.sampled_from([0.5, 2.0, 8.0, 20.0]), st.integers(2, 400),
    st.sampled_from([1, 2, 5, 7]),
)  # fmt: skip
@settings(deadline=None, max_examples=8)
def test_compute_is_never_exceeded_and_steps_are_whole_rounds(
    units: list[int], epsilon: float, per_unit: int, local_steps: int
) -> None:
    asked = request(tuple(units), epsilon, compute=per_unit * sum(units), local_steps=local_steps)
    chosen = values(asked)
    assert patches(chosen, asked) <= asked.allowed(chosen["patches_per_unit"])
    assert chosen["steps"] % local_steps == 0
    assert 0 < chosen["optimizer.learning_rate"] <= planner.MOST_LEARNING_RATE
    assert 0.5 <= chosen["optimizer.ema_decay"] < 1


def test_noise_on_the_weights_stays_below_its_limit() -> None:
    asked = request()
    chosen = values(asked)
    units = signal.effective_units(asked.units, chosen["rounds.weights"])
    reached = signal.accumulated_signal(chosen["sampling_rate"], units, chosen["steps"], exact_noise(chosen, asked))
    assert chosen["optimizer.learning_rate"] * chosen["steps"] / reached <= 1.05 * planner.WEIGHT_NOISE


def test_more_compute_means_more_steps_and_more_patches() -> None:
    small, large = request(), request(compute=1000 * sum(FEW))
    assert values(large)["steps"] > values(small)["steps"]
    assert (values(small)["patches_per_unit"], values(large)["patches_per_unit"]) == (2, 16)


VOLUME_IN_2D = PlannedImages(patches=36, oriented=True, covered=True, at_once=72)
PHOTOGRAPH = PlannedImages(patches=1, oriented=False, covered=True, at_once=16)
LARGE_VOLUME = PlannedImages(patches=12, oriented=True, covered=False, at_once=2)


def test_images_that_hold_many_patches_give_each_patient_more_of_them() -> None:
    assert [values(request(images=images))["patches_per_unit"] for images in (VOLUME_IN_2D, LARGE_VOLUME, PHOTOGRAPH)] == [16, 2, 2]
    assert values(request(images=replace(VOLUME_IN_2D, at_once=12)))["patches_per_unit"] == 8
    for_four = 4 * 50 * sum(FEW)
    assert values(request(images=VOLUME_IN_2D, compute=for_four))["patches_per_unit"] == 4
    assert values(request(images=VOLUME_IN_2D, compute=for_four - 1))["patches_per_unit"] == 2
    assert values(request(images=VOLUME_IN_2D, compute=for_four, steps=20, sampling_rate=0.25))["patches_per_unit"] == 16
    assert values(request(images=PHOTOGRAPH, compute=10 * for_four))["patches_per_unit"] == 2


def test_more_patches_do_not_take_the_steps() -> None:
    few, many = values(request(images=PHOTOGRAPH)), values(request(images=VOLUME_IN_2D))
    assert (few["steps"], few["sampling_rate"]) == (many["steps"], many["sampling_rate"])


def test_augmentation_is_for_patients_who_are_drawn_often() -> None:
    assert values(request())["augmentation"] == "none"
    assert values(request(steps=400, sampling_rate=0.25))["augmentation"] == "none"
    assert values(request(steps=404, sampling_rate=0.25))["augmentation"] == "nnunet"


def test_foreground_and_flips_follow_the_images() -> None:
    found = {images: values(request(images=images)) for images in (VOLUME_IN_2D, PHOTOGRAPH, LARGE_VOLUME, None)}
    assert [chosen["oversample_foreground"] for chosen in found.values()] == [0.67, 1.0, 0.33, 0.33]
    assert [chosen["mirroring"] for chosen in found.values()] == [False, True, False, True]


@pytest.mark.parametrize(
    ("patch", "spacing", "expected"),
    [
        ((56, 40), (1.0, 1.0), PlannedImages(36, True, True, 9)),
        ((40, 56, 40), (1.0, 1.0, 1.0), PlannedImages(1, True, True, 9)),
        ((32, 32), (1.0, 1.0), PlannedImages(36 * 2 * 2, True, False, 9)),
        ((32, 32), (2.0, 2.0), PlannedImages(36, True, True, 9)),
        ((16, 32, 32), (1.0, 2.0, 2.0), PlannedImages(3, True, False, 9)),
    ],
)
def test_what_the_plan_says_about_images(patch: tuple[int, ...], spacing: tuple[float, ...], expected: PlannedImages) -> None:
    plans = {
        "original_median_shape_after_transp": [36, 50, 35],
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
    }
    settings = {"patch_size": list(patch), "spacing": list(spacing), "batch_size": 9}
    assert planned_images(plans, settings) == expected
    for missing in settings:
        with pytest.raises(InputError, match="does not say how large"):
            planned_images(plans, {name: value for name, value in settings.items() if name != missing})
    with pytest.raises(InputError, match="does not say how large"):
        planned_images({}, settings)


def test_a_photograph_has_one_slice_and_no_orientation() -> None:
    plans = {
        "original_median_shape_after_transp": [1, 450, 600],
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
    }
    settings = {"patch_size": [448, 640], "spacing": [1.0, 1.0], "batch_size": 16}
    assert planned_images(plans, settings) == PlannedImages(patches=2, oriented=False, covered=False, at_once=16)
    assert planned_images(plans, {**settings, "patch_size": [512, 640]}) == PHOTOGRAPH


def test_a_small_epsilon_takes_fewer_steps_of_more_patients() -> None:
    strict, loose = values(request(epsilon=1.0)), values(request(epsilon=8.0))
    assert strict["steps"] < loose["steps"]
    assert strict["sampling_rate"] > loose["sampling_rate"]
    assert strict["optimizer.learning_rate"] < loose["optimizer.learning_rate"]


def test_clipping_without_a_clip_norm_where_counts_tell_nothing() -> None:
    assert values(request((10, 8)))["clipping.method"] == "auto_s"
    assert values(request(epsilon=1.0))["clipping.method"] == "auto_s"
    assert values(request((300,) * 3))["clipping.method"] == "percentile"


def test_most_gradients_reach_an_adaptive_clip_norm() -> None:
    """Noise goes by C, and gradients below C count for less than they may."""
    assert values(request((300,) * 3))["clipping.quantile"] == 0.2
    assert "clipping.quantile" not in values(request((10, 8))), "AUTO-S has no clip norm"


@pytest.mark.parametrize(
    "fixed",
    [{"steps": 40}, {"sampling_rate": 0.07}, {"patches_per_unit": 3}, {"reserve_steps": 0}, {"learning_rate": 0.3}, {"ema_decay": 0.0},
     {"clipping_method": "fixed"}, {"clipping_method": "percentile", "clipping_quantile": 0.4}, {"optimizer": "adam"},
     {"oversample_foreground": 0.5}, {"mirroring": False}, {"augmentation": "nnunet"},
     {"steps": 33, "sampling_rate": 0.9}, {"steps": 4000}, {"noise_decay": 0.5}, {"weighting": "equal"}],
)  # fmt: skip
def test_what_was_given_is_kept_and_marked(fixed: dict[str, Any]) -> None:
    names = {"learning_rate": "optimizer.learning_rate", "ema_decay": "optimizer.ema_decay", "clipping_method": "clipping.method",
             "clipping_quantile": "clipping.quantile",
             "optimizer": "optimizer.name", "noise_decay": "noise_decay.final_ratio", "weighting": "rounds.weights"}  # fmt: skip
    found = plan_training(request(**fixed))
    for name, value in fixed.items():
        choice = found[names.get(name, name)]
        assert (choice.value, choice.given) == (value, True)
    assert {name for name, choice in found.items() if choice.given} == {names.get(name, name) for name in fixed}
    without = set() if found["clipping.method"].value == "percentile" else {"clipping.quantile"}
    assert set(CHOSEN) - without == {*found, "epsilon", "delta", "noise_multiplier"}


@pytest.mark.parametrize("noise", [1.05, 1.6, 2.3, 4.0, 9.0])
def test_a_given_noise_multiplier_pays_for_the_steps_that_are_chosen(noise: float) -> None:
    asked, without = request(noise_multiplier=noise), request()
    chosen = values(asked)
    assert exact_noise(chosen, asked) <= noise
    assert exact_noise(values(without), without) == pytest.approx(2.16, abs=0.01), "more than the first two, less than the others"


def test_more_noise_than_needed_takes_more_patients_a_step_and_says_what_it_loses() -> None:
    found = plan_training(request(noise_multiplier=9.0))
    assert found["sampling_rate"].value > values(request())["sampling_rate"]
    lost = float(found["sampling_rate"].why.partition("; ")[2].partition("%")[0]) / 100
    rate, steps = float(found["sampling_rate"].value), int(found["steps"].value)
    best = math.sqrt(steps) / signal.noise_for(1.0, steps + request().reserve(steps), 8.0, 1e-4)
    assert 1 - lost == pytest.approx(rate * math.sqrt(steps) / 9.0 / best, rel=0.05)


def test_a_noise_multiplier_that_pays_for_nothing_leaves_the_least_to_be_refused() -> None:
    rate = plan_training(request(noise_multiplier=0.3))["sampling_rate"].value
    assert rate == min(planner.RATES), "needs the least noise"


def test_given_steps_leave_compute_to_the_sampling_rate() -> None:
    asked = request(steps=40)
    chosen = values(asked)
    assert chosen["sampling_rate"] > values(request())["sampling_rate"]
    assert patches(chosen, asked) <= asked.allowed(chosen["patches_per_unit"])


def test_the_default_compute_limits_nobody_who_asked_for_more() -> None:
    asked = request(sampling_rate=1.0, local_steps=70)
    chosen = values(asked)
    assert chosen["steps"] == 70
    assert patches(chosen, asked) > asked.allowed(chosen["patches_per_unit"])
    assert "more than the default compute" in plan_training(asked)["steps"].why


def test_adam_has_a_learning_rate_of_its_own() -> None:
    assert values(request(optimizer="adam"))["optimizer.learning_rate"] == planner.ADAM_LEARNING_RATE


def test_what_a_fingerprint_spent_is_planned_for() -> None:
    spent = [accounting.gaussian(1.0)]
    without, with_it = (signal.noise_for(0.25, 220, 8.0, 1e-4, events) for events in ((), spent))
    assert with_it > without
    assert values(request(spent=spent))["optimizer.learning_rate"] < values(request())["optimizer.learning_rate"]


def test_too_little_compute_is_refused_with_the_figure_that_is_enough() -> None:
    asked = request(compute=3)
    with pytest.raises(InputError, match="--compute 3 does not pay") as caught:
        plan_training(asked)
    enough = int(str(caught.value).split("allow ")[1].split()[0])
    assert values(replace(asked, compute=enough))["steps"] == asked.local_steps
    with pytest.raises(InputError):
        plan_training(replace(asked, compute=enough - 1))


def test_the_widest_network_with_enough_signal() -> None:
    def parameters(width: int) -> int:
        return 2000 * width**2

    choice, ratio = planner.widest(10 * planner.LEAST_SIGNAL_TO_NOISE * math.sqrt(parameters(1)), parameters)
    assert choice.value == 8
    assert ratio >= planner.LEAST_SIGNAL_TO_NOISE
    assert planner.widest(1e9, parameters)[0].value == planner.WIDTHS[-1]
    narrowest, ratio = planner.widest(1e-9, parameters)
    assert narrowest.value == planner.WIDTHS[0]
    assert ratio < planner.LEAST_SIGNAL_TO_NOISE
