"""The stages in one go, and what planning keeps and refuses to replace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import workspace as workspaces
from workspace import Workspace

import nnunet_adpfl
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation.report import write_report
from nnunet_adpfl.experiments import demo, pipeline
from nnunet_adpfl.experiments.pipeline import PlanningChoices, TrainingChoices
from nnunet_adpfl.federation.privacy_planning import PrivacyChoices
from nnunet_adpfl.privacy import plan as privacy_plans

PLANNING = PlanningChoices(base_features=2)
NAME = "801"


def privacy_plan_file(workspace: Workspace) -> Path:
    return next((workspace.base / "preprocessed").glob(f"*/{workspaces.PLANS}__{workspaces.CONFIGURATION}.privacy.json"))


def test_run_leaves_scores_epsilon_and_a_report(workspace: Workspace) -> None:
    done = pipeline.run(NAME, workspaces.CONFIGURATION, "0", PLANNING, workspaces.PRIVACY, TrainingChoices(mirroring=False))
    assert done["evaluation"]["cases"] > 0
    assert 0 < done["privacy"]["epsilon"] <= 8
    assert done["privacy"]["guarantee"] == "formal_given_plan"
    text = Path(done["report"]).read_text()
    assert "not for release" in text.lower()
    assert (Path(done["run"]) / "checkpoint_final.pth").is_file()
    assert set(done["seconds"]) == {"plan", "train", "evaluate", "report"}
    assert done["peak_memory_mib"]["process"] > 0
    json.dumps(done, allow_nan=False)


def test_run_of_fold_all_is_trained_and_not_evaluated(workspace: Workspace) -> None:
    done = pipeline.run(NAME, workspaces.CONFIGURATION, "all", PLANNING, workspaces.PRIVACY, TrainingChoices())
    assert done["evaluation"] is None
    assert 0 < done["privacy"]["epsilon"] <= 8


def test_a_privacy_plan_edited_by_hand_is_kept_when_no_setting_is_given(workspace: Workspace) -> None:
    path = privacy_plan_file(workspace)
    content = json.loads(path.read_text())
    content["patches_per_unit"] = 5
    path.write_text(json.dumps(content))
    pipeline.plan(NAME, [workspaces.CONFIGURATION], PLANNING, PrivacyChoices())
    assert privacy_plans.load(path).patches_per_unit == 5
    pipeline.plan(NAME, [workspaces.CONFIGURATION], PLANNING, PrivacyChoices(patches_per_unit=3))
    assert privacy_plans.load(path).patches_per_unit == 3


def test_a_privacy_plan_that_an_unfinished_run_needs_is_not_replaced(workspace: Workspace) -> None:
    run = nnunet_adpfl.train(
        NAME, workspaces.CONFIGURATION, 0, plans=workspaces.PLANS, workers=0, rounds=1
    )  # fmt: skip
    (run / "checkpoint_final.pth").rename(run / "checkpoint_latest.pth")
    before = privacy_plan_file(workspace).read_bytes()
    with pytest.raises(InputError, match="not finished"):
        pipeline.plan(NAME, [workspaces.CONFIGURATION], PLANNING, PrivacyChoices(patches_per_unit=3))
    assert privacy_plan_file(workspace).read_bytes() == before


def test_report_for_release_holds_no_private_score(workspace: Workspace) -> None:
    done = pipeline.run(NAME, workspaces.CONFIGURATION, "0", PLANNING, workspaces.PRIVACY, TrainingChoices(mirroring=False))
    text = write_report(Path(done["run"]), for_release=True).read_text()
    assert f"{done['evaluation']['mean']['dice']:.3f}" not in text
    assert "case_" not in text


@pytest.mark.slow
def test_demo_goes_through_every_stage_at_toy_size(tmp_path: Path) -> None:
    settings = demo.DemoSettings(lesions=24, rounds=1, local_steps=1, base_features=2)
    found = demo.demo(tmp_path / "demo", settings)
    assert list(found["methods"]) == list(demo.TRAINERS)
    assert found["methods"]["nnUNetTrainerNP"]["epsilon"] is None
    assert 0 < found["methods"]["nnUNetTrainerADP"]["epsilon"] <= 8
    assert all(Path(figures["report"]).is_file() for figures in found["methods"].values())
    assert Path(found["release"]["zip"]).is_file()
    assert 0 < found["constant_mask_dice"] < 1
    with pytest.raises(InputError, match="--overwrite"):
        demo.demo(tmp_path / "demo", settings)


def test_demo_replaces_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("mine")
    with pytest.raises(InputError, match="not a demo's"):
        demo.demo(tmp_path, overwrite=True)
    assert (tmp_path / "letters").read_text() == "mine"


def test_the_package_offers_what_its_docstring_lists() -> None:
    for name in nnunet_adpfl.__all__:
        assert getattr(nnunet_adpfl, name) is not None
        assert name in (nnunet_adpfl.__doc__ or "")
    with pytest.raises(AttributeError):
        nnunet_adpfl.nothing  # noqa: B018
