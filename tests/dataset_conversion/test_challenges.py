"""KiTS, BraTS, FeTS, ISIC: what is found in each layout, as what it is written, and that nothing is lost on the way back."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny_challenges
import tiny_sources
from PIL import Image
from tiny_challenges import (
    CHALLENGES,
    NEW_CHANNELS,
    OLD_CHANNELS,
    SLICE_FIRST,
    write_brats,
    write_isic,
    write_kits,
    write_rows,
)

from nnunet_adpfl import folds
from nnunet_adpfl.dataset_conversion import brats, converters, kits, labels_back
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
from nnunet_adpfl.dataset_conversion.source_set import Options
from nnunet_adpfl.federation import raw_cases

VOLUMES = [name for name in CHALLENGES if not CHALLENGES[name].flat]
BRATS = [name for name in VOLUMES if name.startswith(("brats", "fets"))]


def converted(name: str, folder: Path, options: Options | None = None) -> tuple[Path, converters.WrittenDataset]:
    source, arguments = CHALLENGES[name].write(folder / "download")
    sites = Path(arguments[1]) if arguments else None
    return source, converters.convert("kits23" if name == "kits21" else name, source, 55, sites=sites, options=options)


def values(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def masks(source: Path, case: str) -> list[Path]:
    """The challenge's masks of a case."""
    endings = ("seg.nii.gz", "seg.nii", "Segm.nii", "segmentation.nii.gz")
    files = [path for path in source.rglob("*.nii*") if case in (path.parent.name, path.name.split(".")[0])]
    return [path for path in files if path.name.endswith(endings) or path.parent.name == "labelsTr"]


@pytest.mark.parametrize("name", CHALLENGES)
def test_units_sites_and_files(raw: Path, tmp_path: Path, name: str) -> None:
    _, written = converted(name, tmp_path)
    challenge, cohort = CHALLENGES[name], written.cohort
    assert cohort is not None
    assert (cohort.unit_kind, len(cohort.units()), len(cohort.sites)) == (challenge.unit, challenge.units, challenge.sites)
    cases = raw_cases.load(written.folder)
    assert set(cases.files) == set(cohort.cases)
    channels = len(cases.dataset_json["channel_names"])
    assert all(len(entry["images"]) == (1 if challenge.flat else channels) for entry in cases.files.values())


@pytest.mark.parametrize("name", VOLUMES)
def test_labels_come_back_to_the_last_voxel(raw: Path, tmp_path: Path, name: str) -> None:
    source, written = converted(name, tmp_path)
    converter = "kits23" if name == "kits21" else name
    assert labels_back.convert_back(converter, written.folder / "labelsTr", tmp_path / "back") == written.cases
    seen: set[int] = set()
    for path in (tmp_path / "back").iterdir():
        (mask,) = masks(source, path.name.removesuffix(".nii.gz"))
        np.testing.assert_array_equal(values(path), values(mask))
        np.testing.assert_array_equal(nibabel.load(path).affine, nibabel.load(mask).affine)
        seen |= set(np.unique(values(path)).tolist())
    assert seen == CHALLENGES[name].values, "every class of the challenge occurs in what was compared"


@pytest.mark.parametrize("name", ["ham10000", "isic2018"])
def test_masks_come_back_to_the_last_pixel(raw: Path, tmp_path: Path, name: str) -> None:
    source, written = converted(name, tmp_path)
    labels_back.convert_back(name, written.folder / "labelsTr", tmp_path / "back")
    for path in (tmp_path / "back").iterdir():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(next(source.rglob(path.name)))))


@pytest.mark.parametrize("name", ["brats2020", "brats2021", "fets2022"])
def test_labels_are_those_of_nnunets_own_converter(raw: Path, tmp_path: Path, name: str) -> None:
    nnunet = import_module("nnunetv2.dataset_conversion.Dataset137_BraTS21")
    source, written = converted(name, tmp_path)
    for path in (written.folder / "labelsTr").iterdir():
        (mask,) = masks(source, path.name.removesuffix(".nii.gz"))
        np.testing.assert_array_equal(nnunet.convert_labels_back_to_BraTS(values(path)), values(mask))
    description = json.loads((written.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
    assert description["labels"] == {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    assert description["regions_class_order"] == [1, 2, 3]


def test_brats2024_has_the_six_regions_of_the_challenge_or_the_labels_of_nnunets_converter(raw: Path, tmp_path: Path) -> None:
    _, written = converted("brats2024", tmp_path)
    description = json.loads((written.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "T1C", "2": "T2W", "3": "T2F"}
    regions = {name: value if isinstance(value, list) else [value] for name, value in description["labels"].items()}
    assert regions["whole tumor"] == [1, 2, 3]
    assert regions["tumor core"] == [1, 3]
    assert [regions[name] for name in ("NETC", "SNFH", "ET", "RC")] == [[1], [2], [3], [4]]
    painted = description["regions_class_order"]
    for value in range(1, 5):  # what a perfect prediction of the regions is painted as
        result = 0
        for (_, members), colour in zip(list(regions.items())[1:], painted, strict=True):
            result = colour if value in members else result
        assert result == value
    shutil.rmtree(written.folder)
    _, plain = converted("brats2024", tmp_path / "again", Options(plain_labels=True))
    description = json.loads((plain.folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
    assert "regions_class_order" not in description


@pytest.mark.parametrize("name", ["kits23", "kits21"])
def test_kits_is_what_nnunets_converter_writes(raw: Path, tmp_path: Path, name: str) -> None:
    source, written = converted(name, tmp_path)
    description = json.loads((written.folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    assert (description["regions_class_order"], description["channel_names"]) == ([1, 3, 2], {"0": "CT"})
    assert description["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    image = next(source.rglob("case_00003/imaging.nii.gz"))
    assert (written.folder / "imagesTr" / "case_00003_0000.nii.gz").read_bytes() == image.read_bytes()
    assert nibabel.aff2axcodes(nibabel.load(image).affine) == ("I", "P", "L"), "the test looks like the real files"


@pytest.mark.parametrize("name", BRATS)
def test_channels_are_in_nnunets_order_whatever_the_year_calls_them(raw: Path, tmp_path: Path, name: str) -> None:
    source, written = converted(name, tmp_path)
    case = sorted(written.cohort.cases)[3]  # type: ignore[union-attr]
    suffixes = NEW_CHANNELS if name in ("brats2023", "brats2024") else OLD_CHANNELS
    for channel, suffix in enumerate(suffixes[:4]):
        original = next(path for path in source.rglob(f"{case}{suffix}.nii*"))
        np.testing.assert_array_equal(values(written.folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"), values(original))


def test_rule_01_scans_of_a_patient_are_one_unit(raw: Path, tmp_path: Path) -> None:
    _, written = converted("brats2024", tmp_path)
    assert written.cohort is not None
    assert written.cohort.cases_of("BraTS-GLI-00003") == ["BraTS-GLI-00003-100", "BraTS-GLI-00003-101"]
    assert (written.cases, len(written.cohort.units())) == (14, 10)
    assert {site: len(written.cohort.units(site)) for site in written.cohort.sites} == {"Duke": 5, "UCSF": 5}


def test_rule_01_patients_of_brats2024_are_known_without_any_table(raw: Path, tmp_path: Path) -> None:
    source, _ = CHALLENGES["brats2024"].write(tmp_path)
    (source / tiny_challenges.XLSX).unlink()
    cohort = converters.convert("brats2024", source, 55).cohort
    assert cohort is not None
    assert (cohort.sites, len(cohort.units())) == (["all"], 10), "else simulated sites would part the scans of a patient"


def test_rule_14_scans_of_one_patient_at_two_sites_go_to_one(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"BraTS-GLI-00001-{visit}" for visit in (100, 101, 102)]
    source = write_brats(tmp_path / "b24", names, NEW_CHANNELS, (2, 1, 3, 4))
    table = write_rows(tmp_path / "t.csv", "BraTS Subject ID,Site", [f"{names[0]},A", f"{names[1]},B", f"{names[2]},B"])
    cohort = converters.convert("brats2024", source, 55, sites=table).cohort
    assert cohort is not None
    assert cohort.sites == ["B"]
    assert "1 patients have images from two sites" in capsys.readouterr().err


def test_rule_01_one_patient_in_two_spellings_is_one_unit(raw: Path, tmp_path: Path) -> None:
    source = write_brats(tmp_path / "b24", ["BraTS-GLI-00005-100", "brats-gli-00005-101"], NEW_CHANNELS, (2, 1, 3, 4))
    cohort = converters.convert("brats2024", source, 55).cohort
    assert cohort is not None
    assert cohort.units() == ["BraTS-GLI-00005"]


def test_held_out_cases_with_labels_do_not_train(raw: Path, tmp_path: Path) -> None:
    source = write_brats(tmp_path / "b24" / "training_data1_v2", ["BraTS-GLI-00001-100"], NEW_CHANNELS, (2, 1, 3, 4))
    write_brats(source.parent / "validation_data", ["BraTS-GLI-00002-100"], NEW_CHANNELS, (2, 1, 3, 4))
    refusal = "BraTS-GLI-00002-100 lies in a validation or test folder and has a label"
    tiny_sources.check_refused(raw, lambda: converters.convert("brats2024", source.parent, 55), refusal)


def test_a_training_case_below_a_folder_called_test_stays_one(raw: Path, tmp_path: Path) -> None:
    source = write_brats(tmp_path / "src" / "my test" / "TrainingData", ["BraTS2021_00001", "BraTS2021_00002"])
    (source / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz").unlink()
    tiny_sources.check_refused(raw, lambda: converters.convert("brats2021", tmp_path / "src", 55), "label BraTS2021_00002 seg is missing")


def test_a_folder_that_cannot_be_read_is_not_passed_over(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, scandir = write_kits(tmp_path / "data"), os.scandir

    def forbidden(path: Any) -> Any:
        if str(path).endswith("case_00003"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)  # root, who runs some tests, reads everything
    tiny_sources.check_refused(raw, lambda: converters.convert("kits23", source, 55), "case_00003 cannot be read (Permission denied)")


def test_labels_of_two_challenges_for_one_case_are_refused(raw: Path, tmp_path: Path) -> None:
    write_kits(tmp_path / "both" / "kits19", [0, 1], values=(1, 2))
    write_kits(tmp_path / "both" / "kits21", [0, 1], label="aggregated_MAJ_seg")
    for case in ("case_00000", "case_00001"):
        shutil.copyfile(tmp_path / "both/kits19" / case / "imaging.nii.gz", tmp_path / "both/kits21" / case / "imaging.nii.gz")
    tiny_sources.check_refused(raw, lambda: converters.convert("kits23", tmp_path / "both", 55), "case_00000 has labels of two challenges")
    write_kits(tmp_path / "copies" / "new", [0], values=(1, 2))
    write_kits(tmp_path / "copies" / "old", [0], values=(1, 3, 2))
    tiny_sources.check_refused(raw, lambda: converters.convert("kits23", tmp_path / "copies", 55), "case_00000 is there twice and differs")


def test_isic_copies_with_short_folder_names(raw: Path, tmp_path: Path) -> None:
    source = write_isic(tmp_path / "isic")
    for long, short in (("Training", "train"), ("Validation", "val"), ("Test", "test")):
        (source / f"ISIC2018_Task1-2_{long}_Input").rename(source / f"{short}_images")
        (source / f"ISIC2018_Task1_{long}_GroundTruth").rename(source / f"{short}_masks")
    tiny_sources.write_jpg(source / "ISIC2018_Task3_Training_Input" / "ISIC_0024306.jpg")
    written = converters.convert("isic2018", source, 55)
    assert written.cases == 12
    assert written.cohort is not None
    assert len(folds.load_splits(written.folder, written.cohort)[0]["val"]) == 2


def test_rule_01_a_patient_on_both_sides_of_the_official_split_is_refused(raw: Path, tmp_path: Path) -> None:
    source = write_isic(tmp_path / "isic")
    names = [*(f"ISIC_{index:07d}" for index in range(10)), "ISIC_0012255", "ISIC_0012256"]
    rows = [f"{name},x,{'p0' if name in (names[0], names[-1]) else name}" for name in names]
    table = write_rows(tmp_path / "t.csv", "image,site,patient", rows)
    refusal = "patient p0 is in both the official training and validation set"
    tiny_sources.check_refused(raw, lambda: converters.convert("isic2018", source, 55, sites=table), refusal)


def test_predictions_of_another_data_set_are_not_relabelled(tmp_path: Path, raw: Path) -> None:
    _, written = converted("brats2024", tmp_path)
    shutil.copyfile(written.folder / "dataset.json", written.folder / "labelsTr" / "dataset.json")
    labels_back.convert_back("brats2024", written.folder / "labelsTr", tmp_path / "right")
    refusal = "was predicted with other labels than those of brats2021"
    tiny_sources.check_refused(
        tmp_path, lambda: labels_back.convert_back("brats2021", written.folder / "labelsTr", tmp_path / "wrong"), refusal
    )


def test_a_linked_data_set_whose_source_moved_is_not_complete(raw: Path, tmp_path: Path) -> None:
    source, written = converted("kits23", tmp_path, Options(linked=True))
    moved = source.rename(source.with_name("moved"))
    sites = tmp_path / "download" / "sites.csv"
    linked = Options(linked=True)
    tiny_sources.check_refused(raw, lambda: converters.convert("kits23", moved, 55, sites=sites, options=linked), "--overwrite")
    again = converters.convert("kits23", moved, 55, sites=sites, options=linked, overwrite=True)
    assert again.folder == written.folder
    assert raw_cases.load(again.folder).files


def test_validation_cases_without_labels_are_only_predicted(raw: Path, tmp_path: Path) -> None:
    _, written = converted("brats2020", tmp_path)
    assert written.cases == 10
    assert sorted(path.name for path in (written.folder / "imagesTs").iterdir()) == [
        f"BraTS20_Validation_001_{channel:04d}.nii.gz" for channel in range(4)
    ]
    assert not (written.folder / "labelsTs").exists()
    assert "BraTS20_Training_355" in written.cohort.cases, "whose mask has another name"  # type: ignore[union-attr]


def test_a_training_case_that_lost_its_label_is_no_validation_case(raw: Path, tmp_path: Path) -> None:
    source, arguments = CHALLENGES["brats2021"].write(tmp_path)
    next(source.rglob("BraTS2021_00004_seg.nii.gz")).unlink()
    next(source.rglob("BraTS2021_00007_t2.nii.gz")).unlink()
    sites = Path(arguments[1])
    missing = ("2 of 10 cases are broken", "label BraTS2021_00004 seg is missing", "image BraTS2021_00007 t2 is missing")
    tiny_sources.check_refused(raw, lambda: converters.convert("brats2021", source, 55, sites=sites), *missing)


def test_kits19_cases_of_the_challenges_test_set(raw: Path, tmp_path: Path) -> None:
    source = write_kits(tmp_path / "data", [0, 1, 209, 210, 299], values=(1, 2))
    for number in (210, 299):
        (source / f"case_{number:05d}" / "segmentation.nii.gz").unlink()
    written = converters.convert("kits19", source, 55)
    assert written.cases == 3
    assert sorted(path.name[:10] for path in (written.folder / "imagesTs").iterdir()) == ["case_00210", "case_00299"]


def test_isic_keeps_the_official_splits(raw: Path, tmp_path: Path) -> None:
    _, written = converted("isic2018", tmp_path)
    assert written.cohort is not None
    (split,) = folds.load_splits(written.folder, written.cohort)
    assert len(split["train"]) == 10
    assert split["val"] == ["ISIC_0012255", "ISIC_0012256"]
    assert [path.name for path in (written.folder / "labelsTs").iterdir()] == ["ISIC_0012169.png"]
    assert written.cases == 12


def test_sites_of_kits_by_the_published_table(raw: Path, tmp_path: Path) -> None:
    source = write_kits(tmp_path / "dataset", [0, 1, 2, 3, 400, 401])
    table = write_rows(tmp_path / "kits19_sites.csv", "case,site_id", ["case_00000,13", "case_00001,13", "case_00002,67", "case_00003,7"])

    def sizes(**choice: object) -> Counter[str]:
        found = kits.find("kits23", source, SitesChoice(table, **choice), Options())  # type: ignore[arg-type]
        return Counter(entry.site for entry in found.cohort.cases.values())  # type: ignore[union-attr]

    assert sizes(drop_unassigned=True) == {"13": 2, "67": 1, "7": 1}
    assert sizes(unassigned_site="later") == {"13": 2, "67": 1, "7": 1, "later": 2}
    assert sizes(drop_unassigned=True, smallest_site=2) == {"13": 2, "other": 2}
    tiny_sources.check_refused(
        raw,
        lambda: converters.convert("kits23", source, 55, sites=table),
        "lacks cases of the data set (2: case_00400",
        "--drop-unassigned",
    )


@pytest.mark.parametrize("name", ["kits23", "brats2024", "msd"])
def test_link_writes_links_and_the_same_data_set(raw: Path, tmp_path: Path, name: str) -> None:
    source, arguments = CHALLENGES[name].write(tmp_path / "download")
    sites = Path(arguments[1]) if arguments else None
    written = converters.convert(name, source, 55, sites=sites, options=Options(linked=True))
    images = sorted((written.folder / "imagesTr").iterdir())
    assert all(path.is_symlink() and path.resolve().is_relative_to(source.resolve()) for path in images)
    linked = {path.name: path.read_bytes() for path in images}
    copied = converters.convert(name, source, 55, sites=sites, overwrite=True)
    assert {path.name: path.read_bytes() for path in (copied.folder / "imagesTr").iterdir()} == linked
    assert not any(path.is_symlink() for path in copied.folder.rglob("*"))


@pytest.mark.parametrize("name", ["ham10000", "isic2018"])
def test_photographs_cannot_be_linked(raw: Path, tmp_path: Path, name: str) -> None:
    source, _ = CHALLENGES[name].write(tmp_path)
    tiny_sources.check_refused(raw, lambda: converters.convert(name, source, 55, options=Options(linked=True)), "--link", "JPEG")
    tiny_sources.check_refused(raw, lambda: converters.convert(name, source, 55, options=Options(plain_labels=True)), "--plain-labels")


def test_file_names_in_any_case_and_links_that_loop(raw: Path, tmp_path: Path) -> None:
    source, arguments = CHALLENGES["brats2021"].write(tmp_path)
    source = source.rename(tmp_path / "Köln 患者")
    folder = source / "BraTS2021_00002"
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.upper().replace(".NII.GZ", ".nii.gz"))
    (source / "loop").symlink_to(source)
    (folder / "nowhere").symlink_to(folder / "nowhere")
    written = converters.convert("brats2021", source, 55, sites=Path(arguments[1]))
    assert written.cases == 10


@pytest.mark.parametrize("name", VOLUMES)
def test_an_empty_folder_says_what_is_wanted(raw: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    converter = "kits23" if name == "kits21" else name
    tiny_sources.check_refused(raw, lambda: converters.convert(converter, tmp_path / "empty", 55), str(tmp_path / "empty"))
    tiny_sources.check_refused(raw, lambda: converters.convert(converter, tmp_path / "absent", 55), str(tmp_path / "absent"))


DAMAGES = {
    "4D image": (lambda label: (np.zeros((*label.shape, 2), np.float32), label), "needs three axes"),
    "4D label": (lambda label: (None, np.stack([label, label], -1)), "label has shape"),
    "other size": (lambda label: (None, label[:-1]), "image has shape"),
    "unknown label": (lambda label: (None, np.where(label == 1, 9, label).astype(np.uint8)), "label holds the value 9"),
    "half labels": (lambda label: (None, label.astype(np.float32) / 2), "no whole number"),
    "NaN": (lambda label: (np.full(label.shape, np.nan, np.float32), label), "NaN or infinite"),
    "colours": (lambda label: (np.zeros(label.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), label), "needs plain numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_volumes_are_named_or_left_out(raw: Path, tmp_path: Path, damage: str) -> None:
    source, arguments = CHALLENGES["brats2021"].write(tmp_path)
    case = source / "BraTS2021_00003"
    label_path, image_path = case / "BraTS2021_00003_seg.nii.gz", case / "BraTS2021_00003_t1ce.nii.gz"
    change, message = DAMAGES[damage]
    image, label = change(values(label_path))
    if image is not None:
        tiny_sources.write_nifti(image_path, image, nibabel.load(label_path).affine)
    tiny_sources.write_nifti(label_path, label, nibabel.load(label_path).affine)
    sites = Path(arguments[1])
    expected = ("1 of 10 cases are broken, nothing was written: BraTS2021_00003", message, "--skip-broken")
    tiny_sources.check_refused(raw, lambda: converters.convert("brats2021", source, 55, sites=sites), *expected)
    written = converters.convert("brats2021", source, 55, sites=sites, skip_broken=True)
    assert (written.cases, list(written.left_out)) == (9, ["BraTS2021_00003"])
    assert message in written.left_out["BraTS2021_00003"]
    assert written.cohort is not None
    assert "BraTS2021_00003" not in written.cohort.cases
    assert len(raw_cases.load(written.folder).files) == 9
    again = converters.convert("brats2021", source, 55, sites=sites, skip_broken=True)
    assert (again.written, again.cases, dict(again.left_out)) == (False, 9, dict(written.left_out))
    tiny_sources.check_refused(raw, lambda: converters.convert("brats2021", source, 55, sites=sites), "exists without 1 broken cases")


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"a.nii.gz": 5}, "holds the value 5"),
        ({}, "holds no prediction"),
    ],
)
def test_predictions_that_cannot_go_back(tmp_path: Path, predictions: dict[str, int], message: str) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name, value in predictions.items():
        tiny_sources.write_nifti(folder / name, np.full((4, 4, 4), value, np.uint8), SLICE_FIRST)
    tiny_sources.check_refused(tmp_path, lambda: labels_back.convert_back("brats2021", folder, tmp_path / "out"), message)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    tiny_sources.check_refused(tmp_path, lambda: labels_back.convert_back("brats2021", folder, tmp_path / "out"), "is not empty")


@pytest.mark.slow
def test_real_tables_of_sites(tmp_path: Path, shared_data: Path) -> None:
    """The published tables against all cases that they are about (files are empty: they are not read here)."""
    folder = shared_data / "site_tables"
    if not folder.is_dir():
        pytest.skip("the tables are not on this machine")
    patients = [line.split(",")[1].strip()[-5:] for line in (folder / "fets2022_partitioning_1.csv").read_text().splitlines()[1:]]
    by_year = {
        "fets2022": ("FeTS2022_{}", OLD_CHANNELS), "brats2021": ("BraTS2021_{}", OLD_CHANNELS),
        "brats2023": ("BraTS-GLI-{}-000", NEW_CHANNELS),
    }  # fmt: skip
    seen = set()
    for name, (pattern, suffixes) in by_year.items():
        for patient in patients:
            case = pattern.format(patient)
            (tmp_path / name / case).mkdir(parents=True)
            for suffix in suffixes:
                (tmp_path / name / case / f"{case}{suffix}.nii.gz").touch()
        for table in ("fets2022_partitioning_1.csv", "brats21_17_mapping.csv"):
            found = brats.find(name, tmp_path / name, SitesChoice(folder / table), Options())
            assert found.cohort is not None
            sizes = Counter(entry.site for entry in found.cohort.cases.values())
            assert (len(found.cases), len(sizes), sizes["1"], sizes["18"]) == (1251, 23, 511, 382)
            seen.add(tuple(found.cohort.cases[pattern.format(patient)].site for patient in patients))
    assert len(seen) == 1, "the same institutions whatever the year and the table"


def test_real_table_of_kits_sites(tmp_path: Path, shared_data: Path) -> None:
    table = shared_data / "site_tables" / "kits19_sites.csv"
    if not table.is_file():
        pytest.skip("the table is not on this machine")
    for number in range(300):
        case = tmp_path / f"case_{number:05d}"
        case.mkdir()
        (case / "imaging.nii.gz").touch()
        if number < 210:
            (case / "segmentation.nii.gz").touch()
    found = kits.find("kits19", tmp_path, SitesChoice(table), Options())
    assert found.cohort is not None
    assert (len(found.cases), len(found.test_cases), len(found.cohort.sites)) == (210, 90, 77)
    large = kits.find("kits19", tmp_path, SitesChoice(table, smallest_site=12), Options()).cohort
    assert large is not None
    sizes = {site: len(large.units(site)) for site in large.sites}
    assert {site: size for site, size in sizes.items() if site != "other"} == {"67": 30, "57": 16, "13": 14, "14": 12, "7": 12, "55": 12}
