"""The pooled fingerprint: known answers, exact merging, and equality with nnU-Net's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import examination, fingerprint, raw_cases
from nnunet_adpfl.federation.fingerprint import IntensityHistogram, SiteFingerprint

intensities = st.lists(st.floats(-4e5, 4e5, width=32), max_size=40)
geometry = st.tuples(st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.5, 0.5)]), st.sampled_from([(8, 8, 8), (5, 9, 9)]))
cases = st.builds(lambda g, values: fingerprint.of_case(g[1], g[0], [values], 0.5), geometry, intensities)


def content(one: SiteFingerprint) -> object:
    channels = [(c.keys.tolist(), c.counts.tolist(), c.dropped_bits, c.low, c.high) for c in one.channels]
    return channels, dict(one.geometries)


def test_known_answers() -> None:
    found = IntensityHistogram.of([1.0, 2.0, 2.0, 3.0, -7.0]).properties()
    assert (found["min"], found["max"], found["mean"], found["median"]) == (-7.0, 3.0, 0.2, 2.0)
    assert found["std"] == pytest.approx(np.std([1, 2, 2, 3, -7]), rel=1e-12)
    assert found["percentile_99_5"] == pytest.approx(np.percentile([1, 2, 2, 3, -7], 99.5), rel=1e-12)


def test_joint_histogram_is_not_the_product_of_its_margins() -> None:
    site = fingerprint.merge(
        [fingerprint.of_case((8, 8, 8), (1, 1, 1), [[1.0]], 1.0), fingerprint.of_case((4, 9, 9), (3, 1, 1), [[2.0]], 0.5)]
    )
    listed = fingerprint.as_nnunet_fingerprint(site)
    pairs = list(zip(listed["spacings"], listed["shapes_after_crop"], strict=True))
    assert pairs == [([1.0, 1.0, 1.0], [8, 8, 8]), ([3.0, 1.0, 1.0], [4, 9, 9])]
    assert listed["median_relative_size_after_cropping"] == 0.75


@given(st.lists(intensities, min_size=1, max_size=4).filter(lambda lists: any(lists)))
def test_statistics_are_those_of_the_pooled_values(lists: list[list[float]]) -> None:
    merged = IntensityHistogram.of([])
    for values in lists:
        merged = merged.merge(IntensityHistogram.of(values))
    pooled = np.array([value for values in lists for value in values])
    found = merged.properties()
    low, median, high = np.percentile(pooled, [0.5, 50, 99.5])
    expected = {
        "min": pooled.min(), "max": pooled.max(), "mean": pooled.mean(), "std": pooled.std(), "median": median,
        "percentile_00_5": low, "percentile_99_5": high,
    }  # fmt: skip
    scale = max(1e-30, float(np.abs(pooled).max()))
    assert all(found[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9 * scale) for key in expected)


@pytest.mark.parametrize("most_bins", [2**20, 6])
def test_merging_is_associative_commutative_and_equal_to_pooling(most_bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MOST_BINS", most_bins)

    @settings(max_examples=60)
    @given(cases, cases, cases)
    def check(a: SiteFingerprint, b: SiteFingerprint, c: SiteFingerprint) -> None:
        whole = content(fingerprint.merge([a, b, c]))
        assert whole == content(fingerprint.merge([fingerprint.merge([a, b]), c]))
        assert whole == content(fingerprint.merge([a, fingerprint.merge([b, c])]))
        assert whole == content(fingerprint.merge([c, b, a]))

    check()


def test_too_many_different_values_cost_last_bits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MOST_BINS", 2**10)
    values = np.random.default_rng(0).normal(1000, 200, 50_000).astype(np.float32)
    histogram = IntensityHistogram.of(values)
    found = histogram.properties()
    assert len(histogram.keys) <= 2**10
    assert histogram.dropped_bits > 0
    assert (found["min"], found["max"]) == (values.min(), values.max())
    for key, expected in (("mean", values.mean()), ("median", np.median(values)), ("std", values.std())):
        assert found[key] == pytest.approx(float(expected), rel=2e-3)


def test_no_foreground_and_unequal_channels_are_refused() -> None:
    with pytest.raises(InputError, match="no case has any foreground"):
        IntensityHistogram.of([]).properties()
    with pytest.raises(InputError, match="numbers of channels"):
        fingerprint.merge([fingerprint.of_case((2, 2, 2), (1, 1, 1), [[1.0]] * n, 1.0) for n in (1, 2)])
    with pytest.raises(InputError, match="no case"):
        fingerprint.merge([])


def test_equals_that_of_nnunet_over_all_cases(tmp_path: Path) -> None:
    cohort = tiny_dataset.write_raw(tmp_path, patients=5, side=14)
    raw = raw_cases.load(tmp_path / tiny_dataset.NAME)
    sites = []
    for site in cohort.sites:
        names = [case for case, entry in cohort.cases.items() if entry.site == site]
        sites.append(examination.site_fingerprint(site, names, raw, "SimpleITKIO", 2000))
    found = fingerprint.as_nnunet_fingerprint(fingerprint.merge(sites))

    stock = [
        DatasetFingerprintExtractor.analyze_case(entry["images"], entry["label"], SimpleITKIO, 2000) for entry in raw.files.values()
    ]
    pooled = np.concatenate([case[2][0] for case in stock])
    properties = found["foreground_intensity_properties_per_channel"]["0"]
    low, median, high = np.percentile(pooled, [0.5, 50, 99.5])
    expected = {"mean": pooled.mean(dtype=np.float64), "median": median, "percentile_00_5": low, "percentile_99_5": high}
    assert all(properties[key] == pytest.approx(float(expected[key]), rel=1e-6) for key in expected)
    assert (properties["min"], properties["max"]) == (float(pooled.min()), float(pooled.max()))
    assert sorted(found["shapes_after_crop"]) == sorted(list(case[0]) for case in stock)
    assert sorted(found["spacings"]) == sorted([float(value) for value in case[1]] for case in stock)
    assert found["median_relative_size_after_cropping"] == np.median([case[4] for case in stock])
