"""Strategies of the privacy plan: what the server makes of an average, and what stays at a site. All of it is free of
privacy cost, so every one must spend exactly what FedAvg spends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import Result
from workspace import Workspace, assert_equal, ledgers, steps_paid, weights

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import client
from nnunet_adpfl.federation.engines import in_process
from nnunet_adpfl.federation.server_optimizer import SECOND_DECAY, ServerOptimizer
from nnunet_adpfl.privacy.mechanism import NoisyUpdate
from nnunet_adpfl.privacy.plan import Optimizer, Rounds
from nnunet_adpfl.trainers.post_processing import average_decay
from nnunet_adpfl.trainers.private_training import PrivateTraining

START = {"w": np.array([1.0, 2.0], dtype=np.float32)}
AVERAGES = [{"w": np.array(values, dtype=np.float32)} for values in ([2.0, 2.0], [2.0, 3.0])]


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedbn"])
def test_without_a_server_optimizer_the_average_is_taken_as_it_is(strategy: str) -> None:
    server = ServerOptimizer(Rounds(strategy=strategy), START)
    assert np.array_equal(server.step(START, AVERAGES[0])["w"], AVERAGES[0]["w"])
    assert server.state() is None


def test_fedavgm_follows_its_formula() -> None:
    server = ServerOptimizer(Rounds(strategy="fedavgm", server_momentum=0.5, server_learning_rate=0.5), START)
    first = server.step(START, AVERAGES[0])  # change (1, 0), velocity (1, 0)
    assert np.allclose(first["w"], [1.5, 2.0])
    second = server.step(first, AVERAGES[1])  # change (.5, 1), velocity (1, 1)
    assert np.allclose(second["w"], [2.0, 2.5])


def test_fedadam_follows_its_formula() -> None:
    server = ServerOptimizer(
        Rounds(strategy="fedadam", server_momentum=0.9, server_learning_rate=0.1, server_adaptivity=0.01), START
    )
    step = server.step(START, AVERAGES[0])["w"] - START["w"]
    expected = 0.1 * 0.1 / (np.sqrt((1 - SECOND_DECAY) * 1.0) + 0.01)
    assert np.allclose(step, [expected, 0.0], atol=1e-6)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_a_server_optimizer_goes_on_from_its_checkpoint_in_the_same_bits(strategy: str) -> None:
    settings = Rounds(strategy=strategy)
    whole = ServerOptimizer(settings, START)
    first = whole.step(START, AVERAGES[0])
    resumed = ServerOptimizer(settings, START, whole.state())
    assert np.array_equal(whole.step(first, AVERAGES[1])["w"], resumed.step(first, AVERAGES[1])["w"])


def test_moments_that_do_not_fit_are_refused() -> None:
    for moments in ({"first": {"w": torch.zeros(3, dtype=torch.float64)}}, {"first": {"w": torch.full((2,), np.nan).double()}}, {}):
        with pytest.raises(InputError, match="server momentum"):
            ServerOptimizer(Rounds(strategy="fedavgm"), START, moments)


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam", "fedbn"])
def test_rule_11_every_strategy_spends_what_fedavg_spends_and_gives_another_model(
    strategy: str, workspace: Workspace, undisturbed: Result
) -> None:
    workspace.edit_plan(rounds={"strategy": strategy, "server_learning_rate": 0.5, "proximal_mu": 5.0})
    run = workspace.train("3d_fullres")
    assert {site: steps_paid(lines) for site, lines in ledgers(run).items()} == {"site-a": 6, "site-b": 6}
    found = weights(run)
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert any(not torch.equal(value, undisturbed.weights[name]) for name, value in found.items())


def test_fedprox_pulls_towards_the_weights_that_the_round_began_with(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Li et al. 2020, eq. 2: mu (w - w_0) on top of the noisy gradient, after the noise."""
    workspace.edit_plan(rounds={"strategy": "fedprox", "proximal_mu": 0.7})
    original, pulls = PrivateTraining._apply, []

    def watched(training: PrivateTraining, update: NoisyUpdate, step: int, anchor: Mapping[str, torch.Tensor]) -> None:
        noisy = {name: value.clone() for name, value in update.gradient.items()}
        moved = {name: training.trained[name].detach() - start for name, start in anchor.items()}
        take_step = training.optimizer.step

        def step_with_these(*_: object) -> None:
            for name, away in moved.items():
                gradient = training.trained[name].grad
                assert gradient is not None
                assert torch.allclose(gradient - noisy[name].reshape(away.shape), 0.7 * away, atol=1e-4)
                pulls.append(0.7 * float(away.abs().max()))
            take_step()

        with monkeypatch.context() as patch:
            patch.setattr(training.optimizer, "step", step_with_these)
            original(training, update, step, anchor)

    monkeypatch.setattr(PrivateTraining, "_apply", watched)
    workspace.train("3d_fullres")
    assert max(pulls) > 1e-2, "later steps are away from the round's start, by a hundred times what was tolerated"


@pytest.mark.parametrize("strategy", ["fedavgm", "fedbn"])
def test_rule_11_an_interrupted_run_ends_in_the_same_bits(strategy: str, planned: Path, workspace: Workspace) -> None:
    workspace.edit_plan(rounds={"strategy": strategy}, optimizer={"ema_decay": 0.5})
    workspace.train_until(2)
    broken = weights(workspace.train(go_on=True))
    state = torch.load(workspace.run() / "checkpoint_final.pth", weights_only=True)["adpfl"]
    assert (state["server_moments"], state["local_layers"]) == (None, None)
    run = workspace.run().rename(workspace.base / "first")
    if strategy == "fedbn":
        first = {site: weights(run / "sites" / site) for site in ("site-a", "site-b")}
    whole = weights(workspace.train())
    assert_equal(broken, whole)
    if strategy == "fedbn":
        for site, values in first.items():
            assert_equal(values, weights(workspace.run() / "sites" / site))


def test_fedbn_sites_go_on_with_their_own_layers_and_keep_a_model_of_their_own(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    starts: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    original = client._restore_optimizer

    def watched(training: object, task: client.RoundTask, site: client.Site) -> None:
        starts[task.round, site.name] = {name: p.detach().numpy().copy() for name, p in site.model.trained.items()}
        original(training, task, site)  # type: ignore[arg-type]

    def run_site_round(task: client.RoundTask, site: client.Site) -> client.SiteUpdate:
        update = client.run_site_round(task, site)
        updates[task.round, site.name] = update.weights
        return update

    monkeypatch.setattr(client, "_restore_optimizer", watched)
    monkeypatch.setattr(in_process, "run_site_round", run_site_round)
    workspace.edit_plan(rounds={"strategy": "fedbn", "local_patterns": ["*norm*"]})
    run = workspace.train()
    for site in ("site-a", "site-b"):
        for name, value in starts[1, site].items():
            own = np.array_equal(value, updates[0, site][name])
            assert own == ("norm" in name), name
    models = {site: weights(run / "sites" / site) for site in ("site-a", "site-b")}
    norms = [name for name in models["site-a"] if ".norm." in name and name in updates[2, "site-a"]]
    assert norms
    for name in norms:
        assert np.array_equal(models["site-a"][name].numpy(), updates[2, "site-a"][name])
        assert not torch.equal(models["site-a"][name], models["site-b"][name])


def test_rule_11_a_repeated_round_starts_from_the_layers_before_it(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that fails after its own layers were stored, and is asked again, starts from those of the round before."""
    starts: list[dict[str, np.ndarray]] = []
    original, save = client._restore_optimizer, client.stored_update.save

    def watched(training: object, task: client.RoundTask, site: client.Site) -> None:
        if (task.round, site.name) == (1, "site-a"):
            starts.append({name: p.detach().numpy().copy() for name, p in site.model.trained.items() if "norm" in name})
        original(training, task, site)  # type: ignore[arg-type]

    def lost_once(update: client.SiteUpdate, task: client.RoundTask, folder: Path) -> None:
        if (task.round, update.site, len(starts)) == (1, "site-a", 1):
            raise InputError("the connection is lost")
        save(update, task, folder)

    monkeypatch.setattr(client, "_restore_optimizer", watched)
    monkeypatch.setattr(client.stored_update, "save", lost_once)
    workspace.edit_plan(rounds={"strategy": "fedbn"})
    workspace.train()
    assert len(starts) == 2
    for name, value in starts[0].items():
        assert np.array_equal(value, starts[1][name]), name


def test_fedbn_refuses_patterns_that_match_nothing(workspace: Workspace) -> None:
    workspace.edit_plan(rounds={"strategy": "fedbn", "local_patterns": ["nothing"]})
    with pytest.raises(InputError, match="local_patterns"):
        workspace.train()


def test_fedbn_without_its_own_layers_stops(workspace: Workspace) -> None:
    workspace.edit_plan(rounds={"strategy": "fedbn"})
    run = workspace.train_until(1)
    (run / "sites" / "site-a" / "local_layers_after_round_0.pth").unlink()
    with pytest.raises(Exception, match="keeps these layers"):
        workspace.train(go_on=True)


def test_tail_average_is_the_plain_mean_of_the_last_weights() -> None:
    settings = Optimizer(tail_share=0.5)
    average, seen = 0.0, []
    for step in range(10):
        decay = average_decay(settings, step, 1, 10)
        average = decay * average + (1 - decay) * step
        seen.append(average)
    assert seen[:6] == [0, 1, 2, 3, 4, 5]
    assert seen[-1] == pytest.approx(np.mean([5, 6, 7, 8, 9]))


def test_moving_average_has_no_start_up_bias() -> None:
    settings = Optimizer(ema_decay=0.9)
    assert [average_decay(settings, 5 * number, 5, 100) for number in (0, 1, 2)] == [0, 0.5, pytest.approx(0.9**5)]
