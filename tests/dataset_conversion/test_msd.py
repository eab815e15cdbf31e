"""Decathlon folders: a whole conversion, and sources that must be refused with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny_sources

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.dataset_conversion import converters
from nnunet_adpfl.federation import raw_cases

CASES = tiny_sources.MSD_CASES


def sites_file(folder: Path, text: str) -> Path:
    path = folder / "sites.csv"
    path.write_text(text)
    return path


def test_whole_folder(raw: Path, msd: Path, tmp_path: Path) -> None:
    sites = sites_file(
        tmp_path, "case,site\n" + "".join(f"{case}.nii.gz,{site}\n" for case, site in zip(CASES, "xxyy", strict=True))
    )
    written = converters.convert("msd", msd, 77, sites=sites)
    assert (written.folder, written.number, written.cases, written.written) == (raw / "Dataset077_Brain", 77, 4, True)
    assert json.loads((written.folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "MRI0"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "name": "Brain",
        "licence": "CC0",
    }
    assert sorted(raw_cases.load(written.folder).files) == list(CASES)
    for case in CASES:
        for source, target in (("imagesTr", f"{case}_0000"), ("labelsTr", case)):
            copied = (written.folder / source / f"{target}.nii.gz").read_bytes()
            assert copied == (msd / source / f"{case}.nii.gz").read_bytes()
    cohort = cohorts.load(written.folder)
    assert cohort == written.cohort
    assert (cohort.unit_kind, cohort.sites, cohort.units("x")) == ("case", ["x", "y"], ["brain_01", "brain_02"])


def test_without_a_table_there_is_no_cohort(raw: Path, msd: Path) -> None:
    written = converters.convert("msd", msd, 5, name="Other")
    assert written.cohort is None
    assert not (written.folder / "cohort.json").exists()
    assert written.folder == raw / "Dataset005_Other"


def test_several_channels(raw: Path, tmp_path: Path) -> None:
    source = tiny_sources.write_msd(tmp_path / "Task01_Multi", CASES[:2], channels=2)
    written = converters.convert("msd", source, 1)
    assert sorted(path.name for path in (written.folder / "imagesTr").iterdir()) == [
        f"{case}_000{channel}.nii.gz" for case in CASES[:2] for channel in range(2)
    ]
    whole = np.asanyarray(nibabel.load(source / "imagesTr" / "brain_01.nii.gz").dataobj)
    second = np.asanyarray(nibabel.load(written.folder / "imagesTr" / "brain_01_0001.nii.gz").dataobj)
    np.testing.assert_array_equal(second, whole[..., 1])
    assert len(raw_cases.load(written.folder).files["brain_01"]["images"]) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_with(path: Path, **change: Any) -> None:
    old = nibabel.load(path)
    data, affine = np.asanyarray(old.dataobj).copy(), old.affine
    if "voxel" in change:
        data[1, 2, 3] = change["voxel"]
    tiny_sources.write_nifti(path, data, change.get("affine", affine))


BREAKAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated image": (lambda source: cut(source / "imagesTr/brain_02.nii.gz"), ("brain_02 (image cannot be read",)),
    "truncated label": (lambda source: cut(source / "labelsTr/brain_02.nii.gz"), ("brain_02 (label cannot be read",)),
    "missing label": (
        lambda source: (source / "labelsTr/brain_02.nii.gz").unlink(),
        ("label brain_02.nii.gz is missing",),
    ),
    "other spacing": (
        lambda source: write_with(source / "labelsTr/brain_02.nii.gz", affine=np.diag([1.0, 1.0, 1.0, 1.0])),
        ("brain_02 (image has spacing 1x1x2 mm, label 1x1x1 mm)",),
    ),
    "NaN": (
        lambda source: write_with(source / "imagesTr/brain_02.nii.gz", voxel=np.nan),
        ("brain_02 (image has 1 NaN",),
    ),
    "label value": (
        lambda source: write_with(source / "labelsTr/brain_02.nii.gz", voxel=7),
        ("label holds the value 7",),
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_cases_are_named_and_the_earlier_data_set_is_kept(raw: Path, msd: Path, breakage: str) -> None:
    assert converters.convert("msd", msd, 77).written
    damage, parts = BREAKAGES[breakage]
    damage(msd)
    shared = ("1 of 4 cases are broken, nothing was written",)
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", msd, 77, overwrite=True), *shared, *parts)
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", msd, 78), *shared, *parts)


def test_all_broken_cases_are_in_the_one_line(raw: Path, msd: Path) -> None:
    for case in CASES[:3]:
        cut(msd / "imagesTr" / f"{case}.nii.gz")
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", msd, 77), "3 of 4 cases are broken", *CASES[:3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,site\nbrain_01,x\nbrain_02,x\nbrain_03,x\n", "lacks cases of the data set (1: brain_04)"),
        ("case,site\nbrain_01,x\nbrain_02,x\nbrain_03,x\nbrain_04,x\nbrain_99,x\n", "does not have (1: brain_99)"),
        ("case,site\nbrain_01,x\nbrain_02,x\nbrain_03,x\nbrain_04,x\nbrain_04,y\n", "more than once (1: brain_04)"),
        (
            "case,site,patient\nbrain_01,x,p\nbrain_02,y,p\nbrain_03,x,q\nbrain_04,x,r\n",
            "patient p at two sites (x and y)",
        ),
        ("case,clinic\nbrain_01,x\n", "no column 'site' (columns: case, clinic)"),
    ],
)
def test_bad_sites_tables(raw: Path, msd: Path, tmp_path: Path, text: str, message: str) -> None:
    assert converters.convert("msd", msd, 77).written
    sites = sites_file(tmp_path, text)
    tiny_sources.check_refused(
        raw, lambda: converters.convert("msd", msd, 77, sites=sites, overwrite=True), "sites.csv", message
    )


def edited(msd: Path, **changes: Any) -> None:
    path = msd / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "background"}}, "'labels' must be 0, 1, 2"),
        ({"labels": {"0": "background", "2": "a"}}, "without a gap"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "each with its own name"),
        ({"labels": {"zero": "background"}}, "must be whole numbers"),
        ({"labels": [0, 1]}, "no 'labels'"),
        ({"modality": {"1": "MRI"}}, "keys of 'modality'"),
        ({"modality": {"0": "T1", "1": "T2"}}, "the data set has 2 channel(s)"),
        ({"training": []}, "lists no case"),
        ({"training": ["imagesTr/brain_01.nii.gz"]}, "needs an image and a label"),
        ({"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}] * 2}, "lists case a twice"),
        ({"training": [{"image": "../../a.nii.gz", "label": "b.nii.gz"}]}, "lies outside"),
        ({"training": [{"image": "a.mha", "label": "b.nii.gz"}]}, "must be .nii.gz files"),
    ],
)
def test_bad_descriptions(raw: Path, msd: Path, changes: dict[str, Any], message: str) -> None:
    edited(msd, **changes)
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", msd, 77), message)


def test_no_decathlon_folder(raw: Path, msd: Path, tmp_path: Path) -> None:
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", tmp_path / "absent", 77), "absent is no Decathlon folder")
    (msd / "dataset.json").write_text("{")
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", msd, 77), "no valid JSON")


def test_unlisted_images_and_mac_leavings_are_left_out(
    raw: Path, msd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = json.loads((msd / "dataset.json").read_text())
    hidden = {"image": "./imagesTr/._brain_01.nii.gz", "label": "./labelsTr/._brain_01.nii.gz"}
    edited(msd, training=[*description["training"][:3], hidden])
    written = converters.convert("msd", msd, 77)
    assert written.cases == 3
    assert "1 images in imagesTr are not in dataset.json and are left out (brain_04.nii.gz)" in capsys.readouterr().err


def test_real_hippocampus(raw: Path, shared_data: Path) -> None:
    source = shared_data / "hippocampus"
    if not source.is_dir():
        pytest.skip("the hippocampus cases are not on this machine")
    written = converters.convert("msd", source / "Task04_Hippocampus", 4, sites=source / "sites.csv")
    assert written.folder == raw / "Dataset004_Hippocampus"
    assert written.cases == len(raw_cases.load(written.folder).files) == 200
    assert written.cohort is not None
    sizes = {site: len(written.cohort.units(site)) for site in written.cohort.sites}
    assert sizes == {"site-a": 132, "site-b": 42, "site-c": 26}
