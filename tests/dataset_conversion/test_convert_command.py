"""``adpfl convert`` and ``adpfl synth``: what they print, and one line with a non-zero code on bad input."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_sources
from PIL import Image

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cli import synth
from nnunet_adpfl.dataset_conversion import converters

Command = Callable[..., tuple[int, str, str]]


def test_convert_prints_folder_cases_units_and_sites(raw: Path, ham: Path, adpfl: Command) -> None:
    code, out, err = adpfl("convert", "ham10000", ham, 120)
    assert code == 0, err
    assert out.splitlines() == [
        f"{raw / 'Dataset120_HAM10000'}: 5 cases, 4 lesions, 2 sites",
        "  rosendahl: 2 lesions, 3 cases",
        "  vidir_modern: 2 lesions, 2 cases",
    ]
    code, out, err = adpfl("convert", "ham10000", ham, 120)
    assert (code, "complete already" in out, err) == (0, True, "")


def test_convert_json_is_alone_on_standard_output(raw: Path, msd: Path, adpfl: Command, tmp_path: Path) -> None:
    sites = tmp_path / "sites.csv"
    sites.write_text("case;site\n" + "".join(f"{case};north\n" for case in tiny_sources.MSD_CASES))
    code, out, _ = adpfl("convert", "msd", msd, 77, "--sites", sites, "--name", "Mine", "--json")
    folder = raw / "Dataset077_Mine"
    assert code == 0
    assert json.loads(out) == {
        "folder": str(folder),
        "dataset": 77,
        "cases": 4,
        "written": True,
        "left_out": {},
        "unit": "case",
        "units": 4,
        "sites": {"north": {"units": 4, "cases": 4}},
    }
    assert cohorts.load(folder).sites == ["north"]


def test_convert_without_sites_says_how_to_add_them(raw: Path, msd: Path, adpfl: Command) -> None:
    code, out, _ = adpfl("convert", "msd", msd, 77)
    assert (code, out.count("\n")) == (0, 1)
    assert "adpfl cohort 77" in out
    code, out, _ = adpfl("convert", "msd", msd, 77, "--json")
    assert json.loads(out)["sites"] == {}
    assert json.loads(out)["unit"] is None


def test_synth_then_convert(raw: Path, adpfl: Command, tmp_path: Path) -> None:
    arguments = ("synth", "ham10000", tmp_path / "made", "--cases", 12, "--sites", 2, "--size", "32x40", "--seed", 3)
    code, out, err = adpfl(*arguments, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["lesions"], sorted(told["sites"])) == (12, ["rosendahl", "vidir_modern"])
    assert told["images"] == sum(site["images"] for site in told["sites"].values()) > 12
    assert Image.open(next((tmp_path / "made").rglob("*.jpg"))).size == (40, 32)
    code, out, _ = adpfl("convert", "ham10000", tmp_path / "made", 120, "--name", "Made", "--json")
    assert (code, json.loads(out)["units"], json.loads(out)["cases"]) == (0, 12, told["images"])
    code, out, err = adpfl(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is not empty" in err


def test_synth_prints_lesions_and_images(adpfl: Command, tmp_path: Path) -> None:
    code, out, _ = adpfl("synth", "ham10000", tmp_path / "made", "--cases", 5, "--sites", 1, "--size", "32X32")
    assert code == 0
    assert out.splitlines() == [
        f"{tmp_path / 'made'}: 5 lesions, 6 images, 1 sites",
        "  rosendahl: 5 lesions, 6 images",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "kits", "SRC", 120), "data set 'kits' is unknown; use one of ham10000, isic2018"),
        (("convert", "ham10000", "absent", 120), "absent is no folder"),
        (("convert", "msd", "SRC", 120), "is no Decathlon folder"),
        (("convert", "ham10000", "SRC", 0), "DATASET_ID 0 is out of range"),
        (("convert", "ham10000", "SRC", 120, "--name", "a b"), "--name 'a b'"),
        (("convert", "ham10000", "SRC", 120, "--sites", "absent.csv"), "absent.csv cannot be read"),
        (("synth", "kits", "OUT", "--cases", 20), "data set 'kits' is unknown; use one of ham10000"),
        (("synth", "ham10000", "OUT", "--cases", 3), "--cases 3 lesions are too few for 4 sites"),
        (("synth", "ham10000", "OUT", "--cases", 20, "--size", "small"), "--size 'small': write the lengths of the axes"),
        (("synth", "ham10000", "OUT", "--cases", 20, "--heterogeneity", 2), "--heterogeneity 2.0 is out of range"),
    ],
)
def test_bad_input_is_one_line(
    raw: Path, ham: Path, adpfl: Command, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    places = {"SRC": ham, "OUT": tmp_path / "out"}
    code, out, err = adpfl(*(places.get(str(argument), argument) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(raw.iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("convert", "msd", "x", "four"), ("synth", "ham10000", "x"), ("convert", "msd")])
def test_wrong_usage_is_refused_without_a_traceback(adpfl: Command, arguments: tuple[str, ...]) -> None:
    code, _, err = adpfl(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_full_disk_is_one_line(raw: Path, ham: Path, adpfl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "picture.png")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = adpfl("convert", "ham10000", ham, 120)
    assert code == 2
    assert err.splitlines()[-1] == "error: No space left on device: picture.png"
    assert "Traceback" not in err
    assert list(raw.iterdir()) == []


def test_every_set_in_the_tables_exists() -> None:
    from importlib import import_module

    for module in converters.CONVERTERS.values():
        assert callable(import_module(f"nnunet_adpfl.dataset_conversion.{module}").find)
    for module in synth.GENERATORS.values():
        assert callable(import_module(module).generate)
