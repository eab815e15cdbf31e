"""Every reader of a file from outside, given damaged ones: a value or one line that says what is wrong, nothing else.

ADPFL_FUZZ=N sets the number of examples of each reader and kind (default: a few, for `make test`); with
ADPFL_FUZZ_COUNTS=FILE the numbers of inputs are appended there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from damaged_binary import any_bytes
from hypothesis import HealthCheck, Phase, given, settings
from reader import Reader, try_one
from workspace import Workspace, own_workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "dataset_conversion"))
sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from site_readers import plan_readers, run_readers, update_readers
from source_readers import source_readers

EXAMPLES = int(os.environ.get("ADPFL_FUZZ", "12"))
LARGE = "ADPFL_FUZZ" in os.environ
COUNTS = os.environ.get("ADPFL_FUZZ_COUNTS")
pytestmark = [pytest.mark.fuzz, pytest.mark.slow]
READERS = (
    "stored update", "optimizer state",
    "privacy ledger", "privacy ledger of a run", "privacy ledger, resumed", "privacy odometer", "checkpoint of a run",
    "checkpoint, its ledgers", "checkpoint for prediction", "checkpoint, evaluated", "run.json", "run.json, exported",
    "frozen privacy plan, exported", "privacy ledger, exported", "plans.json of a run, exported", "rounds.jsonl", "metrics.csv",
    "rounds.jsonl, in the report", "local_log.jsonl, in the report", "metrics.csv, in the report",
    "evaluation.json, in the report", "release zip",
    "cohort.json", "splits_final.json", "dataset.json (raw)", "dataset.json (preprocessed)", "PLANS.json", "public PLANS.json",
    "privacy plan", "examined.json", "preprocessing records",
    "sites table", "HAM10000 metadata", "BraTS 2024 workbook", "FeTS partition", "BraTS 2020 name mapping",
    "MSD dataset.json", "NIfTI image", "NIfTI label", "JPEG photograph", "PNG mask",
    "KiTS image", "KiTS label", "BraTS channel", "BraTS label", "prediction, volume", "prediction, picture",
    "NIfTI image, examined", "NIfTI label, examined", "PNG image, examined", "PNG label, examined",
)  # fmt: skip


@pytest.fixture(scope="module")
def readers(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Reader, Path]]]:
    """Name -> reader and the folder that is watched."""
    from nnunet_adpfl.evaluation.run_evaluation import evaluate_run

    found: dict[str, tuple[Reader, Path]] = {}
    with contextlib.ExitStack() as stack:
        updates = stack.enter_context(own_workspace(planned, tmp_path_factory.mktemp("updates")))
        for reader in update_readers(updates):
            found[reader.name] = reader, updates.base / "run"
        workspace: Workspace = stack.enter_context(own_workspace(planned, tmp_path_factory.mktemp("site")))
        evaluate_run(workspace.train())
        for reader in [*run_readers(workspace), *plan_readers(workspace)]:
            found[reader.name] = reader, workspace.base
        sources = tmp_path_factory.mktemp("sources")
        for reader in source_readers(sources, planned / "raw"):
            found[reader.name] = reader, sources
        yield found


def test_every_reader_is_listed_and_reads_its_valid_file(readers: dict[str, tuple[Reader, Path]]) -> None:
    assert tuple(readers) == READERS
    for reader, _ in readers.values():
        valid = {path: path.read_bytes() for path in (reader.file, *reader.restored)}
        reader.check(reader.read())
        for path, content in valid.items():
            path.write_bytes(content)


@pytest.mark.parametrize("kind", ["bytes", "structure"])
@pytest.mark.parametrize("name", READERS)
def test_rule_15_damaged_files_are_refused_in_one_line(name: str, kind: str, readers: dict[str, tuple[Reader, Path]]) -> None:
    reader, root = readers[name]
    valid = {path: path.read_bytes() for path in (reader.file, *reader.restored)}
    content = valid[reader.file]
    inputs = 0

    @settings(
        max_examples=max(2, EXAMPLES // reader.cost), deadline=None, database=None, derandomize=not LARGE,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate,),
    )  # fmt: skip
    @given(any_bytes(content) if kind == "bytes" else reader.structured(content))
    def read(data: bytes) -> None:
        nonlocal inputs
        inputs += 1
        try_one(reader, data, valid, root)

    try:
        read()
    finally:
        for path, original in valid.items():
            path.write_bytes(original)
        if COUNTS:
            with Path(COUNTS).open("a") as file:
                file.write(f"{name}\t{kind}\t{inputs}\n")
