"""Rule 11: whatever is done to one line of a ledger, the run is refused or counts at least what it truly spent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import make_mechanism, resume_ledger, start_ledger

from nnunet_adpfl.errors import AdpflError
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.accounting import check_event

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

BLOCKS = 4
LINES = BLOCKS + 1


def written(folder: Path) -> bytes:
    """A ledger of four blocks whose noise decays, with its odometer."""
    mechanism = make_mechanism(noise_decay={"plateaus": 4, "final_ratio": 0.5})
    ledger = start_ledger(folder, mechanism.plan)
    for block in range(BLOCKS):
        mechanism.authorise(ledger, 5 * block, 5, round_index=block, attempt=0)
    return (folder / "ledger.jsonl").read_bytes()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes, float]:
    """Folder, ledger, odometer, and the oracle: n q^2 / z^2 of what was truly spent, which grows with every step."""
    folder = tmp_path_factory.mktemp("intact")
    content = written(folder)
    spent = cost([json.loads(line) for line in content.splitlines()])
    return folder, content, (folder / "odometer.jsonl").read_bytes(), spent


def cost(lines: list[dict[str, Any]]) -> float:
    """Additive and exact, unlike epsilon: more steps or less noise always cost more."""
    spending = [line for line in lines if line["event"] in accounting.SPENDING_EVENTS]
    return math.fsum(line["steps"] * (line["sampling_rate"] / line["noise_multiplier"]) ** 2 for line in spending)


def check_refused_or_counted(intact: tuple[Path, bytes, bytes, float], tampered: bytes) -> None:
    folder, _, odometer, spent = intact
    (folder / "ledger.jsonl").write_bytes(tampered)
    (folder / "odometer.jsonl").write_bytes(odometer)
    try:
        events = resume_ledger(folder).events()
    except AdpflError:
        return
    assert cost(events) >= spent * (1 - 1e-12)


@pytest.mark.parametrize("line", range(LINES))
def test_rule_11_any_line_removed(line: int, intact: tuple[Path, bytes, bytes, float]) -> None:
    lines = intact[1].splitlines(keepends=True)
    check_refused_or_counted(intact, b"".join(lines[:line] + lines[line + 1 :]))


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in range(LINES) for b in range(a)])
def test_rule_11_any_two_lines_swapped(first: int, second: int, intact: tuple[Path, bytes, bytes, float]) -> None:
    lines = intact[1].splitlines(keepends=True)
    lines[first], lines[second] = lines[second], lines[first]
    check_refused_or_counted(intact, b"".join(lines))


@pytest.mark.parametrize("line", range(LINES))
def test_rule_11_any_line_repeated(line: int, intact: tuple[Path, bytes, bytes, float]) -> None:
    lines = intact[1].splitlines(keepends=True)
    check_refused_or_counted(intact, b"".join([*lines[: line + 1], *lines[line:]]))


def test_rule_11_cut_at_any_byte(intact: tuple[Path, bytes, bytes, float]) -> None:
    content = intact[1]
    lines = content.splitlines(keepends=True)
    last_two = len(content) - len(lines[-1]) - len(lines[-2])
    for length in (*range(0, last_two, 97), *range(last_two, len(content), 3), len(content) - 1):
        check_refused_or_counted(intact, content[:length])


@pytest.mark.parametrize("field", ["steps", "noise_multiplier", "sampling_rate", "event", "run", "site", "previous", "hash", "date"])
@pytest.mark.parametrize("line", range(LINES))
def test_rule_11_any_field_of_any_line_edited(line: int, field: str, intact: tuple[Path, bytes, bytes, float]) -> None:
    lines = [json.loads(text) for text in intact[1].splitlines()]
    smaller = {"steps": 1, "noise_multiplier": 50.0, "sampling_rate": 1e-6, "event": "non_private"}
    lines[line][field] = smaller.get(field, "x")
    check_refused_or_counted(intact, "".join(json.dumps(entry) + "\n" for entry in lines).encode())


@pytest.mark.parametrize("line", range(LINES))
@pytest.mark.parametrize("end", [b"", b"}", b"\n"])
def test_rule_11_a_line_that_was_edited_and_made_to_look_torn(
    line: int, end: bytes, intact: tuple[Path, bytes, bytes, float]
) -> None:
    """A torn line counts as what it announces; that it announces less than the odometer knows helps nobody."""
    lines = intact[1].splitlines(keepends=True)
    entry = json.loads(lines[line])
    cheap = json.dumps({**entry, "steps": 1, "noise_multiplier": 500.0, "sampling_rate": 0.001}).encode()
    check_refused_or_counted(intact, b"".join(lines[:line]) + cheap[: len(cheap) - 40] + end)


@given(at=st.floats(0, 1), bit=st.integers(0, 7), insert=st.binary(max_size=4), delete=st.integers(0, 400))
@settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_rule_11_any_bytes_changed(
    intact: tuple[Path, bytes, bytes, float], at: float, bit: int, insert: bytes, delete: int
) -> None:
    content = intact[1]
    position = min(int(at * len(content)), len(content) - 1)
    flipped = content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]
    check_refused_or_counted(intact, flipped)
    check_refused_or_counted(intact, content[:position] + insert + content[position + delete :])


def test_rule_11_the_oracle_notices_a_line_that_was_forgotten(intact: tuple[Path, bytes, bytes, float]) -> None:
    lines = [json.loads(text) for text in intact[1].splitlines()]
    assert cost(lines[:-1]) < intact[3] == cost(lines)


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 1.0}, {"delta": 0}, {"delta": "0.001"}, {"delta": None}, {"composition": "other"}, {"target_epsilon": -1.0},
        {"declared_steps": -1}, {"declared_steps": 10**12}, {"site": 3}, {"run": None}, {"unit": ["patient"]},
    ],
)  # fmt: skip
def test_rule_09_a_start_line_with_impossible_figures_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """A delta of 1, say, would make any epsilon 0."""
    from nnunet_adpfl.privacy import hash_chain, summary

    head, text = hash_chain.GENESIS, ""
    for number, line in enumerate(map(json.loads, written(tmp_path).splitlines())):
        fields = {key: value for key, value in {**line, **(change if number == 0 else {})}.items() if key not in ("previous", "hash")}
        line = hash_chain.sealed(fields, head)
        head, text = str(line["hash"]), text + json.dumps(line) + "\n"
    (tmp_path / "forged.jsonl").write_text(text)
    with pytest.raises(AdpflError, match="start line"):
        summary.summarise(tmp_path / "forged.jsonl")


@pytest.mark.parametrize(
    "figures", [{"steps": 10**9}, {"noise_multiplier": 1e-9}, {"noise_multiplier": 10**400}, {"sampling_rate": 10**400}]
)
def test_rule_09_figures_that_would_never_be_composed_are_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(AdpflError, match="impossible figures"):
        check_event({**accounting.poisson_gaussian(0.25, 2.0, 5), **figures})


def test_rule_09_an_epsilon_that_promises_nothing_is_bounded_quickly_and_from_above() -> None:
    """Its loss distribution would need gigabytes."""
    huge = [accounting.poisson_gaussian(0.25, 0.01, 100)]
    assert accounting.epsilon(huge, 1e-5) > accounting.NO_PROMISE
    assert accounting.epsilon_prv(huge, 1e-5) is None
    moderate = [accounting.poisson_gaussian(0.25, 0.3, 20)]
    assert accounting._quick_bound(accounting._merge(moderate), 1e-5) > accounting.epsilon(moderate, 1e-5)
