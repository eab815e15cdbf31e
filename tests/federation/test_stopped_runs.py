"""What is claimed of a run that was stopped, and of a run whose ledgers are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workspace import LOCAL_STEPS, ROUNDS, SITES, Workspace, read

from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import ledger, summary
from nnunet_adpfl.trainers.release import export_run


def ledger_of(run: Path, site: str = SITES[0]) -> Path:
    return run / "sites" / site / "privacy_ledger.jsonl"


def test_rule_10_a_run_that_was_stopped_by_choice_has_the_target_epsilon(workspace: Workspace) -> None:
    run = workspace.train_until(1)
    found = summary.summarise(run)
    assert found["epsilon"] == 8.0
    for site in found["sites"].values():
        assert not site["complete"]
        assert 0 < site["epsilon_spent"] < site["epsilon"] == site["target_epsilon"]
    workspace.train(go_on=True)
    done = summary.summarise(run)
    assert all(site["complete"] and site["epsilon"] == site["epsilon_spent"] for site in done["sites"].values())
    assert done["epsilon"] < 8.0


def test_rule_10_fewer_rounds_that_were_declared_at_the_start_are_a_whole_run(workspace: Workspace) -> None:
    found = summary.summarise(workspace.train(rounds=1))
    assert all(site["complete"] and site["steps"] == LOCAL_STEPS for site in found["sites"].values())
    assert found["epsilon"] < 8.0


def declare_rounds(run: Path, rounds: int) -> None:
    """As somebody would who edits the manifest to stop a run early."""
    manifest = read(run / "run.json")
    manifest["settings"]["rounds"] = rounds
    (run / "run.json").write_text(json.dumps(manifest))


def test_rule_10_the_number_of_rounds_cannot_be_changed_on_the_way(workspace: Workspace) -> None:
    run = workspace.train_until(1)
    before = ledger_of(run).read_bytes()
    with pytest.raises(InputError, match="the run began with all rounds of the plan"):
        workspace.train(go_on=True, rounds=1)
    declare_rounds(run, ROUNDS - 1)
    with pytest.raises(PrivacyRefusedError, match="declared to have"):
        workspace.train(go_on=True)
    assert ledger_of(run).read_bytes() == before


def test_rule_10_a_run_that_was_made_to_stop_says_the_target(workspace: Workspace) -> None:
    run = workspace.train_until(1)
    declare_rounds(run, 1)
    workspace.train(go_on=True)
    assert (run / "checkpoint_final.pth").is_file()
    assert summary.summarise(run)["epsilon"] == 8.0
    assert export_run(run, workspace.base / "out")["epsilon"] == 8.0


def test_rule_10_a_repeated_round_does_not_count_as_a_step_of_the_plan(workspace: Workspace) -> None:
    run = workspace.train_until(ROUNDS - 1)
    path = ledger_of(run)
    lines = path.read_text().splitlines()
    assert sum('"steps"' in line for line in lines) >= ROUNDS - 1
    events = [json.loads(line) for line in lines if '"poisson_gaussian"' in line and '"start"' not in line]
    again = {**events[-1], "attempt": 1}
    assert ledger.steps_taken([*events, again]) == ledger.steps_taken(events) < ROUNDS * LOCAL_STEPS


def test_rule_11_a_shortened_or_missing_ledger_is_not_summed_up(workspace: Workspace) -> None:
    run = workspace.train()
    path = ledger_of(run)
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(PrivacyRefusedError, match="shorter than when"):
        summary.summarise(run)
    with pytest.raises(PrivacyRefusedError, match="shorter than when"):
        export_run(run, workspace.base / "out")
    path.unlink()
    with pytest.raises(PrivacyRefusedError, match="is missing"):
        summary.summarise(run)
    path.write_bytes(ledger_of(run, SITES[1]).read_bytes())
    with pytest.raises(PrivacyRefusedError):
        summary.summarise(run)
    path.write_text(whole)
    assert 0 < summary.summarise(run)["epsilon"] <= 8
    assert not (workspace.base / "out").exists()


def test_rule_11_ledgers_of_another_run_are_not_this_ones(workspace: Workspace) -> None:
    first = workspace.train()
    first.rename(workspace.base / "first")
    second = workspace.train()
    for site in SITES:
        ledger_of(second, site).write_bytes(ledger_of(workspace.base / "first", site).read_bytes())
    with pytest.raises(PrivacyRefusedError, match="belongs to another run"):
        summary.summarise(second)


def test_rule_12_a_release_holds_no_extremes_of_intensity_that_prediction_does_not_need(workspace: Workspace) -> None:
    run = workspace.train(rounds=1)
    at_the_site = read(run.parent / "plans.json")["foreground_intensity_properties_per_channel"]["0"]
    assert at_the_site["max"] > 0
    export_run(run, workspace.base / "out")
    plans = next((workspace.base / "out").rglob("plans.json"))
    released = read(plans)["foreground_intensity_properties_per_channel"]["0"]
    assert released == dict.fromkeys(at_the_site, 0.0)
