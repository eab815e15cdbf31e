"""A raw data set is written as a whole or not at all: numbers taken, full disks, killed processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_sources
from PIL import Image

from nnunet_adpfl import atomic_files
from nnunet_adpfl.dataset_conversion import atomic_folder, converters, nifti_case, raw_dataset
from nnunet_adpfl.errors import InputError

Setter = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_a_number_that_another_data_set_has_is_refused(raw: Path, ham: Path, variable: str) -> None:
    other = Path(os.environ[variable]) / "Dataset120_Theirs"
    other.mkdir()
    tiny_sources.check_refused(
        raw, lambda: converters.convert("ham10000", ham, 120), "number 120 belongs to Dataset120_Theirs", "another DATASET_ID"
    )
    assert other.is_dir()
    assert converters.convert("ham10000", ham, 120, name="Theirs", overwrite=True).folder.name == "Dataset120_Theirs"


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [
        (0, None, "out of range"),
        (1000, None, "out of range"),
        (-3, None, "out of range"),
        (3, "a b", "--name 'a b'"),
        (3, "../x", "--name"),
    ],
)
def test_bad_numbers_and_names(raw: Path, ham: Path, number: int, name: str | None, message: str) -> None:
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, number, name=name), message)


def test_without_the_variable_the_line_names_it(ham: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    tiny_sources.check_refused(tmp_path, lambda: converters.convert("ham10000", ham, 120), "nnUNet_raw is not set")


def test_the_same_again_does_nothing(raw: Path, ham: Path) -> None:
    assert converters.convert("ham10000", ham, 120).written
    before = tiny_sources.content(raw)
    again = converters.convert("ham10000", ham, 120)
    assert (again.written, again.cases, again.cohort is not None) == (False, 5, True)
    assert tiny_sources.content(raw) == before


def test_another_source_needs_overwrite(raw: Path, ham: Path) -> None:
    first = converters.convert("ham10000", ham, 120)
    tiny_sources.ham_image(ham, "ISIC_0000001").unlink()
    tiny_sources.write_jpg(ham / "HAM10000_images_part_1" / "ISIC_0000001.jpg", shade=201)
    tiny_sources.check_refused(
        raw, lambda: converters.convert("ham10000", ham, 120), "made from other files or settings: give --overwrite"
    )
    before = (first.folder / "imagesTr" / "ISIC_0000001_0000.png").read_bytes()
    assert converters.convert("ham10000", ham, 120, overwrite=True).written
    assert (first.folder / "imagesTr" / "ISIC_0000001_0000.png").read_bytes() != before


def test_a_data_set_that_lost_a_file_is_not_taken_for_complete(raw: Path, ham: Path) -> None:
    folder = converters.convert("ham10000", ham, 120).folder
    (folder / "labelsTr" / "ISIC_0000001.png").unlink()
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "--overwrite")
    assert converters.convert("ham10000", ham, 120, overwrite=True).written


def test_the_record_stays_out_of_dataset_json(raw: Path, ham: Path) -> None:
    folder = converters.convert("ham10000", ham, 120).folder
    record = json.loads((folder / "conversion.json").read_text())
    assert (record["converter"], record["images"], record["labels"]) == ("ham10000", 5, 5)
    assert record["signature"] not in (folder / "dataset.json").read_text()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL: dict[str, Setter] = {
    "images": lambda patch: patch.setattr(nifti_case.shutil, "copyfile", full_disk),
    "pictures": lambda patch: patch.setattr(Image.Image, "save", full_disk),
    "json": lambda patch: patch.setattr(atomic_files, "write_bytes", full_disk),
    "flush": lambda patch: patch.setattr(atomic_folder, "_flush_to_disk", full_disk),
}


@pytest.mark.parametrize("where", FULL)
def test_full_disk(raw: Path, msd: Path, ham: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    convert = (
        (lambda: converters.convert("ham10000", ham, 120, overwrite=True)) if where == "pictures" else (lambda: _convert_msd(msd))
    )
    convert()
    before = tiny_sources.content(raw)
    with monkeypatch.context() as patch:
        FULL[where](patch)
        with pytest.raises(OSError, match="No space left"):
            convert()
    assert tiny_sources.content(raw) == before
    assert convert().written


def _convert_msd(source: Path) -> converters.WrittenDataset:
    return converters.convert("msd", source, 77, overwrite=True)


SLOW_CONVERSION = """
    import sys, time
    from pathlib import Path
    from nnunet_adpfl.dataset_conversion import converters, nifti_case

    write = nifti_case.write_unchanged
    def slowly(volume, target, linked):
        write(volume, target, linked)
        if "brain_03" in target.name:
            print("half done", flush=True)
            time.sleep(60)
    nifti_case.write_unchanged = slowly
    converters.convert("msd", Path(sys.argv[1]), 77, overwrite=True)
"""


@pytest.mark.parametrize("is_there", [False, True])
def test_kill_leaves_no_half_data_set_and_the_next_call_completes(raw: Path, msd: Path, is_there: bool) -> None:
    target = raw / "Dataset077_Brain"
    if is_there:
        _convert_msd(msd)
    before = tiny_sources.content(target) if is_there else {}
    environment = {**os.environ, "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SLOW_CONVERSION), str(msd)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half done\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [path for path in raw.iterdir() if path.name.endswith(".tmp")], "it was in the middle of its work"
    assert target.exists() == is_there
    if is_there:
        assert tiny_sources.content(target) == before
    assert _convert_msd(msd).written
    assert [path.name for path in raw.iterdir()] == [target.name], "what the killed process left is gone"
    assert len(list((target / "imagesTr").iterdir())) == 4


def test_what_a_killed_conversion_finished_is_not_done_again(raw: Path, msd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SLOW_CONVERSION), str(msd)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    (work,) = [path for path in raw.iterdir() if path.name.endswith(".tmp")]
    kept = {path.name: path.stat().st_ino for path in (work / "imagesTr").iterdir()}
    assert sorted(kept) == ["brain_01_0000.nii.gz", "brain_02_0000.nii.gz"]
    written = _convert_msd(msd)
    assert "2 cases are there from a conversion that was stopped" in capsys.readouterr().err
    for name, inode in kept.items():
        assert (written.folder / "imagesTr" / name).stat().st_ino == inode, "the same file, not written anew"
    whole = tiny_sources.content(written.folder)
    assert not [name for name in whole if name.startswith(".")]
    _convert_msd(msd)
    assert {name: data for name, data in tiny_sources.content(written.folder).items() if data} == {k: v for k, v in whole.items() if v}


def test_leavings_made_from_other_files_or_before_a_restart_are_not_used(
    raw: Path, msd: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    keys = []
    for boot in ("first", "second"):
        (tmp_path / "boot").write_text(boot)
        monkeypatch.setattr(raw_dataset, "_BOOT", tmp_path / "boot")
        with monkeypatch.context() as patch:
            patch.setattr(raw_dataset, "_write_descriptions", stopped)
            with pytest.raises(KeyboardInterrupt):
                _convert_msd(msd)
        keys += [path.name for path in raw.iterdir() if path.name.endswith(".tmp")]
    assert len(keys) == len(set(keys)) == 2, "each attempt left one folder, and the second removed the first"
    (msd / "imagesTr" / "brain_01.nii.gz").touch()
    assert _convert_msd(msd).written
    assert [path.name for path in raw.iterdir()] == ["Dataset077_Brain"]


def test_two_conversions_of_one_source_at_once(raw: Path, msd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = raw_dataset._write_descriptions

    def meanwhile(*arguments: Any) -> Any:
        with pytest.raises(InputError, match="another process is writing"):
            _convert_msd(msd)
        return write(*arguments)

    monkeypatch.setattr(raw_dataset, "_write_descriptions", meanwhile)
    assert _convert_msd(msd).written


def test_a_torn_line_of_the_work_in_progress_is_no_finished_case(tmp_path: Path) -> None:
    (tmp_path / ".done").write_text("case_10\ncase_1")
    assert raw_dataset._done(tmp_path) == {"case_10"}


def test_a_read_only_target_is_one_line(raw: Path, msd: Path, monkeypatch: pytest.MonkeyPatch, adpfl: Any) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(raw))

    monkeypatch.setattr(Path, "mkdir", read_only)  # root, who runs some tests, could write anywhere
    code, _, err = adpfl("convert", "msd", msd, 77)
    assert (code, err) == (2, f"error: Read-only file system: {raw}\n")
    assert list(raw.iterdir()) == []


def test_all_cases_that_lack_files_are_listed_before_anything_is_read(raw: Path, msd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 3):
        (msd / "labelsTr" / f"brain_0{number}.nii.gz").write_bytes(b"damaged")
        (msd / "imagesTr" / f"brain_0{number}.nii.gz").unlink()
    tiny_sources.check_refused(
        raw, lambda: _convert_msd(msd), "3 of 4 cases are broken", *(f"brain_0{number} (image" for number in (1, 2, 3))
    )
    written = converters.convert("msd", msd, 77, skip_broken=True)
    assert (written.cases, len(written.left_out)) == (1, 3)
    assert "3 of 4 cases are left out" in capsys.readouterr().err


def test_a_data_set_that_lost_its_units_is_not_complete(raw: Path, ham: Path) -> None:
    folder = converters.convert("ham10000", ham, 120).folder
    (folder / "cohort.json").unlink()
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "--overwrite")
    converters.convert("ham10000", ham, 120, overwrite=True)
    (folder / "labelsTr" / "ISIC_0000001.png").write_bytes(b"")
    tiny_sources.check_refused(raw, lambda: converters.convert("ham10000", ham, 120), "--overwrite")


@pytest.mark.parametrize("error", [MemoryError("too large"), OSError(errno.EIO, "Input/output error", "disk")])
def test_trouble_of_the_machine_is_no_broken_case(raw: Path, msd: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    read_bytes = Path.read_bytes

    def trouble(path: Path) -> bytes:
        if path.name.endswith(".nii.gz"):
            raise error
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", trouble)
    with pytest.raises(type(error)):
        converters.convert("msd", msd, 77, skip_broken=True)
    assert list(raw.iterdir()) == []


def test_a_file_that_changes_while_it_is_read(raw: Path, msd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = nifti_case.write_unchanged

    def changing(volume: Any, target: Path, linked: bool) -> None:
        write(volume, target, linked)
        if volume.path.name == "brain_02.nii.gz":
            os.utime(volume.path, ns=(1, 1))

    monkeypatch.setattr(nifti_case, "write_unchanged", changing)
    tiny_sources.check_refused(raw, lambda: converters.convert("msd", msd, 77), "brain_02 changed while they were read")


def test_a_long_list_of_broken_cases_is_told_in_full(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [f"brain_{number:02d}" for number in range(9)]
    source = tiny_sources.write_msd(tmp_path / "Task77_Brain", cases)
    for case in cases[:8]:
        (source / "labelsTr" / f"{case}.nii.gz").unlink()
    tiny_sources.check_refused(raw, lambda: _convert_msd(source), "8 of 9 cases", "and 3 more, listed above")
    told = capsys.readouterr().err
    assert all(f"broken: {case} (label" in told for case in cases[:8])
