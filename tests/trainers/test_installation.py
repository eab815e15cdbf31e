"""`adpfl install`: a release is put in place as a whole after every check, and nothing hostile is written or executed."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import Canary, compressed, edited_checkpoint, rewritten
from workspace import CONFIGURATION, PLANS, Workspace, own_workspace

from nnunet_adpfl.errors import AdpflError, InputError
from nnunet_adpfl.privacy import hash_chain
from nnunet_adpfl.trainers import release_archive
from nnunet_adpfl.trainers.installation import install
from nnunet_adpfl.trainers.release import export_run

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

DATASET = "Dataset801_Tiny"
MODEL = f"{DATASET}/nnUNetTrainer__{PLANS}__{CONFIGURATION}"
CHECKPOINT = f"{MODEL}/fold_0/checkpoint_final.pth"
LEDGER = f"{MODEL}/privacy/site-a.privacy_ledger.jsonl"
PLAN = f"{MODEL}/privacy_plan.json"
STATEMENT = f"{MODEL}/privacy_statement.json"
Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def exported(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with own_workspace(planned, tmp_path_factory.mktemp("exported")) as workspace:
        return Path(export_run(workspace.train(), workspace.base / "out")["zip"])


@pytest.fixture
def archive(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path / "release.zip"))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "results"


def check_refused(archive: Path, results: Path, reason: str) -> None:
    """One line, and not a file anywhere."""
    around = sorted(path.name for path in results.parent.iterdir() if path != results)
    with pytest.raises(AdpflError, match=reason) as error:
        install(archive)
    assert str(error.value).startswith(str(archive))
    assert str(error.value).isprintable()
    assert "nothing was installed" in str(error.value)
    assert not any(results.rglob("*"))
    assert sorted(path.name for path in results.parent.iterdir() if path != results) == around


def test_a_release_is_installed_where_nnunet_looks_for_it(archive: Path, results: Path, exported: Path) -> None:
    done = install(archive)
    assert done["folder"] == str(results / MODEL)
    assert 0 < done["epsilon"] <= 8
    with zipfile.ZipFile(exported) as source:
        installed = {str(path.relative_to(results)): path.read_bytes() for path in results.rglob("*") if path.is_file()}
        assert installed == {name: source.read(name) for name in source.namelist()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in results.rglob("*") if path.is_file()} == {0o644}
    assert [path.name for path in results.iterdir()] == [DATASET]


def test_an_installed_model_is_never_overwritten(archive: Path, results: Path) -> None:
    install(archive)
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="exists: move that model away"):
        install(archive)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def add(name: str, content: bytes = b"x") -> Callable[[Entries], Any]:
    return lambda entries: entries.update({name: content})


def drop(name: str) -> Callable[[Entries], Any]:
    return lambda entries: entries.pop(name)


NAMES: dict[str, tuple[Callable[[Entries], Any], str]] = {
    "parent": (add("../evil.py"), "does not belong"),
    "parent inside": (add(f"{MODEL}/privacy/../../../../evil.privacy_ledger.jsonl"), "does not belong"),
    "absolute": (add("/evil.py"), "does not belong"),
    "backslash": (add(f"{MODEL}\\evil.py"), "does not belong"),
    "drive": (add("C:evil.py"), "does not belong"),
    "code": (add(f"{MODEL}/nnUNetTrainer.py"), "does not belong"),
    "hidden site": (add(f"{MODEL}/privacy/.evil.privacy_ledger.jsonl"), "named after no site"),
    "two spellings": (add(f"{MODEL}/privacy/SITE-A.privacy_ledger.jsonl"), "is there twice"),
    "two models": (add(f"{DATASET}/nnUNetTrainer__other__2d/plans.json"), "2 models"),
    "two checkpoints": (add(f"{MODEL}/fold_1/checkpoint_final.pth"), "lacks one checkpoint"),
    "no checkpoint": (drop(CHECKPOINT), "lacks one checkpoint"),
    "no statement": (drop(STATEMENT), "lacks privacy_statement.json"),
    "no ledger": (lambda entries: [entries.pop(name) for name in list(entries) if "/privacy/" in name], "lacks privacy ledgers"),
    "one site's ledger missing": (drop(LEDGER), "sites is not what the ledgers"),
    "too many": (lambda entries: entries.update({f"{MODEL}/privacy/s{k}.privacy_ledger.jsonl": b"" for k in range(2_001)}), "2008 entries"),
    "bomb": (lambda entries: entries.update({LEDGER: bytes(2**27)}), "unpacks to more than"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_rule_15_archives_that_adpfl_export_does_not_write(case: str, archive: Path, results: Path) -> None:
    change, reason = NAMES[case]
    check_refused(rewritten(archive, change), results, reason)


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFDIR])
def test_rule_15_links_and_devices(mode: int, archive: Path, results: Path) -> None:
    check_refused(rewritten(archive, add(LEDGER, b"/etc/passwd"), {LEDGER: mode}), results, "link, a device")


def test_rule_15_an_entry_that_is_there_twice(archive: Path, results: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(STATEMENT, b"{}")
    check_refused(archive, results, "is there twice")


def test_rule_15_sizes_are_counted_not_believed(archive: Path, results: Path) -> None:
    """The table of contents says that the entry has ten bytes."""
    rewritten(archive, lambda entries: entries.update({LEDGER: bytes(2**24)}))
    data = bytearray(archive.read_bytes())
    at = data.index(LEDGER.encode(), data.index(b"PK\1\2")) - 46
    data[at + 24 : at + 28] = struct.pack("<L", 10)
    archive.write_bytes(data)
    check_refused(archive, results, "cannot be read as a zip|unpacks to more")


def test_rule_15_a_table_of_contents_that_would_fill_the_memory(archive: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(archive.read_bytes())
    data[-12:-8] = struct.pack("<HH", 60_000, 60_000)[:4]
    archive.write_bytes(data)
    monkeypatch.setattr(release_archive.zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    check_refused(archive, results, "60000 entries")


@pytest.mark.parametrize("damage", [b"", b"PK", bytes(100)])
def test_rule_15_a_file_that_is_no_zip(damage: bytes, archive: Path, results: Path) -> None:
    archive.write_bytes(damage)
    check_refused(archive, results, "does not end as a zip")


def test_rule_15_a_cut_release(archive: Path, results: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    check_refused(archive, results, "does not end as a zip")


def test_rule_15_a_checkpoint_in_a_release_is_not_executed(archive: Path, results: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    def change(entries: Entries) -> None:
        entries[CHECKPOINT] = edited_checkpoint(entries[CHECKPOINT], lambda content: content.update(logging=Canary(canary)))

    rewritten(archive, change)
    check_refused(archive, results, "plain tensors")
    assert not canary.exists()


def test_rule_15_a_compressed_checkpoint_in_a_release(archive: Path, results: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner.pth"

    def change(entries: Entries) -> None:
        inner.write_bytes(entries[CHECKPOINT])
        compressed(inner)
        entries[CHECKPOINT] = inner.read_bytes()

    check_refused(rewritten(archive, change), results, "compressed")


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "not finite": (lambda c: next(iter(c["network_weights"].values())).fill_(float("nan")), "not finite"),
    "double precision": (lambda c: c["network_weights"].update(extra=torch.zeros(1, dtype=torch.float64)), "not a plain tensor"),
    "stretched": (lambda c: c["network_weights"].update(extra=torch.zeros(1).expand(10**15)), "not a plain tensor"),
    "more than a release has": (lambda c: c.update(adpfl={}), "other parts than a release.*adpfl"),
    "other plans": (lambda c: c["init_args"]["plans"].update(plans_name="x"), "made with other plans"),
    "another trainer": (lambda c: c.update(trainer_name="Evil"), "made with other plans"),
    "nothing": (lambda c: c.update(network_weights={}), "made with other plans"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_rule_15_checkpoints_that_are_no_release(case: str, archive: Path, results: Path) -> None:
    change, reason = CHECKPOINTS[case]
    rewritten(archive, lambda entries: entries.update({CHECKPOINT: edited_checkpoint(entries[CHECKPOINT], change)}))
    check_refused(archive, results, reason)


def edited_json(name: str, change: Callable[[Any], Any]) -> Callable[[Entries], Any]:
    def edit(entries: Entries) -> None:
        content = json.loads(entries[name])
        change(content)
        entries[name] = json.dumps(content).encode()

    return edit


def edited_ledger(change: Callable[[dict[str, Any]], Any]) -> Callable[[Entries], Any]:
    """As a forger does who chains the lines anew."""

    def edit(entries: Entries) -> None:
        head, text = hash_chain.GENESIS, ""
        for line in map(json.loads, entries[LEDGER].splitlines()):
            change(line)
            sealed = hash_chain.sealed({k: v for k, v in line.items() if k not in ("previous", "hash")}, head)
            head, text = str(sealed["hash"]), text + json.dumps(sealed) + "\n"
        entries[LEDGER] = text.encode()

    return edit


def architecture(plans: Any) -> Any:
    return plans["configurations"][CONFIGURATION]["architecture"]


CLAIMS: dict[str, tuple[Callable[[Entries], Any], str]] = {
    "smaller epsilon": (edited_json(STATEMENT, lambda s: s.update(epsilon=s["epsilon"] * 0.9)), "epsilon is not what the ledgers"),
    "no epsilon": (edited_json(STATEMENT, lambda s: s.update(epsilon=None)), "epsilon is not what the ledgers"),
    "smaller delta": (edited_json(STATEMENT, lambda s: s.update(delta=1e-9)), "delta is not what the ledgers"),
    "stronger guarantee": (edited_json(STATEMENT, lambda s: s.update(guarantee="formal")), "guarantee is not what the ledgers"),
    "fewer steps": (edited_json(STATEMENT, lambda s: s["sites"]["site-a"].update(steps=1)), "steps is not what the ledgers"),
    "fewer sites": (edited_json(STATEMENT, lambda s: s["sites"].pop("site-a")), "sites is not what the ledgers"),
    "more noise in the ledger": (
        edited_ledger(lambda line: line.update(noise_multiplier=99.0) if "noise_multiplier" in line else None), "is not what the ledgers",
    ),
    "ledger edited": (lambda entries: entries.update({LEDGER: entries[LEDGER].replace(b'"steps": 2', b'"steps": 1', 1)}), "was edited"),
    "another privacy plan": (edited_json(PLAN, lambda p: p.update(epsilon=1.0)), "not the ledger of this privacy plan"),
    "impossible privacy plan": (edited_json(PLAN, lambda p: p.update(epsilon=-1.0)), "epsilon"),
    "plans that call something": (
        edited_json(f"{MODEL}/plans.json", lambda p: architecture(p).update(network_class_name="torch.hub.load")), "not one of nnU-Net's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLAIMS)
def test_rule_12_claims_that_do_not_follow_from_the_ledgers(case: str, archive: Path, results: Path) -> None:
    change, reason = CLAIMS[case]
    check_refused(rewritten(archive, change), results, reason)


def test_rule_15_the_command_says_it_in_one_line(
    archive: Path, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunet_adpfl.cli import main

    monkeypatch.setattr("sys.argv", ["adpfl", "install", str(archive), "--json"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(results / MODEL)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_workspace_installs_beside_its_own_runs(workspace: Workspace, archive: Path) -> None:
    run = workspace.train("2d", rounds=1)
    install(archive)
    assert run.is_dir()
