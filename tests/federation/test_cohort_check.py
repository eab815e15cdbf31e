"""`adpfl cohort --check`: duplicates, damage, splits and geometry, and what the number of patients means for privacy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny_dataset

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cli import main
from nnunet_adpfl.cohort import Cohort, CohortEntry
from nnunet_adpfl.federation import cohort_check, cohort_privacy, raw_cases, splits
from nnunet_adpfl.privacy import accounting


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part in ("raw", "preprocessed", "results"):
        (tmp_path / part).mkdir()
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    tiny_dataset.write_raw(tmp_path / "raw", patients=10, side=8)
    return tmp_path / "raw" / tiny_dataset.NAME


def checked(raw: Path) -> cohort_check.CohortFacts:
    return cohort_check.check(raw_cases.load(raw), cohorts.load(raw), [raw], processes=1)


def image(raw: Path, case: str) -> Path:
    return raw / "imagesTr" / f"{case}_0000.nii.gz"


def test_a_sound_cohort_has_no_problem_and_figures_of_each_site(raw: Path) -> None:
    found = checked(raw)
    assert found.problems == ()
    site = found.sites["site-a"]
    assert (site["units"], site["cases"], site["most_cases_of_a_unit"]) == (5, 7, 2)
    assert site["shape"]["median"] == [8, 8, 8]
    assert site["spacing_mm"]["highest"] == [1, 1, 1]
    assert site["cases_with_label"] == {"1": 7, "2": 7}
    voxels = [np.asanyarray(nibabel.load(image(raw, case)).dataobj) for case, e in cohorts.load(raw).cases.items() if e.site == "site-a"]
    expected = np.mean([v[v != v.min()].mean() for v in voxels])
    assert site["intensities"]["MRI"]["mean"] == pytest.approx(expected, rel=1e-3)


def packed_again(source: Path, target: Path) -> None:
    """The same voxels in other bytes."""
    nibabel.Nifti1Image(np.asanyarray(nibabel.load(source).dataobj).astype(np.float64), nibabel.load(source).affine).to_filename(target)


@pytest.mark.parametrize("copy", [shutil.copyfile, packed_again])
def test_rule_01_the_same_image_of_two_patients_is_found_however_it_is_packed(raw: Path, copy: Callable[[Path, Path], None]) -> None:
    copy(image(raw, "case_02_0"), image(raw, "case_05_0"))
    assert checked(raw).problems == (
        "the same image under 2 names of 2 patients, at sites site-a and site-b: case_02_0, case_05_0",
    )


def test_the_same_image_twice_of_one_patient_is_told_too(raw: Path) -> None:
    shutil.copyfile(image(raw, "case_03_0"), image(raw, "case_03_1"))
    assert checked(raw).problems == ("the same image under 2 names of one patient: case_03_0, case_03_1",)


def test_duplicates_that_train_and_validate(raw: Path) -> None:
    made = splits.make_splits(cohorts.load(raw))
    train, val = made[0]["train"][0], made[0]["val"][0]
    (raw / "splits_final.json").write_text(json.dumps(made))
    shutil.copyfile(image(raw, train), image(raw, val))
    (problem,) = checked(raw).problems
    assert "training and validating in fold 0" in problem


def test_a_patient_on_both_sides_of_a_fold(raw: Path) -> None:
    made = [dict(split) for split in splits.make_splits(cohorts.load(raw))]
    moved = next(case for case in made[0]["train"] if case.startswith("case_03"))
    made[0] = {"train": [case for case in made[0]["train"] if case != moved], "val": [*made[0]["val"], moved]}
    (raw / "splits_final.json").write_text(json.dumps(made))
    (problem,) = checked(raw).problems
    assert "patient patient_03 is in both training and validation of fold 0" in problem


def test_damaged_cases_are_all_told(raw: Path) -> None:
    image(raw, "case_01_0").write_bytes(b"damaged")
    label = raw / "labelsTr" / "case_02_0.nii.gz"
    nibabel.Nifti1Image(np.full((8, 8, 8), 7, np.uint8), np.eye(4)).to_filename(label)
    found = checked(raw)
    assert [problem.split(":")[0] for problem in found.problems] == ["case case_01_0 cannot be used", "case case_02_0 cannot be used"]
    assert found.sites["site-b"]["cases"] == 7


def test_cases_without_a_unit(raw: Path) -> None:
    cohort = cohorts.load(raw)
    Cohort("patient", {case: entry for case, entry in cohort.cases.items() if case != "case_04_0"}).save(raw)
    assert checked(raw).problems == ("cohort.json and the files do not name the same cases (1: case_04_0)",)


def test_noise_is_that_of_the_accountant_and_falls_with_patients() -> None:
    cohort = Cohort("patient", {f"c{k}": CohortEntry(f"p{k}", "large" if k < 40 else "small") for k in range(50)})
    delta, levels = cohort_privacy.noise_at_epsilons(cohort)
    assert delta == 1e-3
    for level in levels:
        spent = accounting.epsilon([accounting.poisson_gaussian(0.25, level.noise_multiplier, 220)], delta)
        assert 0.99 * level.epsilon < spent <= level.epsilon
        assert level.sites["small"] == pytest.approx(4 * level.sites["large"])
        assert level.sites["large"] == pytest.approx(level.noise_multiplier / (0.25 * 32))
        assert level.federation == pytest.approx(level.noise_multiplier / (0.25 * 40) * 2**0.5)
    assert levels[0].federation > levels[1].federation > levels[2].federation


@pytest.mark.slow
def test_the_command_prints_and_ends_with_1_where_there_are_problems(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["adpfl", "cohort", "801", "--check", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        return int(end.value.code or 0), capsys.readouterr().out

    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    code, out = call()
    assert (code, out.splitlines()[-1]) == (0, "no problem found")
    assert "epsilon 8:" in out
    shutil.copyfile(image(raw, "case_02_0"), image(raw, "case_05_0"))
    code, out = call("--json")
    told = json.loads(out)
    assert (code, len(told["problems"]), sorted(told["sites"])) == (1, 1, ["site-a", "site-b"])
    assert [level["epsilon"] for level in told["privacy"]["at_epsilon"]] == [1, 3, 8]
    assert call("--simulate-sites", "3")[0] == 2
    after = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {image(raw, "case_05_0")}, "nothing is written"
