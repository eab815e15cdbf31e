"""Rule 11: several runs on the same patients add up, and the odometer says to what."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import tiny_dataset
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from workspace import ROUNDS, SITES, Workspace, ledgers, read

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import folds
from nnunet_adpfl.cli.main import app
from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.privacy import accounting, summary
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.trainers.patient_totals import Total, dataset_totals, total_of, worst_total
from nnunet_adpfl.trainers.run_spending import RunSpending

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

DELTA = 1e-3


def independent_total(*runs: list[dict[str, Any]]) -> float:
    """All lines of the given ledgers in one accountant, by dp-accounting alone."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for line in (line for lines in runs for line in lines if line["event"] == "poisson_gaussian"):
        step = dp_accounting.PoissonSampledDpEvent(line["sampling_rate"], dp_accounting.GaussianDpEvent(line["noise_multiplier"]))
        accountant.compose(step, line["steps"])
    return float(accountant.get_epsilon(DELTA))


def spent(run: str = "r", units: str = "ab", events: Any = (), **more: Any) -> RunSpending:
    return RunSpending(run, frozenset(units), tuple(events), more.pop("releases", {}), DELTA, **more)


EVENT = accounting.poisson_gaussian(0.25, 2.0, 10)


def test_rule_11_two_runs_on_the_same_patients_add_up(workspace: Workspace) -> None:
    runs = []
    for name in ("first", "second"):
        run = workspace.train()
        runs.append(ledgers(run))
        run.rename(workspace.base / name)
    found = dataset_totals(workspace.preprocessed)
    assert (found["runs"], found["delta"], found["unit"], found["accountant"]) == (2, DELTA, "patient", "PLD")
    for site in SITES:
        both = independent_total(*(run[site] for run in runs))
        assert found["sites"][site]["epsilon"] == pytest.approx(both, abs=0.02)
        assert both > 1.3 * independent_total(runs[0][site])
    assert found["epsilon"] == max(site["epsilon"] for site in found["sites"].values())
    shutil.rmtree(workspace.base / "first")
    assert dataset_totals(workspace.preprocessed)["epsilon"] == found["epsilon"]


def test_rule_11_a_patient_trains_in_all_folds_but_one(workspace: Workspace) -> None:
    cohort = cohorts.load(workspace.preprocessed)
    splits = folds.load_splits(workspace.preprocessed, cohort)
    runs = [ledgers(workspace.train(fold=fold)) for fold in range(len(splits))]
    found = dataset_totals(workspace.preprocessed)["sites"][SITES[0]]
    most = max(
        sum(unit in cohort.cases_by_unit(SITES[0], set(split["train"])) for split in splits) for unit in cohort.units(SITES[0])
    )
    assert most == len(splits) - 1
    assert found["epsilon"] == pytest.approx(independent_total(*(run[SITES[0]] for run in runs[:most])), abs=0.02)


def test_rule_11_an_abandoned_run_counts_as_declared(workspace: Workspace) -> None:
    run = workspace.train_until(1)
    taken = independent_total(ledgers(run)[SITES[0]])
    shutil.rmtree(run)
    found = dataset_totals(workspace.preprocessed)
    steps = ROUNDS * 2 + 4  # with the reserve: it may have been used, had the run gone on
    whole = [{**ledgers(workspace.train())[SITES[0]][-1], "steps": steps}]
    assert found["sites"][SITES[0]]["epsilon"] == pytest.approx(independent_total(whole), abs=0.02)
    assert found["epsilon"] > taken
    assert not found["sites"][SITES[0]]["runs"][0]["complete"]


def test_rule_11_a_run_without_privacy_leaves_no_bound(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.train()
    workspace.train(trainer="nnUNetTrainerNP")
    found = dataset_totals(workspace.preprocessed)
    assert (found["epsilon"], found["guarantee"]) == (None, "none")
    assert [run["epsilon"] is None for run in found["sites"][SITES[0]]["runs"]] == [False, True]
    app(["privacy", tiny_dataset.NAME], standalone_mode=False)
    assert "no bound for its patients" in capsys.readouterr().out
    workspace.train(fold=1)
    assert "has no bound" in capsys.readouterr().err


def test_rule_11_the_total_is_said_before_the_first_step(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.train()
    said = capsys.readouterr().err
    alone = dataset_totals(workspace.preprocessed)["epsilon"]
    assert f"over this run and 0 earlier ones on the same patients will be epsilon {alone:.4g}" in said
    workspace.run().rename(workspace.base / "first")
    workspace.train_until(0)
    said = capsys.readouterr().err
    workspace.train(go_on=True)
    again = capsys.readouterr().err
    both = dataset_totals(workspace.preprocessed)["epsilon"]
    assert both > alone
    for text in (said, again):
        assert f"over this run and 1 earlier one on the same patients will be epsilon {both:.4g}" in text


def test_rule_11_the_command_gives_json(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    app(["privacy", tiny_dataset.NAME, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["epsilon"] == 0
    run = workspace.train()
    capsys.readouterr()
    app(["privacy", "4" if tiny_dataset.NAME.startswith("Dataset004") else tiny_dataset.NAME, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["guarantee"] == "formal_given_plan"
    assert found["sites"][SITES[0]]["runs"][0]["run"] == read(run / "run.json")["run"]


def test_rule_11_a_shortened_odometer_is_refused(workspace: Workspace) -> None:
    workspace.train()
    path = workspace.preprocessed / "sites" / SITES[0] / "privacy_odometer.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(PrivacyRefusedError, match="odometer"):
        dataset_totals(workspace.preprocessed)


def test_rule_11_the_costliest_set_of_runs_is_reported() -> None:
    cheap, dear = [accounting.poisson_gaussian(0.25, 4.0, 10)], [EVENT]
    runs = [spent("1", "ab", cheap), spent("2", "b", dear), spent("3", "c", dear), spent("4", "c", dear)]
    assert worst_total(runs, DELTA) == total_of(runs[2:], DELTA)
    assert worst_total(runs[:3], DELTA) == total_of(runs[:2], DELTA)
    assert worst_total([], DELTA) == Total(0.0, DELTA)


def test_rule_13_a_noisy_fingerprint_is_counted_once_for_all_runs_that_used_it() -> None:
    release = {"fingerprint-1": accounting.gaussian(1.0)}
    runs = [spent("1", events=[EVENT], releases=release), spent("2", events=[EVENT], releases=release)]
    expected = accounting.epsilon([EVENT, EVENT, accounting.gaussian(1.0)], DELTA)
    assert total_of(runs, DELTA).epsilon == pytest.approx(expected)
    other = {"fingerprint-2": accounting.gaussian(1.0)}
    assert (total_of([runs[0], spent("2", events=[EVENT], releases=other)], DELTA).epsilon or 0) > expected + 0.1


def test_rule_10_runs_under_filters_add_up_by_what_their_filters_allow() -> None:
    low, high = 4.0, 6.0
    filtered = [
        spent("1", events=[EVENT], order=low, budget_epsilon=3.0),
        spent("2", events=[EVENT], order=high, budget_epsilon=2.0),
    ]
    total = total_of([*filtered, spent("3", events=[EVENT])], DELTA)
    accountant = RdpAccountant([low])
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(2.0)), 10)
    allowed = sum(accounting.rdp_of_epsilon(run.budget_epsilon or 0, DELTA, run.order or 0) for run in filtered)
    assert total.accountant == "RDP"
    assert total.epsilon == pytest.approx(accounting.epsilon_of_rdp(float(accountant.rdp[0]) + allowed, DELTA, low))
    assert (total.epsilon or 0) > 3.0
    alone = total_of(filtered[:1], DELTA)
    assert alone.epsilon == pytest.approx(3.0)


def test_rule_10_renyi_and_epsilon_convert_as_dp_accounting_does() -> None:
    for order in (2.0, 5.0, 32.0):
        spending = accounting.rdp([EVENT], order)
        assert accounting.epsilon_of_rdp(spending, DELTA, order) == pytest.approx(accounting.epsilon_rdp([EVENT], DELTA, order))
        assert accounting.epsilon_of_rdp(accounting.rdp_of_epsilon(8.0, DELTA, order), DELTA, order) == pytest.approx(8.0)


def test_a_damaged_split_file_makes_everybody_a_user_of_every_run(workspace: Workspace) -> None:
    workspace.train(fold=0)
    workspace.train(fold=1)
    known = dataset_totals(workspace.preprocessed)["epsilon"]
    (workspace.preprocessed / "splits_final.json").unlink()
    found = dataset_totals(workspace.preprocessed)
    assert found["epsilon"] >= known
    assert {run["units"] for run in found["sites"][SITES[0]]["runs"]} == {5}


def test_paths_are_runs_and_names_are_data_sets(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run: Path = workspace.train()
    capsys.readouterr()
    app(["privacy", str(run), "--json"], standalone_mode=False)
    assert "not_covered" in json.loads(capsys.readouterr().out)


def test_rule_11_a_repeated_round_makes_the_target_hold(workspace: Workspace) -> None:
    """How often a round is repeated depends on what happened on the way, so what was realised promises nothing."""
    run = workspace.run()
    with pytest.raises(KeyboardInterrupt), killed_in_the_second_step():
        workspace.train()
    workspace.train(go_on=True)
    found = summary.summarise(run)["sites"][SITES[0]]
    assert found["complete"]
    assert (found["epsilon"], found["steps"]) == (8.0, ROUNDS * 2 + 2)
    assert found["epsilon_spent"] < 8
    entry = dataset_totals(workspace.preprocessed)["sites"][SITES[0]]["runs"][-1]
    assert 7.9 < entry["epsilon"] <= 8


@contextmanager
def killed_in_the_second_step() -> Iterator[None]:
    """A process that dies after the ledger was written and before the update."""
    original, taken = Mechanism.release, []

    def release(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(Mechanism, "release", release)
        yield


def test_rule_11_a_lost_odometer_is_noticed(workspace: Workspace) -> None:
    workspace.train()
    shutil.rmtree(workspace.preprocessed / "sites")
    with pytest.raises(PrivacyRefusedError, match="does not know run"):
        dataset_totals(workspace.preprocessed)
    with pytest.raises(PrivacyRefusedError, match="does not know run"):
        workspace.train(fold=1)


def test_rule_11_a_site_that_the_cohort_forgot_is_noticed(workspace: Workspace) -> None:
    workspace.train()
    (workspace.preprocessed / "sites" / SITES[0]).rename(workspace.preprocessed / "sites" / "old-name")
    with pytest.raises(PrivacyRefusedError, match="a site that the cohort does not know"):
        dataset_totals(workspace.preprocessed)


def test_rule_13_a_privacy_plan_cannot_call_a_pooled_plan_public(workspace: Workspace) -> None:
    workspace.edit_plan(fingerprint="public")
    found = summary.summarise(workspace.train())
    assert found["guarantee"] == "formal_given_plan"
    assert "the nnU-Net plan was declared public: made from another, public data set" in found["not_covered"]


def test_rule_13_of_one_fingerprint_with_two_noises_the_dearer_counts() -> None:
    real, forged = accounting.gaussian(0.8), accounting.gaussian(1000.0)
    for order in ((real, forged), (forged, real)):
        runs = [spent(str(index), events=[EVENT], releases={"f": event}) for index, event in enumerate(order)]
        assert total_of(runs, DELTA).epsilon == pytest.approx(accounting.epsilon([EVENT, EVENT, real], DELTA))


def test_rule_16_what_is_declared_is_said_with_the_claim(workspace: Workspace, tmp_path: Path) -> None:
    public = tmp_path / "public.pth"
    weights = torch.load(workspace.train(trainer="nnUNetTrainerNP") / "checkpoint_final.pth", weights_only=True)["network_weights"]
    torch.save({"network_weights": weights}, public)
    digest = hashlib.sha256(public.read_bytes()).hexdigest()
    workspace.edit_plan(initial_weights={"kind": "public", "file": str(public), "sha256": digest}, validation="public")
    said = summary.summarise(workspace.train())["not_covered"]
    assert f"initial weights were declared public (sha256 {digest})" in said
    assert "validation patients were declared public" in said
