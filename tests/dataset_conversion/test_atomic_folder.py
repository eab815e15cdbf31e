"""A folder appears as a whole or not at all, also after a process was killed while it built one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from nnunet_adpfl.dataset_conversion import atomic_folder
from nnunet_adpfl.dataset_conversion.atomic_folder import replacing_folder
from nnunet_adpfl.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "set"
    with replacing_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("new")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["set"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~atomic_folder._umask(), "others may read it, as with mkdir"


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_an_error_keeps_what_was_there(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "set"

    def write_and_fail() -> None:
        with replacing_folder(target) as folder:
            (folder / "file").write_text("new")
            raise error

    for _ in range(2):  # first without, then with an earlier folder
        with pytest.raises(type(error)):
            write_and_fail()
        assert names(tmp_path) == (["set"] if target.exists() else [])
        target.mkdir(exist_ok=True)
        (target / "file").write_text("old")
    assert (target / "file").read_text() == "old"


def test_the_earlier_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    (target / "only in the old one").touch()
    with replacing_folder(target) as folder:
        (folder / "file").touch()
        assert names(target) == ["only in the old one"]
    assert names(target) == ["file"]


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").touch()
    with pytest.raises(InputError, match="is a file"), replacing_folder(tmp_path / "set"):
        pass
    assert names(tmp_path) == ["set"]


def test_the_earlier_folder_comes_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").touch()
    rename = os.replace

    def failing(source: Path, destination: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError("refused")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="refused"), replacing_folder(target):
        pass
    assert names(target) == ["old"]
    assert names(tmp_path) == ["set"]


def test_leavings_of_the_dead_go_and_work_of_the_living_stays(tmp_path: Path) -> None:
    dead, other = tmp_path / ".set.dead.tmp", tmp_path / ".settler.x.tmp"
    dead.mkdir()
    other.mkdir()
    (tmp_path / ".set.lock").touch()
    descriptor = os.open(tmp_path / ".set.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing"), replacing_folder(tmp_path / "set"):
            pass
        assert names(tmp_path) == [".set.dead.tmp", ".set.lock", ".settler.x.tmp"]
    finally:
        os.close(descriptor)
    with replacing_folder(tmp_path / "set"):
        pass
    assert names(tmp_path) == [".settler.x.tmp", "set"]


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "disk" / "set" / "old").touch()
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "set")
    for content in ("first", "second"):
        with replacing_folder(tmp_path / "set") as folder:
            (folder / content).touch()
        assert (tmp_path / "set").is_symlink()
        assert names(tmp_path / "disk" / "set") == [content]
        assert names(tmp_path / "disk") == ["set"]


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "set"

    def meanwhile() -> None:
        with replacing_folder(target, may_replace=False):
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(InputError, match="by somebody else meanwhile"):
        meanwhile()
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["set"]


def test_a_swap_cut_in_the_middle_is_undone(tmp_path: Path) -> None:
    previous = tmp_path / ".set.replaced"
    previous.mkdir()
    (previous / "old").touch()
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "set"):
        raise RuntimeError
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["old"]
