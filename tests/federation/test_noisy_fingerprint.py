"""Rule 13: the noisy fingerprint is bounded per patient, paid for before it exists, and all that plans are made from."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors.numpy
import tiny_dataset
import workspace as workspaces
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from injected_randomness import InjectedRandomness
from scipy.stats import chi2

from nnunet_adpfl import atomic_files
from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.experiments import pipeline
from nnunet_adpfl.federation import denoising, noisy_fingerprint, public_bins, raw_cases
from nnunet_adpfl.federation.noisy_fingerprint import Asked
from nnunet_adpfl.federation.planning import PlanningChoices, prepare_dataset
from nnunet_adpfl.federation.plans import make_plans
from nnunet_adpfl.federation.privacy_planning import PrivacyChoices, plan_privacy
from nnunet_adpfl.federation.splits import make_splits
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.privacy import accounting, hash_chain, mechanism, noise
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.mechanism import Permit
from nnunet_adpfl.privacy.plan import FingerprintRelease, PrivacyPlan
from nnunet_adpfl.trainers import patient_totals, site_ledger

NAME = tiny_dataset.NAME
NEGLIGIBLE = 1e-3
Case = tuple[tuple[int, ...], tuple[float, ...], list[Any], float]


def questions(channels: list[str], ending: str = ".nii.gz") -> public_bins.Questions:
    content = {"channel_names": {str(i): name for i, name in enumerate(channels)}, "file_ending": ending}
    return public_bins.questions(content, stock.declared_reader_name(content))


CT_AND_MR, PHOTO = questions(["CT", "MRI"]), questions(["R", "G", "B"], ".png")
EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -1.0, 999.0, 1e300, -(2.0**15), 2.0**15 - 1]


def patients(seed: int, asked: public_bins.Questions) -> list[Case]:
    """One to four cases: usual numbers, and with even odds some that no image should have."""
    generator = np.random.default_rng(seed)

    def numbers(count: int, low: float, high: float) -> np.ndarray:
        usual = generator.uniform(low, high, count)
        return np.where(generator.random(count) < 0.1 * (seed % 2), generator.choice(EXTREMES, count), usual)

    def one() -> Case:
        shape = tuple(generator.choice([0, 1, 12, 512, 10**6], 3))
        voxels = [numbers(int(generator.choice([0, 1, 300])), *generator.choice([(-2000, 4000), (7, 7)])) for _ in asked.channels]
        return shape, tuple(numbers(3, 1e-3, 30)), voxels, float(numbers(1, 0, 1)[0])

    return [one() for _ in range(generator.integers(1, 5))]


def of_patient(asked: public_bins.Questions, cases: list[Case]) -> np.ndarray:
    """The patient's vector, made by the code that makes it from images."""
    with np.errstate(all="ignore"):
        found = {str(i): asked.answer(s, w, v[: len(asked.channels)], r) for i, (s, w, v, r) in enumerate(cases)}
    return noisy_fingerprint.unit_vectors({"p": list(found)}, found)


# What a patient can do to the sum


@pytest.mark.parametrize("asked", [CT_AND_MR, PHOTO], ids=["CT", "PNG"])
def test_rule_13_one_patient_moves_the_sum_by_at_most_one(asked: public_bins.Questions) -> None:
    @settings(max_examples=200, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    def check(one: int, other: int) -> None:
        vectors = np.concatenate([of_patient(asked, patients(seed, asked)) for seed in (one, other)])
        assert np.isfinite(vectors).all()
        replaced_by_null = vectors * [[0.0], [1.0]]
        moved = mechanism.bounded_sum(vectors) - mechanism.bounded_sum(replaced_by_null)
        assert np.linalg.norm(moved) <= 1 + 1e-9
        assert np.linalg.norm(vectors, axis=1).max() <= 1 + 1e-9, "the histograms alone, before the clip"

    check()


def test_rule_13_the_bound_is_reached() -> None:
    """By a patient in the first bin of every histogram; so no noise is wasted, and a larger one would be noticed."""
    first: Case = ((1, 1, 1), (1e-3, 1e-3, 1e-3), [[-1024.0], [0.0]], 0.1)
    assert np.linalg.norm(of_patient(CT_AND_MR, [first])) == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(of_patient(CT_AND_MR, [first] * 50)) == pytest.approx(1, abs=1e-12), "many cases are one patient"


def test_rule_13_every_histogram_has_mass_one_or_none() -> None:
    for question in CT_AND_MR.asked:
        for values in ([1.0], [-1e9, 0.3, 1e9], [float("nan"), 2.0]):
            assert question.histogram(values).sum() == pytest.approx(1, abs=1e-12)
        for nothing in ([], [float("nan")], [float("inf")]):
            assert not question.histogram(nothing).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rule_13_a_vector_that_is_not_finite_adds_nothing(bad: float) -> None:
    good = np.full((2, 4), 0.25)
    assert np.array_equal(mechanism.bounded_sum(np.vstack([good, [[bad, 0, 0, 0]]])), mechanism.bounded_sum(good))


def test_rule_13_a_vector_that_is_too_long_is_scaled_down() -> None:
    found = mechanism.bounded_sum(np.array([[3.0, 4.0], [0.3, 0.4]]))
    assert found == pytest.approx([0.9, 1.2])
    for size in (1e9, 1e200, 1e308):
        assert np.linalg.norm(mechanism.bounded_sum(np.full((1, 9), size))) <= 1 + 1e-9


# Noise


def test_rule_13_noise_has_the_paid_deviation_on_every_coordinate() -> None:
    generator, z = np.random.default_rng(5), 3.0
    draws = np.stack([mechanism.released_sum(np.zeros((4, 500)), Permit({0: z}), generator) for _ in range(400)])
    scaled = (draws**2).sum(axis=0) / z**2
    assert np.all((chi2.cdf(scaled, 400) > 1e-9) & (chi2.cdf(scaled, 400) < 1 - 1e-9))
    assert 1e-6 < chi2.cdf(scaled.sum(), draws.size) < 1 - 1e-6


def test_rule_13_no_noise_without_a_permit_and_none_twice() -> None:
    with pytest.raises(PrivacyRefusedError, match="not paid"):
        mechanism.released_sum(np.zeros((1, 2)), Permit(), np.random.default_rng(0))
    permit = Permit({0: 1.0})
    mechanism.released_sum(np.zeros((1, 2)), permit, np.random.default_rng(0))
    with pytest.raises(PrivacyRefusedError, match="not paid"):
        mechanism.released_sum(np.zeros((1, 2)), permit, np.random.default_rng(0))


def asked_with(z: float, randomness: Any = None) -> Asked:
    return Asked(z, lambda: None, randomness)


def made(tiny: Path, z: float = 2.0, randomness: Any = None) -> tuple[dict[str, Any], FingerprintRelease, Path]:
    preprocessed = tiny.parents[1] / "preprocessed" / NAME
    found = noisy_fingerprint.noisy_fingerprint(preprocessed, raw_cases.load(tiny), cohorts.load(tiny), asked_with(z, randomness))
    return *found, preprocessed


def stored(preprocessed: Path, release: FingerprintRelease) -> dict[str, np.ndarray]:
    """Site -> its noisy vector."""
    asked = questions(["MRI"])
    files = {site: noisy_fingerprint.stored_file(preprocessed, site, release) for site in ("site-a", "site-b")}
    return {site: noisy_fingerprint.load(path, asked) for site, path in files.items()}


def test_rule_13_every_site_adds_noise_of_its_own_from_chacha(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_generators = []
    original = noise._chacha_generator
    monkeypatch.setattr(noise, "_chacha_generator", lambda: made_generators.append(1) or original())
    z = 5.0
    _, release, preprocessed = made(tiny, z)
    _, exact, _ = made(tiny, NEGLIGIBLE)
    assert len(made_generators) == 4
    noisy, nearly = stored(preprocessed, release), stored(preprocessed, exact)
    a, b = ((noisy[site] - nearly[site]) / z for site in noisy)
    assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(a.size)
    for part in (a, b):
        assert 1e-7 < chi2.cdf((part**2).sum(), part.size) < 1 - 1e-7


# Payment


def lines(path: Path) -> list[dict[str, Any]]:
    return [dict(line) for line in hash_chain.read(path).lines]


def spent(preprocessed: Path, site: str) -> list[str]:
    """Releases that a site's odometer has counted."""
    entries = lines(preprocessed / "sites" / site / "privacy_odometer.jsonl")
    return [entry["run"] for entry in entries if "line" in entry and entry["line"]["event"] == "gaussian"]


class PaidFirst(InjectedRandomness):
    """Randomness that looks for the payment before it makes noise."""

    def __init__(self, preprocessed: Path) -> None:
        super().__init__(1)
        self.preprocessed = preprocessed

    def noise(self, site: str, step: int) -> np.random.Generator:
        (ledger,) = (self.preprocessed / "sites" / site / "fingerprints").glob("*.jsonl")
        assert [line["event"] for line in lines(ledger)] == ["start", "gaussian"]
        assert spent(self.preprocessed, site) == [ledger.stem]
        assert not list(ledger.parent.glob("*.safetensors"))
        return super().noise(site, step)


def test_rule_13_paid_in_ledger_and_odometer_before_there_is_noise(tiny: Path) -> None:
    preprocessed = tiny.parents[1] / "preprocessed" / NAME
    _, release, _ = made(tiny, 2.0, PaidFirst(preprocessed))
    for site in ("site-a", "site-b"):
        start, event = lines(preprocessed / "sites" / site / "fingerprints" / f"{release.release}.jsonl")
        assert (event["noise_multiplier"], event["steps"], event["release"]) == (2.0, 1, release.release)
        assert (start["unit"], start["adjacency"], start["composition"]) == ("patient", "zero_out", "declared")


@pytest.mark.parametrize("site", ["site-a", "site-b"])
def test_rule_13_killed_between_payment_and_storing_is_paid_again(tiny: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessed = tiny.parents[1] / "preprocessed" / NAME
    original = atomic_files.write_bytes

    def killed(path: Path, data: bytes, **options: Any) -> None:
        if site in Path(path).parts:
            raise KeyboardInterrupt
        original(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            made(tiny)
    first = spent(preprocessed, site)
    assert len(first) == 1
    assert not list((preprocessed / "sites" / site).rglob("*.safetensors"))
    _, release, _ = made(tiny)
    assert release.release not in first, "noise is never drawn twice for one payment"
    assert spent(preprocessed, site) == [*first, release.release]


def test_rule_13_using_it_again_is_free_until_data_or_noise_change(tiny: Path) -> None:
    first, release, preprocessed = made(tiny)
    odometer = preprocessed / "sites" / "site-a" / "privacy_odometer.jsonl"
    before = odometer.read_bytes()
    assert made(tiny)[:2] == (first, release)
    assert odometer.read_bytes() == before
    assert made(tiny, 3.0)[1].release != release.release
    assert made(tiny)[1] == release, "the earlier one is still there"
    image = next((tiny / "imagesTr").iterdir())
    os.utime(image, ns=(1, 1))
    assert made(tiny)[1].release != release.release
    assert len(spent(preprocessed, "site-a")) == 3
    cohorts.load(tiny).save(preprocessed)
    total = patient_totals.dataset_totals(preprocessed)
    events = [accounting.gaussian(z) for z in (2.0, 3.0, 2.0)]
    assert total["epsilon"] == pytest.approx(accounting.epsilon(events, total["delta"]), abs=1e-6)


def test_rule_13_what_was_not_paid_for_or_is_damaged_is_not_used(tiny: Path) -> None:
    _, release, preprocessed = made(tiny)
    ledger = preprocessed / "sites" / "site-b" / "fingerprints" / f"{release.release}.jsonl"
    kept = ledger.read_bytes()
    ledger.unlink()
    with pytest.raises(PrivacyRefusedError, match="is missing"):
        made(tiny)
    ledger.write_bytes(kept.replace(b'"noise_multiplier": 2.0', b'"noise_multiplier": 9.0'))
    with pytest.raises(PrivacyRefusedError, match="edited"):
        made(tiny)
    ledger.write_bytes(kept)
    histograms = noisy_fingerprint.stored_file(preprocessed, "site-b", release)
    good = histograms.read_bytes()
    arrays = safetensors.numpy.load(good)
    for spoilt in (
        good[:50], good[:-8], b"", safetensors.numpy.save({**arrays, "more": np.zeros(2)}),
        safetensors.numpy.save({**arrays, "relative_size": np.array([0.0, np.nan])}),
        safetensors.numpy.save({**arrays, "relative_size": np.zeros(2, np.float32)}),
    ):  # fmt: skip
        histograms.write_bytes(spoilt)
        with pytest.raises(InputError, match="is damaged"):
            made(tiny)
    assert spent(preprocessed, "site-b") == [release.release]


def test_rule_13_a_release_is_never_paid_for_twice_under_one_name(tmp_path: Path) -> None:
    release = FingerprintRelease(release="fingerprint-0", noise_multiplier=1.0)
    site_ledger.pay_for_fingerprint(tmp_path, "a", ["p"], release=release, unit="patient", delta=1e-3)
    with pytest.raises(PrivacyRefusedError, match="exists"):
        site_ledger.pay_for_fingerprint(tmp_path, "a", ["p"], release=release, unit="patient", delta=1e-3)


def test_rule_13_refused_before_it_is_paid_where_a_run_needs_the_plan(tiny: Path, nnunet_folders: Path) -> None:
    choices = PlanningChoices("dp", base_features=4)
    planned = prepare_dataset(NAME, ["2d"], choices)
    run = nnunet_folders / "results" / NAME / "nnUNetTrainerADP__nnUNetPlans_f4__2d" / "fold_0"
    run.mkdir(parents=True)
    (run / "checkpoint_final.pth").write_bytes(b"")
    paid = spent(planned.preprocessed, "site-a")
    assert prepare_dataset(NAME, ["2d"], choices).plans == planned.plans
    for base_features in (4, 8):  # the same plan; another one of the same preprocessed data
        with pytest.raises(InputError, match="nothing was spent"):
            prepare_dataset(NAME, ["2d"], PlanningChoices("dp", base_features=base_features, fingerprint_noise=3.0))
    cohort = cohorts.load(tiny)
    Cohort("case", cohort.cases).save(tiny)
    with pytest.raises(InputError, match=r"cohort\.json would change"):
        prepare_dataset(NAME, ["2d"], choices)
    cohort.save(tiny)
    with pytest.raises(InputError, match="NoPlanner"):
        prepare_dataset(NAME, ["2d"], PlanningChoices("dp", planner="NoPlanner", fingerprint_noise=4.0))
    assert spent(planned.preprocessed, "site-a") == paid


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (PlanningChoices("dp", fingerprint_noise=0.1), "leaves nothing"), (PlanningChoices("dp", fingerprint_noise=1e-4), "leaves nothing"),
        (PlanningChoices("dp", fingerprint_noise=0.0), "finite"), (PlanningChoices("dp", fingerprint_noise=math.nan), "finite"),
        (PlanningChoices("dp", fingerprint_noise=math.inf), "finite"), (PlanningChoices(fingerprint_noise=2.0), "leave it out"),
    ],
)  # fmt: skip
def test_noise_that_cannot_be_is_refused_before_anything(tiny: Path, choices: PlanningChoices, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.plan(NAME, ["2d"], choices, PrivacyChoices(delta=1e-3))
    assert not list((tiny.parents[1] / "preprocessed").iterdir())


# Accounting


def privacy_plan(tmp_path: Path, fingerprint: str, release: FingerprintRelease | None) -> PrivacyPlan:
    cohort = tiny_dataset.write_raw(tmp_path, patients=10, side=2)
    choices = PrivacyChoices(epsilon=2.0, delta=1e-3, steps=20)
    return plan_privacy({}, cohort, make_splits(cohort), fingerprint, choices, release).plan


def test_rule_13_its_event_is_part_of_the_calibrated_budget(tmp_path: Path) -> None:
    release = FingerprintRelease(release="fingerprint-0", noise_multiplier=3.0)
    public, private = privacy_plan(tmp_path, "public", None), privacy_plan(tmp_path, "dp", release)
    assert public.noise_multiplier is not None
    assert private.noise_multiplier is not None
    assert private.noise_multiplier > public.noise_multiplier * 1.02
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(GaussianDpEvent(3.0))
    steps = private.steps + private.reserve_steps
    accountant.compose(PoissonSampledDpEvent(private.sampling_rate, GaussianDpEvent(private.noise_multiplier)), steps)
    assert 1.95 < accountant.get_epsilon(1e-3) <= 2.0


def test_rule_13_a_privacy_plan_cannot_name_a_cheaper_fingerprint(tmp_path: Path) -> None:
    paid = FingerprintRelease(release="fingerprint-0", noise_multiplier=3.0)
    site_ledger.pay_for_fingerprint(tmp_path, "site-a", ["p"], release=paid, unit="patient", delta=1e-3)
    plan = privacy_plan(tmp_path, "dp", paid)

    def opened(release: FingerprintRelease, name: str) -> list[dict[str, Any]]:
        made_from = mechanism.make(plan.model_copy(update={"fingerprint_release": release}), "all")
        path, odometer = tmp_path / f"{name}.jsonl", site_ledger.odometer_of(tmp_path, "site-a")
        site_ledger.open_ledger(
            path, run=name, site="site-a", units=["p"], site_odometers=[odometer], mechanism=made_from, declared_steps=20,
            checkpoint_head=None,
        )  # fmt: skip
        return [line for line in lines(path) if line["event"] == "gaussian"]

    (event,) = opened(paid, "honest")
    assert (event["noise_multiplier"], event["release"]) == (3.0, "fingerprint-0")
    for number, (release, z) in enumerate([("fingerprint-0", 9.0), ("fingerprint-1", 3.0)]):
        with pytest.raises(PrivacyRefusedError, match="knows no fingerprint"):
            opened(FingerprintRelease(release=release, noise_multiplier=z), f"edited-{number}")


# What is made of it


def summed(asked: public_bins.Questions, cases: list[Case]) -> np.ndarray:
    return np.asarray(sum(asked.answer(*one) for one in cases))


def test_medians_and_percentiles_are_those_of_the_patients() -> None:
    asked = questions(["CT"])
    slices = [5.0] * 60 + [3.0] * 30 + [1.0] * 11
    cases: list[Case] = [((round(300 / mm), 512, 512), (mm, 0.8, 0.8), [np.linspace(-100, 300, 999)], 1.0) for mm in slices]
    found = denoising.answers(asked, summed(asked, cases), len(cases), 1e-6).fingerprint()
    spacings, shapes = np.array(found["spacings"]), np.array(found["shapes_after_crop"])
    assert np.median(spacings, axis=0).tolist() == [5.0, 0.8, 0.8]
    assert np.percentile(spacings[:, 0], 10) == 1.0
    assert np.median(spacings * shapes, axis=0) == pytest.approx([300, 409.6, 409.6], rel=0.012)
    properties = found["foreground_intensity_properties_per_channel"]["0"]
    assert properties["percentile_00_5"] == pytest.approx(-98, abs=4)
    assert properties["percentile_99_5"] == pytest.approx(298, abs=4)
    assert properties["mean"] == pytest.approx(100, abs=4)
    assert properties["median"] == pytest.approx(100, abs=4)
    assert properties["std"] == pytest.approx(400 / math.sqrt(12), abs=4)


@pytest.mark.parametrize(("relative", "masked"), [([0.74] * 60 + [1.0] * 40, True), ([0.74] * 40 + [0.75] * 60, False)])
def test_the_mask_is_a_majority_vote(relative: list[float], masked: bool) -> None:
    asked = questions(["MRI"])
    cases: list[Case] = [((9, 9, 9), (1.0, 1.0, 1.0), [[]], share) for share in relative]
    found = denoising.answers(asked, summed(asked, cases), 100, 1e-6).fingerprint()
    assert (found["median_relative_size_after_cropping"] < 0.75) is masked


@pytest.mark.parametrize(("channels", "ending", "asks"), [
    (["MRI"], ".nii.gz", {"spacing", "extent", "relative"}), (["CT"], ".nii.gz", {"spacing", "extent", "low", "high", "voxels"}),
    (["R", "G", "B"], ".png", {"extent", "relative"}), (["rgb_to_0_1"] * 3, ".png", {"extent"}),
])  # fmt: skip
def test_nothing_is_asked_that_no_plan_uses(channels: list[str], ending: str, asks: set[str]) -> None:
    asked = questions(channels, ending)
    assert {question.name.split("_")[0] for question in asked.asked} == asks
    assert sum(weight**2 for weight in asked.weights.values()) == pytest.approx(1)


def test_noise_that_drowns_everything_leaves_the_declared_values_and_says_so(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _, _ = made(tiny, 1e4)
    assert found == denoising.prior(questions(["MRI"])).fingerprint()
    assert np.unique(found["shapes_after_crop"]).tolist() == [128]
    said = capsys.readouterr().err
    assert "10 patients at 2 sites are too few for noise multiplier 10000" in said
    assert "noise drowns spacing_0" in said
    assert not denoising.drowning(questions(["MRI"]), 600, 4.0 * math.sqrt(3))


def test_noise_alone_never_makes_numbers_that_nnunet_cannot_plan_with() -> None:
    generator = np.random.default_rng(3)
    for asked in (CT_AND_MR, PHOTO):
        for units in (30, 3000):
            found = denoising.answers(asked, generator.normal(0, 50, asked.size), units, 50.0).fingerprint()
            assert np.min(found["shapes_after_crop"]) >= 1
            assert np.min(found["spacings"]) > 0
            properties = found["foreground_intensity_properties_per_channel"]["0"]
            assert properties["percentile_00_5"] <= properties["mean"] <= properties["percentile_99_5"]
            json.dumps(found, allow_nan=False)


def test_with_negligible_noise_the_plan_is_the_pooled_one(tiny: Path) -> None:
    pooled = prepare_dataset(NAME, ["3d_fullres"])
    exact = json.loads((pooled.preprocessed / "dataset_fingerprint.json").read_text())
    noisy = prepare_dataset(NAME, ["3d_fullres"], PlanningChoices("dp", fingerprint_noise=NEGLIGIBLE))
    assert noisy.release is not None
    wanted = make_plans(NAME, raw_cases.load(tiny), exact, declared_cases=10)  # the number of cases is not public
    for plans in (wanted, found := dict(noisy.plans)):
        plans.pop("foreground_intensity_properties_per_channel")
    assert found == wanted


def test_planning_looks_at_no_file_and_no_count_of_cases(tiny: Path) -> None:
    found = denoising.prior(questions(["MRI"])).fingerprint()
    content = json.loads((tiny / "dataset.json").read_text())
    plans = []
    for number in (10, 10_000):
        (tiny / "dataset.json").write_text(json.dumps({**content, "numTraining": number}))
        plans.append(stock.run_planner("ExperimentPlanner", NAME, found, {}, declared_cases=10))
    assert plans[0] == plans[1]


def test_no_exact_number_of_a_patient_is_written(tiny: Path) -> None:
    """Of one patient with a spacing and intensities that nobody else has; also where a pooled plan was made before."""
    content = json.loads((tiny / "dataset.json").read_text())
    (tiny / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "CT"}}))
    for part in ("imagesTr", "labelsTr"):
        (path,) = (tiny / part).glob("case_01_0*")
        image = nibabel.load(path)
        data = np.asarray(image.dataobj)
        planted = data if part == "labelsTr" else np.where(data > 0.5, 2477.25, data).astype(np.float32)
        nibabel.Nifti1Image(planted, np.diag([1.7317, 1.7317, 1.7317, 1])).to_filename(path)
    planted_numbers = ("2477.2", "1.7317", "20.78")
    prepare_dataset(NAME, ["2d"])
    assert any(number in _texts(tiny) for number in planted_numbers), "the pooled fingerprint shows the patient"
    planned = prepare_dataset(NAME, ["2d"], PlanningChoices("dp", fingerprint_noise=NEGLIGIBLE))
    assert planned.release is not None
    assert not [number for number in planted_numbers if number in _texts(tiny)]


def _texts(tiny: Path) -> str:
    """All that is written for planning, training and export; the preprocessed images themselves are the patients' data."""
    preprocessed = tiny.parents[1] / "preprocessed" / NAME
    files = [path for path in preprocessed.rglob("*") if path.suffix in (".json", ".jsonl")]
    arrays = [part for path in preprocessed.rglob("*.safetensors") for part in safetensors.numpy.load(path.read_bytes()).values()]
    return "".join(path.read_text() for path in files) + "".join(str(part.tolist()) for part in arrays)


@pytest.mark.slow
def test_rule_13_a_run_planned_with_noise_has_a_formal_guarantee(
    nnunet_folders: Path, few_samples: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_adpfl.cli import main

    tiny_dataset.write_raw(nnunet_folders / "raw", patients=10, side=12)
    budget = ["--epsilon", "8", "--delta", "1e-3", "--steps", "4", "--local-steps", "2", "--sampling-rate", "0.4"]
    options = ["--fingerprint", "dp", "--fingerprint-noise", "1.5", "--base-features", "2", "--device", "cpu", "--no-mirroring", "--json"]
    monkeypatch.setattr("sys.argv", ["adpfl", "run", "801", "2d", "0", *budget, *options])
    with pytest.raises(SystemExit, match="0"):
        main.main()
    done = json.loads(capsys.readouterr().out)
    run, said = Path(done["run"]), done["privacy"]
    assert (said["guarantee"], said["accountant"]) == ("formal", "PLD")
    assert not any("plan" in line for line in said["not_covered"])
    preprocessed = nnunet_folders / "preprocessed" / NAME
    for site, ledger in workspaces.ledgers(run).items():
        (event,) = [line for line in ledger if line["event"] == "gaussian"]
        paid = lines(preprocessed / "sites" / site / "fingerprints" / f"{event['release']}.jsonl")[1]
        assert event["noise_multiplier"] == paid["noise_multiplier"] == 1.5
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        accountant.compose(GaussianDpEvent(1.5))
        for line in (line for line in ledger if line["event"] == "poisson_gaussian"):
            step = PoissonSampledDpEvent(line["sampling_rate"], GaussianDpEvent(line["noise_multiplier"]))
            accountant.compose(step, line["steps"])
        assert said["sites"][site]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), abs=0.02)
    before = spent(preprocessed, "site-a")
    for noise_multiplier in (1.5, 1.75):  # too much for these few patients, so both make the same plan of nnU-Net
        choices = PlanningChoices("dp", plans_name="other", fingerprint_noise=noise_multiplier)
        pipeline.plan("801", ["2d"], choices, PrivacyChoices())
        kept = privacy_plans.load(preprocessed / privacy_plans.file_name("other", "2d"))
        assert kept.fingerprint_release is not None
        assert kept.fingerprint_release.noise_multiplier == noise_multiplier
    assert spent(preprocessed, "site-a") == [*before, kept.fingerprint_release.release], "paid for once more, for another noise"
