"""The mutation proof: plants each fault of `mutant_table` in a copy of the package and runs the tests that must notice.

    python tests/mutants/run.py              all mutants
    python tests/mutants/run.py -k noise     those with the word in their name
    python tests/mutants/run.py --quick      the few that the test suite tries

Prints which test killed which mutant, and returns 1 if one survives. Each session is a fork of this process, which
has torch and nnU-Net in memory, so that a mutant takes seconds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = REPOSITORY / "tests"
PACKAGE = REPOSITORY / "nnunet_adpfl"
SESSION_LIMIT_S = 300
REPORT_HEAD = """# Planted faults

`make mutants` plants each of these faults in a copy of the package and runs the tests that must notice; written by that command.
{summary}.

| rule | fault | file | killed by |
|---|---|---|---|
"""
HEAVY_FOR_PRIVACY = (
    "torch", "numpy", "scipy.special", "hypothesis", "pydantic", "dp_accounting.pld", "dp_accounting.rdp", "opacus.accountants",
)  # fmt: skip
HEAVY = (
    *HEAVY_FOR_PRIVACY, "torch.utils.data", "pandas", "nibabel", "safetensors.numpy", "opacus.grad_sample",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunetv2.training.dataloading.data_loader",
    "nnunetv2.inference.predict_from_raw_data", "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner",
    "nnunetv2.experiment_planning.verify_dataset_integrity", "dynamic_network_architectures.architectures.unet",
)  # fmt: skip

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for _name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc", "OMP_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

from mutant_table import MUTANTS, Mutant  # noqa: E402


@dataclass(frozen=True)
class Outcome:
    """``killer``: node id of the test that failed; None where the mutant survived or the session went wrong."""

    killer: str | None
    trouble: str = ""


class FirstFailure:
    """Pytest plugin: which test failed first, and whether in its own body rather than in a fixture."""

    def __init__(self) -> None:
        self.test: str | None = None
        self.trouble = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.test is None and not self.trouble:
            if report.when == "call":
                self.test = report.nodeid
            else:
                self.trouble = f"{report.nodeid} broke in its {report.when}"


def mutate(mutant: Mutant, folder: Path) -> None:
    """A copy of the package with the fault in it. ValueError unless every old text occurs exactly once."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / PACKAGE.name / mutant.file
    text = path.read_text(encoding="utf-8")
    for old, new in mutant.changes.items():
        if text.count(old) != 1:
            raise ValueError(f"mutant {mutant.name!r}: the text to replace occurs {text.count(old)} times in {mutant.file}")
        text = text.replace(old, new)
    compile(text, str(path), "exec")
    path.write_text(text, encoding="utf-8")


def run_tests(package: Path, tests: Sequence[str], work: Path, planned: Path) -> Outcome:
    """Run tests against a package folder in a fork of this process."""
    result = work / "result"
    child = os.fork()
    if child == 0:
        os.setsid()
        _session(package, tests, work, planned, result)
    deadline = time.monotonic() + SESSION_LIMIT_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome(None, f"no end after {SESSION_LIMIT_S} s")
        time.sleep(0.02)
    if not result.is_file():
        return Outcome(None, f"the session died, see {work / 'output.txt'}")
    code, killer, trouble = result.read_text(encoding="utf-8").split("\n", 2)
    if trouble or code not in ("0", "1"):
        return Outcome(None, trouble or f"pytest ended with {code}, see {work / 'output.txt'}")
    return Outcome(killer or None)


def _session(package: Path, tests: Sequence[str], work: Path, planned: Path, result: Path) -> None:
    try:
        output = os.open(work / "output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.path[:] = [str(package), *(entry for entry in sys.path if Path(entry or ".").resolve() != REPOSITORY)]
        os.environ |= {"PYTHONPATH": str(package), "ADPFL_TEST_PLANNED": str(planned), "PYTHONDONTWRITEBYTECODE": "1"}
        importlib.invalidate_caches()
        import pytest

        import nnunet_adpfl

        if Path(nnunet_adpfl.__file__).parent.parent != package:
            raise RuntimeError(f"the tests would run against {nnunet_adpfl.__file__}")
        first = FirstFailure()
        options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY), "-c", str(REPOSITORY / "pyproject.toml")]
        code = pytest.main([*options, "--basetemp", str(work / "tmp"), *(str(TESTS / test) for test in tests)], [first])
        result.write_text(f"{int(code)}\n{first.test or ''}\n{first.trouble}", encoding="utf-8")
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)


def _plan(planned: Path) -> None:
    """Plan the tiny data set once for all sessions, in a fork, because this process must not know the package."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.path.insert(0, str(TESTS))
            from workspace import plan_once

            plan_once(planned)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the tiny data set could not be planned; run the tests first")


def try_mutants(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, Outcome]]:
    """Each mutant with what became of it. RuntimeError when its tests fail without any fault planted."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    needs_data = any(not test.startswith("privacy/") for test in tests)
    for name in HEAVY if needs_data else HEAVY_FOR_PRIVACY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="adpfl_mutants_") as folder:
        work, planned = Path(folder), Path(folder) / "planned"
        if needs_data:
            _plan(planned)
        control = work / "control"
        shutil.copytree(PACKAGE, control / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        sound = run_tests(control, tests, control, planned)
        if sound != Outcome(None):
            raise RuntimeError(f"a test fails without any fault planted: {sound.killer or sound.trouble}")
        for number, mutant in enumerate(mutants):
            place = work / str(number)
            mutate(mutant, place)
            yield mutant, run_tests(place, mutant.tests, place, planned)
            shutil.rmtree(place, ignore_errors=True)


def _short(outcome: Outcome) -> str:
    return f"`{(outcome.killer or '').removeprefix('tests/')}`" if outcome.killer else f"**survives** {outcome.trouble}".rstrip()


def _rule_of(row: str) -> int:
    return int(row.split("|")[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults and see whether the tests notice.")
    parser.add_argument("-k", dest="word", default="", help="only mutants with this word in their name")
    parser.add_argument("--quick", action="store_true", help="only those that the test suite tries")
    parser.add_argument("--report", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.word.lower() in m.name.lower() and (m.quick or not options.quick)]
    if not chosen:
        print(f"no mutant has {options.word!r} in its name", file=sys.stderr)
        return 2
    began, survivors, rows = time.monotonic(), 0, []
    for mutant, outcome in try_mutants(chosen):
        survivors += outcome.killer is None
        said = f"killed by {outcome.killer}" if outcome.killer else f"SURVIVES {outcome.trouble}".rstrip()
        print(f"rule {mutant.rule:2d}  {mutant.name:60s}  {said}", flush=True)
        rows.append(f"| {mutant.rule} | {mutant.name} | {mutant.file} | {_short(outcome)} |")
    summary = f"{len(chosen) - survivors} of {len(chosen)} mutants killed in {time.monotonic() - began:.0f} s"
    print(summary)
    if options.report:
        options.report.write_text(REPORT_HEAD.format(summary=summary) + "\n".join(sorted(rows, key=_rule_of)) + "\n", encoding="utf-8")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
