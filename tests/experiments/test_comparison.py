"""`adpfl compare`: what is refused beforehand, the same settings for all, runs that are kept, tuning on others."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from pathlib import Path

import psutil
import pytest
import tiny_dataset
import torch
import workspace as workspaces
from workspace import CONFIGURATION, PLANS, Workspace, read

from nnunet_adpfl.errors import AdpflError, DivergedError, InputError
from nnunet_adpfl.experiments.comparison import comparison, methods, runs, tuning
from nnunet_adpfl.experiments.comparison.comparison import CompareSettings, compare
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.plan import InitialWeights
from nnunet_adpfl.trainers.release import export_run

RANDOM = InitialWeights()


def settings(workspace: Workspace, **changes: object) -> CompareSettings:
    base: dict[str, object] = {
        "dataset": tiny_dataset.NAME, "configuration": CONFIGURATION, "fold": "0", "plans": PLANS, "methods": ("np-fl", "adp-fl"),
        "seeds": 1, "curve_cases": 1, "workers": 0, "name": "test",
    }  # fmt: skip
    return CompareSettings(**{**base, **changes})  # type: ignore[arg-type]


def declared(workspace: Workspace) -> privacy_plans.PrivacyPlan:
    return privacy_plans.load(workspace.plan_file)


def test_methods_share_everything_but_what_they_are_about(workspace: Workspace) -> None:
    plans = {name: methods.plan_of(declared(workspace), methods.METHODS[name], {}, 3, RANDOM) for name in methods.METHODS}
    for name, plan in plans.items():
        for shared in ("steps", "sampling_rate", "patches_per_unit", "epsilon", "delta", "initial_weights", "training_units", "seed"):
            if (name, shared) != ("stock-dp", "patches_per_unit"):
                assert getattr(plan, shared) == getattr(plans["adp-fl"], shared), (name, shared)
    assert plans["dp-fl"].clipping.method == "fixed"
    assert plans["adp-fl"] == declared(workspace).model_copy(update={"seed": 3, "noise_multiplier": None})
    assert {name for name, plan in plans.items() if not plan.is_private} == {"local", "central", "np-fl", "paper", "paper-dp"}
    for name in ("np-fl", "dp-fl", "stock-dp"):
        assert not plans[name].optimizer.averages_weights
    patches = ("patches_per_unit", "oversample_foreground", "mirroring", "augmentation")
    assert [getattr(plans["stock-dp"], field) for field in patches] == [1, 0.33, True, "nnunet"]
    assert methods.METHODS["stock-dp"].grid == methods.METHODS["dp-fl"].grid
    assert plans["local"].rounds.strategy == plans["local-adp"].rounds.strategy == "local"


def test_variant_changes_its_fields_and_is_not_tuned_on_them(workspace: Workspace) -> None:
    (variant,) = methods.chosen([], ["auto=adp-fl:clipping.method=auto_s;optimizer.learning_rate=0.7"])
    assert (variant.name, variant.tuned_as, dict(variant.grid)) == ("auto", "adp-fl", {})
    plan = methods.plan_of(declared(workspace), variant, {}, 0, RANDOM)
    assert (plan.clipping.method, plan.optimizer.learning_rate) == ("auto_s", 0.7)
    assert plan.clipping.clip_norm == declared(workspace).clipping.clip_norm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("np-fl", "best-fl")}, "unknown"),
        ({"methods": ("np-fl", "np-fl")}, "named twice"),
        ({"methods": ()}, "names no method"),
        ({"variants": ("x=adp-fl",)}, "write NAME=METHOD"),
        ({"variants": ("x=adp-fl:nonsense.field=1",)}, "no section"),
        ({"variants": ("x=adp-fl:optimizer.nonsense=1",)}, "nonsense"),
        ({"variants": ("x=adp-fl:unit=lesion",)}, "same for all methods"),
        ({"variants": ("x=adp-fl:fingerprint=public",)}, "same for all methods"),
        ({"variants": ('x=central-adp:training_units={"0": {"site-a": 4}}',)}, "same for all methods"),
        ({"variants": ("x=adp-fl:update_filter.kind=paper;clipping.method=none",)}, "without clip and noise"),
        ({"methods": ("np-fl",), "variants": ("adp-fl=adp-fl:optimizer.learning_rate=1",)}, "name of a method"),
        ({"methods": ("adp-fl@public",)}, "needs --init"),
        ({"seeds": 0}, "must be 1 or more"),
        ({"fold": "all"}, "holds out no case"),
        ({"tune_on": tiny_dataset.NAME}, "tune on other patients"),
        ({"name": "../up"}, "not a name"),
        ({"init": Path("missing.pth")}, "cannot be read"),
    ],
)
def test_wrong_settings_are_refused_before_any_run(changes: dict[str, object], message: str, workspace: Workspace) -> None:
    with pytest.raises(InputError, match=message):
        compare(settings(workspace, **changes))
    assert not list(workspace.results.rglob("run.json"))


def test_a_comparison_is_run_once_and_its_table_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    public = workspace.base / "public.pth"
    checkpoint = torch.load(workspace.train("3d_fullres") / "checkpoint_final.pth", weights_only=True)
    torch.save({key: value for key, value in checkpoint.items() if key != "adpfl"}, public)
    found = compare(settings(workspace, methods=("local", "central", "np-fl", "dp-fl", "adp-fl"), init=public))
    assert set(found["methods"]) == {
        name + start for name in ("local", "central", "np-fl", "dp-fl", "adp-fl") for start in ("", "@public")
    }
    assert set(found["gap_closed"]["dice"]) == {"same_start", "same_public_start", "full_system"}
    folder = Path(found["folder"])
    assert folder == workspace.results / "adpfl_compare" / "test"
    assert {path.name for path in folder.glob("*.*")} == {"comparison.json", "comparison.md", "curves.svg", "scores.svg"}
    assert (folder / "adp-fl@public" / "seed_0" / "privacy_plan.json").is_file()
    results = read(folder / "adp-fl" / "seed_0" / "result.json")
    assert len(results["curve"]) == workspaces.ROUNDS
    assert 0 < results["epsilon"] <= 8
    assert read(folder / "np-fl" / "seed_0" / "result.json")["epsilon"] is None

    def fails(*_: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(runs, "_train", fails)
    again = compare(settings(workspace, methods=("np-fl", "adp-fl"), init=public))
    assert again["methods"]["adp-fl"] == found["methods"]["adp-fl"]
    workspace.edit_plan(patches_per_unit=3)
    with pytest.raises(Exception, match="other settings"):
        compare(settings(workspace))


def test_another_fold_or_configuration_under_the_same_name_is_refused(workspace: Workspace) -> None:
    compare(settings(workspace, methods=("np-fl",)))
    for changes in ({"fold": "1"}, {"configuration": "2d"}, {"mirroring": True}):
        with pytest.raises(Exception, match=r"other settings|use another name"):
            compare(settings(workspace, methods=("np-fl",), **changes))


def test_an_unfinished_run_of_another_fold_is_not_continued(workspace: Workspace) -> None:
    folder = workspace.results / "adpfl_compare" / "test" / "np-fl" / "seed_0"
    compare(settings(workspace, methods=("np-fl",)))
    (folder / "result.json").unlink()
    with pytest.raises(Exception, match="use another name"):
        compare(settings(workspace, methods=("np-fl",), fold="1"))


def test_rule_11_a_central_run_is_counted_at_every_site_that_trains(workspace: Workspace) -> None:
    found = compare(settings(workspace, methods=("central-adp",)))
    for site in ("site-a", "site-b"):
        lines = workspaces.read_lines(workspace.preprocessed / "sites" / site / "privacy_odometer.jsonl")
        spent = [line.get("line", line) for line in lines]
        assert sum(entry.get("steps", 0) for entry in spent if entry.get("event") == "poisson_gaussian") == 6
    assert found["all_runs_on_these_patients"]["runs"] == 1
    assert 0 < found["all_runs_on_these_patients"]["epsilon"] <= 8


def test_rule_12_everything_that_is_written_says_not_for_release(workspace: Workspace) -> None:
    found = compare(settings(workspace, methods=("np-fl",)))
    folder = Path(found["folder"])
    for path in (folder / "comparison.json", folder / "np-fl" / "seed_0" / "result.json"):
        assert read(path)["for_release"] is False
    assert "not for release" in (folder / "comparison.md").read_text()


def test_local_models_are_scored_by_their_own_site_and_not_released(workspace: Workspace) -> None:
    found = compare(settings(workspace, methods=("local-adp",)))
    run = Path(found["folder"]) / "local-adp" / "seed_0"
    assert {path.parent.name for path in run.glob("sites/*/checkpoint_final.pth")} == {"site-a", "site-b"}
    with pytest.raises(InputError, match="no model to release"):
        export_run(run, workspace.base / "out")


def test_runs_of_a_comparison_are_known_to_the_odometer(workspace: Workspace) -> None:
    """Rule 11: a comparison spends on the same patients as any other run, and losing sight of it is refused."""
    compare(settings(workspace, methods=("adp-fl",)))
    odometer = workspace.preprocessed / "sites" / "site-a" / "privacy_odometer.jsonl"
    assert "adp" in odometer.read_text().lower()
    odometer.unlink()
    with pytest.raises(Exception, match="odometer"):
        workspace.train("2d")


def scored(task: runs.RunTask, dice: float) -> dict[str, object]:
    """What a run would give."""
    return {
        "method": task.method.name, "seed": task.seed, "settings": {}, "tuned": dict(task.tuned), "sites": {}, "classes": {}, "cases": 1,
        "mean": {"dice": dice, "hd95_mm": 1.0, "nsd": 1.0}, "dice_of_units": {"one": dice}, "curve": [], "epsilon": None,
        "guarantee": "none", "not_covered": [],
    }  # fmt: skip


def test_tuning_tries_every_setting_on_others_and_keeps_the_best(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "check_other_patients", lambda *_: None)  # the tiny set stands in for others here
    tried: list[dict[str, object]] = []

    def run(task: runs.RunTask) -> dict[str, object]:
        tried.append({"method": task.method.name, **task.tuned, "folder": task.folder})
        rate = task.tuned.get("optimizer.learning_rate", task.tuned.get("optimizer.learning_rate_non_private", 0))
        dice = 0.9 - abs(float(rate) - 0.3)
        return scored(task, dice)

    monkeypatch.setattr(runs, "run", run)
    variant = "fixed10=dp-fl:clipping.clip_norm=10;optimizer.weight_decay=0.5"  # must not spoil what dp-fl is tuned to
    found = compare(settings(workspace, methods=("np-fl", "dp-fl", "adp-fl"), variants=(variant,), tune_on=tiny_dataset.NAME))
    assert found["methods"]["fixed10"]["tuned"] == {"optimizer.learning_rate": 0.3}
    sizes = {name: len(tuning.candidates(methods.METHODS[name])) for name in ("np-fl", "dp-fl", "adp-fl")}
    assert sizes == {"np-fl": 8, "dp-fl": 16, "adp-fl": 4}
    assert len(tried) == sum(sizes.values()) + 4
    assert {entry["clipping.clip_norm"] for entry in tried if entry["method"] == "dp-fl"} == {0.03, 0.1, 0.3, 1.0}
    assert found["methods"]["np-fl"]["tuned"] == {"optimizer.learning_rate_non_private": 0.3, "optimizer.momentum": 0.0}
    assert found["methods"]["dp-fl"]["tuned"]["optimizer.learning_rate"] == 0.3
    kept = Path(found["folder"]) / tuning.FILE_NAME
    assert len(read(kept)["tried"]["dp-fl"]) == 16
    assert tuning.load(kept)[0] == tiny_dataset.NAME
    assert tuning.load(kept)[1]["adp-fl"] == {"optimizer.learning_rate": 0.3}
    kept.write_text(json.dumps({"tried": 1}))
    with pytest.raises(InputError, match="not the tuning"):
        tuning.load(kept)


def test_a_setting_that_diverges_is_the_worst_of_its_grid_but_fails_a_compared_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "check_other_patients", lambda *_: None)
    too_large = [1.0, 3.0]

    def run(task: runs.RunTask) -> dict[str, object]:
        rate = float(task.tuned["optimizer.learning_rate_non_private"])
        if rate in too_large:
            raise DivergedError("case a: the network's output is not finite; its weights have diverged")
        return scored(task, rate)

    monkeypatch.setattr(runs, "run", run)
    asked = settings(workspace, methods=("np-fl",), tune_on=tiny_dataset.NAME)
    found = compare(asked)
    assert found["methods"]["np-fl"]["tuned"]["optimizer.learning_rate_non_private"] == 0.3
    tried = read(Path(found["folder"]) / tuning.FILE_NAME)["tried"]["np-fl"]
    assert sorted(entry["dice"][0] for entry in tried) == [0.0] * 4 + [0.1, 0.1, 0.3, 0.3]
    too_large.append(0.3)
    known = Path(found["folder"]) / tuning.FILE_NAME
    with pytest.raises(AdpflError, match=r"1 of 1 runs failed.*diverged"):
        compare(settings(workspace, methods=("np-fl",), tuning=known))


def test_settings_of_an_earlier_tuning_are_used_and_missing_ones_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "check_other_patients", lambda *_: None)
    path = workspace.base / "tuning.json"
    tuning.save(path, tiny_dataset.NAME, {"adp-fl": [({"optimizer.learning_rate": 0.07}, [0.5])]})
    with pytest.raises(InputError, match=r"has no settings of np-fl \(it has adp-fl\): tune it too"):
        compare(settings(workspace, tuning=path))
    assert not list(workspace.results.rglob("run.json"))
    variant = "by-hand=np-fl:optimizer.learning_rate_non_private=1;optimizer.momentum=0"  # nothing of it is left to tune
    found = compare(settings(workspace, methods=("adp-fl",), variants=(variant,), tuning=path))
    assert found["methods"]["adp-fl"]["tuned"] == {"optimizer.learning_rate": 0.07}
    plan = privacy_plans.load(Path(found["folder"]) / "adp-fl" / "seed_0" / "privacy_plan.json")
    assert plan.optimizer.learning_rate == 0.07


def test_rule_12_paper_methods_promise_nothing_and_the_table_says_what_their_own_epsilons_come_to(workspace: Workspace) -> None:
    found = compare(settings(workspace, methods=("paper", "paper-dp")))
    text = (Path(found["folder"]) / "comparison.md").read_text()
    for name in ("paper", "paper-dp"):
        row = found["methods"][name]
        assert (row["epsilon"], row["guarantee"]) == (None, "none")
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}: the training: ")]
        assert "no formal patient-level guarantee" in line
        assert re.search(r"\d{3,}|e\+\d", line), "the honest sum over coordinates and rounds"


@pytest.mark.slow
def test_runs_side_by_side_come_to_the_same_table(workspace: Workspace) -> None:
    found = compare(settings(workspace, methods=("np-fl", "dp-fl"), seeds=2, jobs=2))
    assert found["methods"]["np-fl"]["seeds"] == [0, 1]
    assert comparison.RESULT_FILE_NAME in {path.name for path in Path(found["folder"]).iterdir()}


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_run_behind(workspace: Workspace) -> None:
    """A run that went on alone would spend on patients, and nobody would know."""
    workspace.edit_plan(steps=100_000)
    asked = settings(workspace, methods=("np-fl",), seeds=2, jobs=2, curve_cases=0, workers=1)
    comparing = multiprocessing.get_context("spawn").Process(target=compare, args=(asked,))
    comparing.start()
    try:
        deadline = time.monotonic() + 120
        while len(list(workspace.results.rglob("rounds.jsonl"))) < 2:
            assert comparing.is_alive()
            assert time.monotonic() < deadline, "the runs do not begin"
            time.sleep(0.2)
        processes = psutil.Process(comparing.pid).children(recursive=True)
    finally:
        comparing.kill()
    assert len(processes) >= 4, "two runs, each with a loader of its own"
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
