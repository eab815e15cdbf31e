"""The mutation proof, in part: the mutants fit today's source, and the quick ones are killed. All of them: ``make mutants``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from mutant_table import MUTANTS, Mutant

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "nnunet_adpfl"
RULES = set(range(1, 17))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_fits_the_source_and_its_tests_exist(mutant: Mutant) -> None:
    """Where this fails, the source was changed: change the mutant with it, so that the fault is still planted."""
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    for old, new in mutant.changes.items():
        assert text.count(old) == 1, f"mutant_table.py: {old!r} occurs {text.count(old)} times in {mutant.file}"
        text = text.replace(old, new)
    ast.parse(text)
    for test in mutant.tests:
        file, name = test.split("::")
        functions = [node.name for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
        assert name.split("[")[0] in functions, test


def test_every_rule_has_a_mutant() -> None:
    assert {mutant.rule for mutant in MUTANTS} >= RULES
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.slow
def test_quick_mutants_are_killed() -> None:
    command = [sys.executable, str(TESTS / "mutants" / "run.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    quick = sum(mutant.quick for mutant in MUTANTS)
    assert f"{quick} of {quick} mutants killed" in done.stdout
