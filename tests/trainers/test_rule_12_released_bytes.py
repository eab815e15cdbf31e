"""Rule 12: every byte of a release, however it is packed, searched for what must not leave the site."""

from __future__ import annotations

import csv
import getpass
import io
import json
import re
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workspace import Workspace, own_workspace, read, read_lines

from nnunet_adpfl import json_files
from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
from nnunet_adpfl.privacy import hash_chain
from nnunet_adpfl.trainers.release import export_run

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

DIGITS = 9  # numbers are compared rounded to this many digits: that many in common are no coincidence
LONG_ENOUGH = 5  # a shorter text is in compressed bytes or weights by chance; it is looked for as a word instead
NAMES_OF_THE_MACHINE = {"user": getpass.getuser(), "host": socket.gethostname()}


@pytest.fixture(scope="module")
def site(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run that was trained, evaluated and exported to ``base/out``; read only."""
    with own_workspace(planned, tmp_path_factory.mktemp("whole_site")) as workspace:
        run = workspace.train()
        evaluate_run(run)
        export_run(run, workspace.base / "out")
    return workspace


def released_parts(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """The bytes of a file and of everything that is packed inside it, zip in zip."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in archive.namelist():
                yield from released_parts(archive.read(inner), f"{name}/{inner}")


def values(content: Any) -> Iterator[Any]:
    """Every key and value of decoded JSON or pickle, tensors left out."""
    if isinstance(content, dict):
        for key, inner in content.items():
            yield key
            yield from values(inner)
    elif isinstance(content, (list, tuple)):
        for inner in content:
            yield from values(inner)
    elif not isinstance(content, torch.Tensor):
        yield content


def decoded(parts: list[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
    for name, data in parts:
        if name.endswith(".json"):
            yield from ((name, value) for value in values(json_files.parse(data.decode())))
        elif name.endswith(".jsonl"):
            yield from ((name, value) for line in data.splitlines() for value in values(json.loads(line)))
        elif name.endswith(".pth"):
            yield from ((name, value) for value in values(torch.load(io.BytesIO(data), weights_only=True)))


def parts_of(site: Workspace) -> list[tuple[str, bytes]]:
    files = [path for path in (site.base / "out").rglob("*") if path.is_file()]
    return [part for path in files for part in released_parts(path.read_bytes(), path.name)]


def secret_texts(site: Workspace) -> dict[str, str]:
    run, cohort = site.run(), read(site.preprocessed / "cohort.json")
    found = {f"case {case}": case for case in cohort["cases"]} | {
        f"unit {entry['unit']}": entry["unit"] for entry in cohort["cases"].values()
    }
    found |= {"cohort digest": read(run / "privacy_plan.json")["cohort_digest"]}
    found |= {"path of the site": str(site.base), "path of the package": str(Path(json_files.__file__).parent)}
    found |= {"path of the data": str((site.base / "raw").resolve())}
    found |= {what: text for what, text in NAMES_OF_THE_MACHINE.items() if len(text) >= LONG_ENOUGH}
    chains = [*run.rglob("privacy_ledger.jsonl"), *(site.preprocessed / "sites").rglob("*.jsonl")]
    for path in chains:
        for line in hash_chain.read(path).lines:
            secret = {**line.get("line", {}), **line}
            found |= {f"{key} in {path.name}": secret[key] for key in ("hash", "previous", "units_digest", "plan_hash") if key in secret}
    state = torch.load(run / "checkpoint_final.pth", weights_only=True)["adpfl"]
    found |= {"plan hash": state["plan_hash"], "digest of the first weights": state["initial_digest"]}
    return {name: text for name, text in found.items() if text != hash_chain.GENESIS}


def secret_numbers(site: Workspace) -> dict[str, float]:
    """Losses, scores and what the fingerprint says of intensities, shapes and sizes; small whole numbers prove nothing."""
    run = site.run()
    found: dict[str, float] = {}
    for path in run.rglob("local_log.jsonl"):
        for record in read_lines(path):
            found[f"loss of round {record['round']}, {path.parent.name}"] = record["mean_loss"] or 0.0
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found |= {f"{key} of {row['case']} {row['label']}": float(row[key]) for key in ("dice", "hd95_mm", "assd_mm", "nsd")}
    fingerprint = read(site.preprocessed / "dataset_fingerprint.json")
    found |= {f"fingerprint {k}": v for k, v in fingerprint["foreground_intensity_properties_per_channel"]["0"].items()}
    return {name: value for name, value in found.items() if len(repr(value)) > DIGITS}


def rounded(value: float) -> str:
    return f"{value:.{DIGITS - 1}e}"


def test_rule_12_no_text_that_points_at_a_patient_or_a_machine_is_in_any_byte(site: Workspace) -> None:
    hidden, parts = secret_texts(site), parts_of(site)
    assert len(hidden) > 30
    assert any(name.endswith("data.pkl") for name, _ in parts)
    assert any(".zip/" in name and ".pth/" in name for name, _ in parts)
    for name, data in parts:
        for what, text in hidden.items():
            for encoding in ("utf-8", "utf-16-le"):
                assert text.encode(encoding) not in data, f"{name}: {what}"
            if len(text) == 64 and set(text) <= set("0123456789abcdef"):
                assert bytes.fromhex(text) not in data, f"{name}: {what}, as bytes"


def test_rule_12_no_value_names_the_user_or_the_machine(site: Workspace) -> None:
    """Names of every length, as words of what can be decoded."""
    texts = [(name, value) for name, value in decoded(parts_of(site)) if isinstance(value, str)]
    assert len(texts) > 30
    for name, text in texts:
        for word in NAMES_OF_THE_MACHINE.values():
            assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), f"{name}: {text}"


def test_rule_12_no_loss_score_or_intensity_is_in_any_value(site: Workspace) -> None:
    hidden, parts = secret_numbers(site), parts_of(site)
    assert sum("loss" in name for name in hidden) >= 4
    assert sum("dice" in name for name in hidden) >= 3
    assert sum("fingerprint" in name for name in hidden) >= 5
    known = {rounded(value): name for name, value in hidden.items()}
    seen = 0
    for name, value in decoded(parts):
        if isinstance(value, float):
            seen += 1
            assert rounded(value) not in known, f"{name}: {known.get(rounded(value))}"
        elif isinstance(value, str):
            assert not any(repr(secret) in value for secret in hidden.values()), name
    assert seen > 30


def test_rule_12_no_loss_or_score_is_in_any_byte_of_the_weights_either(site: Workspace) -> None:
    """As float64 in any file, as float32 in what is no tensor."""
    hidden = secret_numbers(site)
    for name, data in parts_of(site):
        for what, value in hidden.items():
            assert np.float64(value).tobytes() not in data, f"{name}: {what}"
            assert repr(value).encode() not in data, f"{name}: {what}"


def test_rule_12_the_search_would_find_what_it_looks_for(site: Workspace) -> None:
    """In a zip in a zip, in a pickle and in JSON."""
    secret = next(iter(secret_numbers(site).values()))
    buffer, outer = io.BytesIO(), io.BytesIO()
    torch.save({"logging": {"train_losses": [secret]}, "note": "case_00_0"}, buffer)
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/checkpoint_final.pth", buffer.getvalue())
    parts = list(released_parts(outer.getvalue(), "release.zip"))
    assert any(b"case_00_0" in data for name, data in parts if name.endswith("data.pkl"))
    assert any(isinstance(value, float) and rounded(value) == rounded(secret) for _, value in decoded(parts))
