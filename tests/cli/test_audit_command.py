"""``adpfl audit``: its JSON, its files and its refusals; real processes and a real data set in the slow ones."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injected_randomness import InjectedRandomness
from workspace import PLANS, Workspace

from nnunet_adpfl.cli import main
from nnunet_adpfl.experiments import audit, audit_figure, audit_training, membership
from nnunet_adpfl.experiments.audit import AuditResult
from nnunet_adpfl.privacy import mechanism as mechanisms

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

KEYS = {"epsilon_claimed", "epsilon_lower_bound", "steps", "confidence", "verdict"}
ROW = {"tensor", "coordinates", "sensitivity", "noise_ratio", "noise_p_value", "expected_shift", "measured_shift", "shift_p_value"}
REFUSED = [
    ([], "--quick"),
    (["801", "3d_fullres", "0", "--quick"], "--quick"),
    (["801"], "CONFIG"),
    (["--quick", "--noise-multiplier", "0"], "noise_multiplier"),
    (["--quick", "--noise-multiplier", "nan"], "noise_multiplier"),
    (["--quick", "--delta", "1"], "--delta"),
    (["--quick", "--releases", "10"], "--releases"),
    (["801", "3d_fullres", "0", "-p", PLANS, "--steps", "7"], "--steps"),
    (["801", "3d_fullres", "0", "-p", PLANS, "--repeats", "10"], "--repeats"),
    (["801", "3d_fullres", "0", "-p", PLANS, "--units", "0"], "--units"),
    (["801", "3d_fullres", "0", "-p", PLANS, "--releases", "10"], "--releases"),
    (["801", "3d_fullres", "0", "-p", PLANS, "-tr", "nnUNetTrainerNP"], "nnUNetTrainerNP"),
    (["801", "3d_fullres", "0", "-p", "nnUNetPlans_none"], "nnUNetPlans_none"),
    (["--membership", "nowhere"], "nowhere"),
]


def spelt(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


@pytest.fixture(scope="module")
def flat() -> AuditResult:
    """A quick audit of the 2D network, with noise that repeats itself."""
    return audit.quick(releases=1000, dims=(2,), randomness=lambda: InjectedRandomness(1))


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=spelt)
def test_refusals(
    options: list[str], named: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["adpfl", "audit", *options])
    with pytest.raises(SystemExit) as left:
        main.main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code
    assert len(said) == 1
    assert named in said[0]


@pytest.mark.statistical
def test_a_real_network_is_consistent(flat: AuditResult) -> None:
    report = flat.report
    assert set(report) > KEYS
    assert report["verdict"] == "consistent"
    assert 0.4 < report["mu_lower_bound"] < 1
    assert 0 < report["epsilon_lower_bound"] < report["epsilon_claimed"] == pytest.approx(4.377, abs=2e-3)
    assert report["steps"] == 1
    assert report["sufficient_power"]
    (network,) = report["networks"]
    assert len(network["per_tensor"]) == network["tensors"] + 1  # the count is one more
    assert all(set(row) == ROW for row in network["per_tensor"])
    json.dumps(report, allow_nan=False)


@pytest.mark.statistical
def test_half_the_noise_in_a_real_network_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    add = mechanisms.add_gaussian_
    monkeypatch.setattr(mechanisms, "add_gaussian_", lambda tensor, deviation, *rest: add(tensor, deviation / 2, *rest))
    found = audit.quick(releases=1000, dims=(2,), randomness=lambda: InjectedRandomness(1))
    assert found.report["verdict"] == "violated"
    assert not found.consistent
    assert found.report["epsilon_lower_bound"] > found.report["epsilon_claimed"]


def test_the_command_writes_its_files_and_says_one_when_violated(
    flat: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    violated = {**flat.report, "verdict": "violated", "violations": ["too little noise"]}
    for report, code in ((flat.report, 0), (violated, 1)):
        monkeypatch.setattr(audit, "quick", lambda report=report, **_: AuditResult(report, flat.panels))
        monkeypatch.setattr("sys.argv", ["adpfl", "audit", "--quick", "--json", "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as left:
            main.main()
        assert (left.value.code or 0) == code
        assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "audit.json").read_text()) == report
    assert (tmp_path / "out" / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.json", "audit.png"]


def test_it_says_in_words_that_an_audit_proves_nothing(
    flat: AuditResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "quick", lambda **_: flat)
    monkeypatch.setattr("sys.argv", ["adpfl", "audit", "--quick"])
    with pytest.raises(SystemExit):
        main.main()
    said = capsys.readouterr().out
    assert "consistent" in said
    assert "can refute a claim, not prove it" in said
    assert audit_figure.headline(flat.report) in said


def test_more_noise_asks_for_more_releases() -> None:
    assert [audit.default_releases(z) for z in (0.5, 1, 2, 4)] == [2000, 2000, 8000, 20000]


def test_membership_figures_of_known_losses() -> None:
    generator = np.random.default_rng(0)
    same = membership.figures(generator.normal(size=150), generator.normal(size=50))
    assert same["auc_ci95"][0] < 0.5 < same["auc_ci95"][1]
    told_apart = membership.figures(np.arange(10.0), 20 + np.arange(10.0))
    assert told_apart["auc"] == 1
    assert told_apart["true_positive_rate_at_10_percent_false_positives"] == 1
    assert membership.auc(np.ones(4), np.ones(6)) == 0.5
    assert membership.auc(np.full(4, 2.0), np.ones(6)) == 0


@pytest.mark.slow
def test_quick_audit_as_a_process() -> None:
    """Real entropy: a correct mechanism fails one audit in a thousand at most."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("adpfl")), "audit", "--quick", "--json"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert set(report) > KEYS
    assert {network["dims"] for network in report["networks"]} == {2, 3}
    assert done.returncode == (0 if report["verdict"] == "consistent" else 1)
    assert report["verdict"] == "consistent"


@pytest.mark.slow
def test_audit_of_a_planned_data_set_writes_nothing_into_it(workspace: Workspace) -> None:
    before = _files(workspace.base)
    seeds = itertools.count()
    choices = audit_training.Choices(plans=PLANS, steps=2, repeats=50, units=2, releases=1000, noise_multiplier=1.0, workers=0)
    result = audit_training.full("801", "3d_fullres", "0", choices, lambda: InjectedRandomness(next(seeds)))
    report = result.report
    assert report["verdict"] == "consistent"
    assert report["steps"] == report["training"]["steps"] == 2
    assert report["epsilon_lower_bound"] <= report["epsilon_claimed"]
    assert 0 < report["release"]["epsilon_lower_bound"] < report["release"]["epsilon_claimed"]
    assert len(result.panels) == 2
    assert all(math.isfinite(value) for panel in result.panels for value in (*panel.out, *panel.inside))
    assert _files(workspace.base) == before


@pytest.mark.slow
def test_full_audit_of_a_training_without_noise_is_a_violation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanisms, "add_gaussian_", lambda *_: None)
    seeds = itertools.count()
    choices = audit_training.Choices(plans=PLANS, steps=6, repeats=100, units=1, releases=1000, noise_multiplier=6.0, workers=0)
    result = audit_training.full("801", "3d_fullres", "0", choices, lambda: InjectedRandomness(next(seeds)))
    assert result.report["training"]["violations"]
    assert result.report["verdict"] == "violated"


@pytest.mark.slow
def test_membership_of_a_finished_run(workspace: Workspace) -> None:
    run = workspace.train("2d", trainer="nnUNetTrainerNP")
    found: dict[str, Any] = membership.demonstrate([run])
    assert "not evidence" in found["note"]
    (attacked,) = found["runs"]
    assert not attacked["private"]
    assert attacked["epsilon"] is None
    assert attacked["members"] + attacked["non_members"] == 10
    assert 0 <= attacked["auc"] <= 1


def _files(base: Path) -> dict[str, int]:
    return {str(path.relative_to(base)): path.stat().st_mtime_ns for path in base.rglob("*") if path.is_file()}
