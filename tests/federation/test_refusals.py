"""What a run refuses: always with one line, before the first step, and without a (new) ledger line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import CONFIGURATION, LOCAL_STEPS, PLANS, SITES, Workspace, ledgers, read, steps_paid

from nnunet_adpfl.errors import AdpflError, InputError, PrivacyRefusedError
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.trainers import run_manifest


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every step for which a gradient is asked."""
    taken: list[int] = []
    original = LoopEngine.clipped_sum

    def clipped_sum(*arguments: Any) -> Any:
        taken.append(1)
        return original(*arguments)

    monkeypatch.setattr(LoopEngine, "clipped_sum", clipped_sum)
    return taken


def privacy_files(workspace: Workspace) -> dict[Path, bytes]:
    """Ledgers and odometers of all runs."""
    return {path: path.read_bytes() for path in workspace.base.rglob("privacy_*.jsonl")}


def check_refused(workspace: Workspace, steps: list[int], reason: str, **choices: Any) -> AdpflError:
    before, taken = privacy_files(workspace), len(steps)
    with pytest.raises((InputError, PrivacyRefusedError), match=reason) as error:
        workspace.train(**choices)
    assert "\n" not in str(error.value)
    assert len(steps) == taken
    assert privacy_files(workspace) == before
    return error.value


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "rounds beyond the plan": ({"rounds": 4}, "--rounds 4 of 2 local steps do not fit the 6 steps"),
    "rounds and local steps beyond the plan": ({"rounds": 2, "local_steps": 4}, "do not fit the 6 steps"),
    "no round": ({"rounds": 0}, "--rounds 0"),
    "no local step": ({"local_steps": 0}, "local_steps"),
    "fold beyond the splits": ({"fold": 5}, "fold 5 is beyond the 5 splits"),
    "negative fold": ({"fold": -1}, "fold -1 is beyond"),
    "fold that is no number": ({"fold": "some"}, "fold some is beyond"),
    "unknown trainer": ({"trainer": "nnUNetTrainer"}, "trainer 'nnUNetTrainer' is unknown"),
    "unknown configuration": ({"configuration": "3d_lowres"}, "configuration '3d_lowres' is not in"),
    "unknown plans": ({"plans": "nnUNetPlans_f64"}, "nnUNetPlans_f64.json is missing"),
    "unknown device": ({"device": "tpu"}, "--device 'tpu' is unknown"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_rule_11_impossible_arguments(case: str, workspace: Workspace, steps: list[int]) -> None:
    choices, reason = ARGUMENTS[case]
    check_refused(workspace, steps, reason, **choices)
    assert not list(workspace.base.glob("results/*/*/*"))


def test_rule_11_a_device_that_this_machine_lacks(workspace: Workspace, steps: list[int]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    check_refused(workspace, steps, "has no CUDA device", device="cuda")


def remove(name: str) -> Callable[[Workspace], None]:
    return lambda workspace: (workspace.preprocessed / name).unlink()


def damage(name: str) -> Callable[[Workspace], None]:
    return lambda workspace: (workspace.preprocessed / name).write_text("{")


def edit(name: str, change: Callable[[Any], None]) -> Callable[[Workspace], None]:
    return lambda workspace: edit_json(workspace.preprocessed / name, change)


def move_case(cohort: Any) -> None:
    cohort["cases"]["case_00_0"]["unit"] = "patient_09"


def rename_unit(cohort: Any) -> None:
    for entry in cohort["cases"].values():
        if entry["unit"] == "patient_01":
            entry["unit"] = "patient_99"


def share_a_unit(splits: Any) -> None:
    """One case of a patient with two cases changes sides."""
    fold = splits[0]
    case = next(case for case in fold["train"] if case.endswith("_1"))
    fold["train"].remove(case)
    fold["val"].append(case)


def hide_a_unit(splits: Any) -> None:
    splits[0]["train"] = [case for case in splits[0]["train"] if not case.startswith(splits[0]["train"][0][:7])]


def settings_of(plans: Any) -> Any:
    return plans["configurations"][CONFIGURATION]


def batch_norm(plans: Any) -> None:
    settings_of(plans)["architecture"]["arch_kwargs"]["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"


PLAN = f"{PLANS}__{CONFIGURATION}.privacy.json"
FILES: dict[str, tuple[Callable[[Workspace], None], str]] = {
    "cohort missing": (remove("cohort.json"), "cohort.json is missing"),
    "cohort damaged": (damage("cohort.json"), "cohort.json is damaged"),
    "cohort with another grouping": (edit("cohort.json", move_case), "is not the cohort that the privacy plan|at two sites"),
    "cohort with another name": (edit("cohort.json", rename_unit), "is not the cohort that the privacy plan"),
    "cohort of single cases": (
        edit("cohort.json", lambda cohort: cohort.update(unit="case")), "is not the cohort that the privacy plan",
    ),
    "splits missing": (remove("splits_final.json"), "splits_final.json is missing"),
    "splits damaged": (damage("splits_final.json"), "splits_final.json is not valid JSON"),
    "unit on both sides": (edit("splits_final.json", share_a_unit), "in both training and validation of fold 0"),
    "fewer units than declared": (edit("splits_final.json", hide_a_unit), "training units in fold 0"),
    "unknown case": (edit("splits_final.json", lambda splits: splits[0]["val"].append("ghost")), "names case ghost"),
    "no fold": (edit("splits_final.json", lambda splits: splits.clear()), "fold 0"),
    "plans missing": (remove(f"{PLANS}.json"), "is missing"),
    "plans damaged": (damage(f"{PLANS}.json"), "is not valid JSON"),
    "plans edited": (
        edit(f"{PLANS}.json", lambda plans: settings_of(plans).update(batch_size=7)), "was changed after the privacy plan",
    ),
    "batch_dice": (edit(f"{PLANS}.json", lambda plans: settings_of(plans).update(batch_dice=True)), "batch_dice is true"),
    "batch normalisation": (edit(f"{PLANS}.json", batch_norm), "BatchNorm3d mixes patients"),
    "cascade": (
        edit(f"{PLANS}.json", lambda plans: settings_of(plans).update(previous_stage="2d")), "is a cascade",
    ),
    "dataset.json missing": (remove("dataset.json"), "dataset.json is missing"),
    "privacy plan missing": (remove(PLAN), "privacy.json is missing: run `adpfl plan`"),
    "privacy plan damaged": (damage(PLAN), "is not valid JSON"),
    "misspelt setting": (edit(PLAN, lambda plan: plan.update(epsilonn=1)), "epsilonn"),
    "impossible epsilon": (edit(PLAN, lambda plan: plan.update(epsilon=-1)), "epsilon"),
    "delta above 1/N": (edit(PLAN, lambda plan: plan.update(delta=0.5)), "delta 0.5 is not below 1/N"),
    "another unit": (edit(PLAN, lambda plan: plan.update(unit="case")), "protects a case"),
    "too little noise": (edit(PLAN, lambda plan: plan.update(noise_multiplier=0.2)), "noise_multiplier 0.2"),
    "too little count noise": (
        edit(PLAN, lambda plan: plan["clipping"].update(count_noise_ratio=1.5)), "count_noise_ratio",
    ),
    "unknown freezing": (
        edit(PLAN, lambda plan: plan["trainable"].update(freeze_patterns=["nothing.*"])), "matches no parameter",
    ),
    "everything frozen": (
        edit(PLAN, lambda plan: plan["trainable"].update(freeze_patterns=["*"])), "nothing is left to train",
    ),
    "public weights missing": (
        edit(PLAN, lambda plan: plan.update(initial_weights={"kind": "public", "file": "gone.pth", "sha256": "0"})),
        "gone.pth cannot be read",
    ),
    "noisy fingerprint": (edit(PLAN, lambda plan: plan.update(fingerprint="dp")), "fingerprint dp"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_rule_11_files_that_do_not_fit_each_other(case: str, workspace: Workspace, steps: list[int]) -> None:
    change, reason = FILES[case]
    change(workspace)
    check_refused(workspace, steps, reason)


def test_rule_01_a_unit_that_both_trains_and_validates_is_named(workspace: Workspace, steps: list[int]) -> None:
    edit_json(workspace.preprocessed / "splits_final.json", share_a_unit)
    assert "patient patient_" in str(check_refused(workspace, steps, "group the splits by unit"))


def test_rule_01_a_missing_cohort_is_never_read_as_one_unit_per_case(workspace: Workspace, steps: list[int]) -> None:
    (workspace.preprocessed / "cohort.json").unlink()
    check_refused(workspace, steps, "adpfl cohort")
    assert not (workspace.preprocessed / "cohort.json").exists()


def test_a_case_that_was_never_preprocessed(workspace: Workspace, steps: list[int], planned: Path) -> None:
    link = workspace.preprocessed / "nnUNetPlans_3d_fullres"
    real = link.resolve()
    link.unlink()
    link.mkdir()
    case = read(workspace.preprocessed / "splits_final.json")[0]["train"][3]
    for path in real.iterdir():
        if not path.name.startswith(case):
            (link / path.name).symlink_to(path)
    check_refused(workspace, steps, f"case {case} is not preprocessed")


@pytest.fixture
def half_done(workspace: Workspace) -> Path:
    """A run of which one round is done."""
    return workspace.train_until(1)


def ledger_of(run: Path) -> Path:
    return run / "sites" / SITES[0] / "privacy_ledger.jsonl"


def odometer_of(workspace: Workspace) -> Path:
    return workspace.preprocessed / "sites" / SITES[0] / "privacy_odometer.jsonl"


def change_line(path: Path, number: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new, 1)
    path.write_text("".join(lines))


def drop_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[number]
    path.write_text("".join(lines))


def edit_state(path: Path, **changes: Any) -> None:
    content = torch.load(path / "checkpoint_latest.pth", weights_only=True)
    content["adpfl"].update(changes)
    torch.save(content, path / "checkpoint_latest.pth")


def lose_all_checkpoints(workspace: Workspace, run: Path) -> None:
    (run / "checkpoint_latest.pth").unlink()


def hide_spending(workspace: Workspace, run: Path) -> None:
    """Ledger and odometer of a site are gone: the checkpoint still knows that it had spent."""
    ledger_of(run).unlink()
    odometer_of(workspace).unlink()


CONTINUED: dict[str, tuple[Callable[[Workspace, Path], Any], str]] = {
    "ledger without checkpoint": (lose_all_checkpoints, "has a privacy ledger but no checkpoint"),
    "checkpoint damaged": (
        lambda _, run: (run / "checkpoint_latest.pth").write_bytes(b"no"), "cannot be read as a checkpoint",
    ),
    "checkpoint of stock nnU-Net": (
        lambda _, run: torch.save({"network_weights": {}}, run / "checkpoint_latest.pth"), "not written by an nnunet_adpfl",
    ),
    "checkpoint of another run": (lambda _, run: edit_state(run, run="another"), "belongs to another run"),
    "checkpoint of another plan": (lambda _, run: edit_state(run, plan_hash="0"), "another privacy plan"),
    "checkpoint of another version": (lambda _, run: edit_state(run, extra=1), "another version"),
    "ledger missing": (lambda _, run: ledger_of(run).unlink(), "privacy_ledger.jsonl is missing"),
    "ledger edited": (lambda _, run: change_line(ledger_of(run), 2, '"steps": 2', '"steps": 1'), "line 3 was edited"),
    "ledger shorter": (lambda _, run: [drop_line(ledger_of(run), -1) for _ in range(2)], "restore the ledger"),
    "ledger without its start": (lambda _, run: drop_line(ledger_of(run), 0), "was edited or a line before it is missing"),
    "ledger of another site": (
        lambda _, run: ledger_of(run).write_bytes((run / "sites" / SITES[1] / "privacy_ledger.jsonl").read_bytes()),
        "another run, site or set",
    ),
    "ledger and odometer gone": (hide_spending, "privacy_ledger.jsonl is missing"),
    "odometer missing": (lambda workspace, _: odometer_of(workspace).unlink(), "does not know run"),
    "odometer edited": (
        lambda workspace, _: change_line(odometer_of(workspace), 3, '"steps": 2', '"steps": 1'), "line 4 was edited",
    ),
    "odometer shorter": (lambda workspace, _: drop_line(odometer_of(workspace), -1), "differs from what was recorded"),
    "manifest missing": (lambda _, run: (run / "run.json").unlink(), "holds no run.json"),
    "stock run": (lambda _, run: edit_json(run / "run.json", lambda m: m.update(kind="stock")), "holds a stock run"),
    "frozen plan edited": (
        lambda _, run: edit_json(run / "privacy_plan.json", lambda plan: plan.update(epsilon=9.0)), "was edited; restore it",
    ),
    "privacy plan edited": (lambda workspace, _: workspace.edit_plan(seed=5), "privacy plan was changed"),
    "more noise": (lambda workspace, _: workspace.edit_plan(noise_multiplier=9.0), "privacy plan was changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTINUED)
def test_rule_11_runs_that_cannot_go_on(case: str, workspace: Workspace, half_done: Path, steps: list[int]) -> None:
    change, reason = CONTINUED[case]
    change(workspace, half_done)
    check_refused(workspace, steps, reason, go_on=True)


def test_rule_11_a_damaged_ledger_at_one_site_costs_the_others_nothing_extra(workspace: Workspace, half_done: Path) -> None:
    last_site = half_done / "sites" / SITES[-1] / "privacy_ledger.jsonl"
    intact = last_site.read_bytes()
    change_line(last_site, 2, '"steps": 2', '"steps": 1')
    with pytest.raises(PrivacyRefusedError, match="line 3 was edited"):
        workspace.train(go_on=True)
    last_site.write_bytes(intact)
    run = workspace.train(go_on=True)
    assert [steps_paid(lines) for lines in ledgers(run).values()] == [6, 6]


def test_rule_11_an_existing_run_is_never_started_anew(workspace: Workspace, half_done: Path, steps: list[int]) -> None:
    check_refused(workspace, steps, "holds a run already")
    (half_done / "checkpoint_latest.pth").unlink()
    check_refused(workspace, steps, "holds a run already .*privacy_ledger.jsonl")


def test_rule_10_other_rounds_than_declared_cannot_go_on(workspace: Workspace, half_done: Path, steps: list[int]) -> None:
    """A stop that is decided on the way would have another epsilon than a declared one."""
    check_refused(workspace, steps, "--rounds 2: the run began with all rounds", go_on=True, rounds=2)


def test_rule_11_other_local_steps_cannot_go_on(workspace: Workspace, half_done: Path, steps: list[int]) -> None:
    check_refused(workspace, steps, "privacy plan was changed", go_on=True, local_steps=LOCAL_STEPS + 1)


def test_rule_11_units_that_changed_cannot_go_on(workspace: Workspace, half_done: Path, steps: list[int]) -> None:
    """Splits of the same sizes with other patients: the ledger protects the patients it was begun with."""
    splits = read(workspace.preprocessed / "splits_final.json")
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps([splits[1], splits[0], *splits[2:]]))
    check_refused(workspace, steps, "another run, site or set of patients", go_on=True)


def test_rule_11_two_processes_never_take_the_same_run(workspace: Workspace, half_done: Path, steps: list[int]) -> None:
    with run_manifest.locked(half_done):
        check_refused(workspace, steps, "in use by another process", go_on=True)


def test_rule_12_sites_of_a_run_that_is_not_finished_cannot_be_exported(workspace: Workspace, half_done: Path) -> None:
    from nnunet_adpfl.trainers.release import export_run

    with pytest.raises(InputError, match="is not finished"):
        export_run(half_done, workspace.base / "out")
    assert not (workspace.base / "out").exists()


def test_rule_15_commands_say_it_in_one_line(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunet_adpfl.cli import main

    monkeypatch.setattr("sys.argv", ["adpfl", "train", "801", "2d", "9", "-p", PLANS, "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        main.main()
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert captured.err.strip().splitlines() == ["error: fold 9 is beyond the 5 splits (0 to 4, or all)"]
