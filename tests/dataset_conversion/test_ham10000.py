"""HAM10000: the layouts in which it is found, its units and sites."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_sources
from PIL import Image

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.dataset_conversion import converters, ham10000
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
from nnunet_adpfl.federation import raw_cases

CASES = [f"ISIC_000000{number}" for number in range(1, 6)]
HEADER, ROWS, SIZE = tiny_sources.HAM_HEADER, tiny_sources.HAM_ROWS, tiny_sources.HAM_SIZE
SITES = {"rosendahl": ["HAM_1", "HAM_2"], "vidir_modern": ["HAM_3", "HAM_4"]}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_whole_folder(raw: Path, ham: Path) -> None:
    written = converters.convert("ham10000", ham, 120)
    assert (written.folder, written.cases) == (raw / "Dataset120_HAM10000", 5)
    description = json.loads((written.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert description["labels"] == {"background": 0, "lesion": 1}
    assert (description["file_ending"], description["numTraining"], description["name"]) == (".png", 5, "HAM10000")
    assert sorted(raw_cases.load(written.folder).files) == CASES
    for case in CASES:
        image, label = (written.folder / name for name in (f"imagesTr/{case}_0000.png", f"labelsTr/{case}.png"))
        np.testing.assert_array_equal(pixels(image), pixels(tiny_sources.ham_image(ham, case)))
        np.testing.assert_array_equal(pixels(label), pixels(tiny_sources.ham_mask(ham, case)) // 255)
        assert (pixels(image).shape, pixels(image).dtype, pixels(label).shape) == ((*SIZE, 3), np.uint8, SIZE)
    cohort = cohorts.load(written.folder)
    assert cohort.unit_kind == "lesion"
    assert {site: cohort.units(site) for site in cohort.sites} == SITES
    assert cohort.cases_of("HAM_1") == CASES[:2]


def test_nnunets_own_reader_takes_the_files(raw: Path, ham: Path) -> None:
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    folder = converters.convert("ham10000", ham, 120).folder
    image, _ = NaturalImage2DIO().read_images([str(folder / "imagesTr" / f"{CASES[0]}_0000.png")])
    label, _ = NaturalImage2DIO().read_seg(str(folder / "labelsTr" / f"{CASES[0]}.png"))
    assert (image.shape, label.shape) == ((3, 1, *SIZE), (1, 1, *SIZE))
    assert set(np.unique(label)) == {0, 1}


def nested_and_lower_case(ham: Path) -> None:
    (ham / "HAM10000_images_part_1").rename(ham / "ham10000_images_part_1")
    (ham / "download").mkdir()
    shutil.move(ham / "HAM10000_images_part_2", ham / "download" / "HAM10000_images_part_2")
    masks = ham / "HAM10000_segmentations_lesion_tschandl"
    masks.rename(ham / "inner")
    masks.mkdir()
    (ham / "inner").rename(masks / masks.name)


def tab_separated(ham: Path) -> None:
    table = ham / "HAM10000_metadata"
    lines = ["\t".join(f'"{value}"' for value in line.split(",")) for line in table.read_text().splitlines()]
    table.with_suffix(".tab").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    table.unlink()


def semicolons_in_csv(ham: Path) -> None:
    table = ham / "HAM10000_metadata"
    (ham / "HAM10000_metadata.csv").write_text(table.read_text().replace(",", ";"))
    table.unlink()


def two_spellings_of_a_folder(ham: Path) -> None:
    shutil.copytree(ham / "HAM10000_images_part_1", ham / "ham10000_images_part_1")


def two_tables(ham: Path) -> None:
    lines = [line.rsplit(",", 1)[0] for line in (ham / "HAM10000_metadata").read_text().splitlines()]
    (ham / "A").mkdir()
    (ham / "A" / "HAM10000_metadata.csv").write_text("\n".join(lines))


def other_set_and_leavings(ham: Path) -> None:
    tiny_sources.write_jpg(ham / "ISIC2018_Task3_Test_Input" / "ISIC_0034400.jpg")
    (ham / "HAM10000_images_part_1" / "._ISIC_0000002.jpg").write_bytes(b"leavings")
    (ham / "__MACOSX").mkdir()
    (ham / "__MACOSX" / "ISIC_0000077.jpg").write_bytes(b"leavings")


def linked(ham: Path) -> None:
    (ham / "HAM10000_images_part_1").rename(ham.parent / "elsewhere")
    (ham / "HAM10000_images_part_1").symlink_to(ham.parent / "elsewhere")
    (ham / "HAM10000_images_part_2" / "loop").symlink_to(ham)


LAYOUTS = [
    nested_and_lower_case,
    tab_separated,
    semicolons_in_csv,
    two_spellings_of_a_folder,
    two_tables,
    other_set_and_leavings,
    linked,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_occur(raw: Path, ham: Path, layout: Callable[[Path], None]) -> None:
    layout(ham)
    written = converters.convert("ham10000", ham, 120)
    assert written.cohort is not None
    assert list(written.cohort.cases) == CASES
    assert {site: written.cohort.units(site) for site in written.cohort.sites} == SITES


def test_a_lesion_of_two_sites_goes_whole_to_one(raw: Path, ham: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sites = ["vienna_dias", "rosendahl", "rosendahl", "vienna_dias", "rosendahl"]
    lesions = ["A", "A", "A", "B", "B"]
    tiny_sources.ham_metadata(
        ham,
        *(
            f"{lesion},{case},nv,histo,45,male,back,{site}"
            for lesion, case, site in zip(lesions, CASES, sites, strict=True)
        ),
    )
    written = converters.convert("ham10000", ham, 120)
    assert written.cohort is not None
    assert {entry.unit: entry.site for entry in written.cohort.cases.values()} == {"A": "rosendahl", "B": "vienna_dias"}
    assert "2 lesions have images from two sites (A, B)" in capsys.readouterr().err


def test_rows_without_files_are_left_out_and_noted(raw: Path, ham: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_sources.ham_metadata(ham, *ROWS, "HAM_9,ISIC_0000009,nv,histo,45.0,male,back,vienna_dias")
    assert converters.convert("ham10000", ham, 120).cases == 5
    assert "1 rows of HAM10000_metadata have neither image nor mask" in capsys.readouterr().err


WITHOUT_DATASET = tuple(row.rsplit(",", 1)[0] for row in ROWS)


def test_a_copy_without_sites_needs_a_table(raw: Path, ham: Path, tmp_path: Path) -> None:
    tiny_sources.ham_metadata(ham, *WITHOUT_DATASET, header=HEADER.rsplit(",", 1)[0])
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "no column 'dataset'", "--sites FILE.csv")
    sites = tmp_path / "sites.csv"
    sites.write_text("case,site\n" + "".join(f"{case},{site}\n" for case, site in zip(CASES, "nnsss", strict=True)))
    cohort = converters.convert("ham10000", ham, 120, sites=sites).cohort
    assert cohort is not None
    assert (cohort.unit_kind, cohort.units("n"), cohort.units("s")) == (
        "lesion",
        ["HAM_1"],
        ["HAM_2", "HAM_3", "HAM_4"],
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("11nnn", "lesion HAM_1 at two sites"),
        ("nnss", "lacks cases of the data set (1: ISIC_0000005)"),
    ],
)
def test_tables_that_do_not_fit(raw: Path, ham: Path, tmp_path: Path, lines: str, message: str) -> None:
    sites = tmp_path / "sites.csv"
    rows = [
        f"{case},{site}{number if site == '1' else ''}"
        for number, (case, site) in enumerate(zip(CASES, lines, strict=False))
    ]
    sites.write_text("case,site\n" + "\n".join(rows))
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120, sites=sites), "sites.csv", message)


def test_a_table_may_know_the_patients(raw: Path, ham: Path, tmp_path: Path) -> None:
    sites = tmp_path / "sites.csv"
    sites.write_text(
        "case,site,patient\n" + "".join(f"{case},n,{patient}\n" for case, patient in zip(CASES, "aaabb", strict=True))
    )
    cohort = converters.convert("ham10000", ham, 120, sites=sites).cohort
    assert cohort is not None
    assert (cohort.unit_kind, cohort.cases_by_unit()) == ("patient", {"a": CASES[:3], "b": CASES[3:]})
    sites.write_text(
        "case,site,patient\n" + "".join(f"{case},n,{patient}\n" for case, patient in zip(CASES, "abccc", strict=True))
    )
    tiny_sources.check_refused(
        raw, lambda: converters.convert("ham10000", ham, 121, sites=sites), "gives lesion HAM_1 to two patients (a and b)"
    )


def test_the_published_table_may_be_given_for_kaggles_copy(raw: Path, ham: Path, tmp_path: Path) -> None:
    """It has nine lesions at two sites; here one."""
    published = tmp_path / "HAM10000_metadata.tab"
    published.write_text("\n".join([HEADER, ROWS[0], ROWS[1].replace("rosendahl", "vidir_modern"), *ROWS[2:]]))
    tiny_sources.ham_metadata(ham, *WITHOUT_DATASET, header=HEADER.rsplit(",", 1)[0])
    cohort = converters.convert("ham10000", ham, 120, sites=published).cohort
    assert cohort is not None
    assert (cohort.unit_kind, cohort.units("rosendahl")) == ("lesion", ["HAM_1", "HAM_2"])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_masks_of_any_mode_while_black_and_white(raw: Path, ham: Path, mode: str) -> None:
    path = tiny_sources.ham_mask(ham, "ISIC_0000003")
    expected = pixels(path) // 255
    Image.open(path).convert(mode).save(path)
    label = pixels(converters.convert("ham10000", ham, 120).folder / "labelsTr" / "ISIC_0000003.png")
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == np.uint8


def test_grey_photographs_become_rgb(raw: Path, ham: Path) -> None:
    tiny_sources.write_jpg(tiny_sources.ham_image(ham, "ISIC_0000003"), mode="L")
    assert pixels(converters.convert("ham10000", ham, 120).folder / "imagesTr" / "ISIC_0000003_0000.png").shape == (*SIZE, 3)


def test_real_metadata(shared_data: Path) -> None:
    """The table alone: 7,470 lesions, nine of them at two sites."""
    path = shared_data / "site_tables" / "ham10000_metadata.csv"
    if not path.is_file():
        pytest.skip("the table is not on this machine")
    _, rows = ham10000._read_metadata([path], path.parent)
    cohort = ham10000._cohort(rows, path, SitesChoice())
    assert (len(cohort.cases), len(cohort.units())) == (10015, 7470)
    assert cohort.sites == ["rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"]
