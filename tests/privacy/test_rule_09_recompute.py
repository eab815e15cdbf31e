"""Rule 9: an outsider's ten lines, as docs/privacy.md prints them, recompute what `adpfl privacy` says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_model import make_mechanism, start_ledger

from nnunet_adpfl.privacy import accounting, summary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "privacy.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_there_are_two_libraries() -> None:
    assert ["dp_accounting" in program for program in PROGRAMS] == [True, False]
    assert "opacus" in PROGRAMS[1]


@pytest.mark.parametrize("program", PROGRAMS, ids=["dp-accounting", "opacus"])
@pytest.mark.parametrize("fingerprint", [False, True])
def test_rule_09_an_outsider_recomputes_epsilon(
    program: str, fingerprint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release = {"fingerprint": "dp", "fingerprint_release": {"release": "fingerprint-1", "noise_multiplier": 2.0}}
    mechanism = make_mechanism(
        noise_decay={"plateaus": 3, "final_ratio": 0.8}, noise_multiplier=3.0, **(release if fingerprint else {})
    )
    ledger = start_ledger(tmp_path, mechanism.plan)
    if fingerprint:
        ledger.append({**accounting.gaussian(2.0), "release": "fingerprint-1"}, round_index=0, attempt=0)
    mechanism.authorise(ledger, 0, 20, round_index=0, attempt=0)
    (tmp_path / "ledger.jsonl").rename(tmp_path / "privacy_ledger.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(PAGE), "exec"), {})
    found = float(capsys.readouterr().out.strip().splitlines()[-1])
    assert found == pytest.approx(summary.summarise(tmp_path / "privacy_ledger.jsonl")["epsilon"], abs=0.02)
