"""``adpfl cohort``: writes cohort.json from a table or simulated, and refuses bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_dataset

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part in ("raw", "preprocessed", "results"):
        (tmp_path / part).mkdir()
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    tiny_dataset.write_raw(tmp_path / "raw", patients=12, side=8)
    return tmp_path / "raw" / tiny_dataset.NAME


@pytest.fixture
def adpfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command; returns exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["adpfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


def table(folder: Path, header: str, rows: list[str]) -> Path:
    path = folder / "sites.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_rule_01_known_units_are_never_parted(raw: Path, adpfl: Command, tmp_path: Path) -> None:
    cases, before = names(raw), (raw / "cohort.json").read_bytes()
    parting = table(tmp_path, "case,site,patient", [f"{case},{'north' if case.endswith('0') else 'south'},{case}" for case in cases])
    for arguments in (("--sites", parting), ("--simulate-sites", 2, "--unit", "case"), ("--simulate-sites", 2, "--unit", "lesion")):
        code, _, err = adpfl("cohort", 801, *arguments, "--overwrite")
        assert (code, err.count("\n")) == (2, 1), arguments
        assert "two patients" in err or "the units of this cohort are patients" in err
        assert (raw / "cohort.json").read_bytes() == before


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_rule_01_units_of_a_conversion_are_not_made_up_again(raw: Path, adpfl: Command, damage: Callable[[Path], object]) -> None:
    record = {"format": 2, "signature": "x", "images": 1, "labels": 1, "left_out": {}, "has_cohort": True}
    (raw / "conversion.json").write_text(json.dumps(record))
    damage(raw / "cohort.json")
    code, _, err = adpfl("cohort", 801, "--simulate-sites", 2, "--unit", "patient", "--overwrite")
    assert code == 2
    assert "which images are of one patient or lesion: run `adpfl convert ... --overwrite`" in err


def names(raw: Path) -> list[str]:
    return list(cohorts.load(raw).cases)


def test_table_with_patients(raw: Path, adpfl: Command, tmp_path: Path) -> None:
    cases = names(raw)
    (raw / "cohort.json").unlink()
    path = table(tmp_path, "case,site,patient", [f"{case},{'north' if case < 'case_06' else 'south'},{case[:7]}" for case in cases])
    code, out, _ = adpfl("cohort", 801, "--sites", path, "--json")
    assert code == 0
    written = cohorts.load(raw)
    assert (written.unit_kind, written.sites, len(written.units())) == ("patient", ["north", "south"], 12)
    assert json.loads(out)["sites"] == {"north": {"units": 6, "cases": 8}, "south": {"units": 6, "cases": 8}}


def test_without_any_patients_the_unit_is_the_case_unless_the_user_says_so(raw: Path, adpfl: Command, tmp_path: Path) -> None:
    path = table(tmp_path, "case,site", [f"{case},one" for case in names(raw)])
    (raw / "cohort.json").unlink()
    code, _, err = adpfl("cohort", 801, "--sites", path)
    assert (code, cohorts.load(raw).unit_kind) == (0, "case")
    assert "every case is a unit of its own" in err
    code, _, err = adpfl("cohort", 801, "--sites", path, "--unit", "patient", "--overwrite")
    assert (code, cohorts.load(raw).unit_kind, err) == (0, "patient", "")


def test_known_patients_are_kept_when_only_the_sites_change(raw: Path, adpfl: Command, tmp_path: Path) -> None:
    before = cohorts.load(raw)
    path = table(tmp_path, "case,site", [f"{case},one" for case in before.cases])
    code, _, err = adpfl("cohort", 801, "--sites", path)
    assert code == 2
    assert "cohort.json exists and differs: give --overwrite" in err
    assert cohorts.load(raw).digest() == before.digest()
    assert adpfl("cohort", 801, "--sites", path, "--overwrite")[0] == 0
    after = cohorts.load(raw)
    assert (after.sites, after.units(), after.unit_kind) == (["one"], before.units(), "patient")
    assert adpfl("cohort", 801, "--sites", path)[0] == 0, "the same again is no conflict"


@pytest.mark.parametrize("skew", ["equal", "quantity:0.5", "dirichlet:0.5"])
def test_simulated_sites_keep_patients_together(raw: Path, adpfl: Command, skew: str) -> None:
    before = cohorts.load(raw)
    arguments = ("cohort", 801, "--simulate-sites", 3, "--skew", skew, "--seed", 4, "--overwrite", "--json")
    code, out, _ = adpfl(*arguments)
    assert code == 0
    found = cohorts.load(raw)  # construction checks that no unit is at two sites
    assert (found.sites, found.units()) == (["site-1", "site-2", "site-3"], before.units())
    assert sum(numbers["cases"] for numbers in json.loads(out)["sites"].values()) == len(before.cases)
    assert adpfl(*arguments)[1] == out
    assert cohorts.load(raw).digest() == found.digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --sites FILE.csv or --simulate-sites N"),
        (("--simulate-sites", 2, "--sites", "x.csv"), "give either"),
        (("--sites", "absent.csv"), "absent.csv cannot be read"),
        (("--simulate-sites", 0), "--simulate-sites 0 must be 1 or more"),
        (("--simulate-sites", 7), "needs at least 14 units"),
        (("--simulate-sites", 2, "--skew", "steep"), "--skew 'steep' is unknown"),
        (("--simulate-sites", 2, "--unit", "ward"), "--unit 'ward' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(raw: Path, adpfl: Command, arguments: tuple[object, ...], message: str) -> None:
    before = (raw / "cohort.json").read_bytes()
    code, out, err = adpfl("cohort", 801, *arguments, "--overwrite")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert (raw / "cohort.json").read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [(["case_00_0,a"], "lacks cases"), (["ghost,a"], "does not have"), (["case_00_0,a", "case_00_0,a"], "more than once"), ([], "no rows")],
)
def test_bad_tables(raw: Path, adpfl: Command, tmp_path: Path, rows: list[str], message: str) -> None:
    code, _, err = adpfl("cohort", 801, "--sites", table(tmp_path, "case,site", rows), "--overwrite")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_unknown_data_set_and_damaged_cohort(raw: Path, adpfl: Command) -> None:
    code, _, err = adpfl("cohort", 999, "--simulate-sites", 2)
    assert (code, "unknown" in err) == (2, True)
    (raw / "cohort.json").write_text("{")
    code, _, err = adpfl("cohort", 801, "--simulate-sites", 2)
    assert (code, "--overwrite" in err) == (2, True)
    assert adpfl("cohort", 801, "--simulate-sites", 2, "--overwrite")[0] == 0
    assert cohorts.load(raw).unit_kind == "case"
