"""Rule 11 and 15: an update is taken for the task that it answers, once; anything else leaves the average as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from finished_runs import Result
from workspace import Workspace, assert_equal, ledgers, steps_paid, weights

from nnunet_adpfl.errors import AdpflError
from nnunet_adpfl.federation import stored_update
from nnunet_adpfl.federation.engines.in_process import InProcess
from nnunet_adpfl.federation.messages import RoundTask, SiteFailure, SiteUpdate

pytestmark = pytest.mark.slow  # whole runs: not among the quick tests of `make unit`

Answers = list[SiteUpdate]


class Network:
    """Carries messages badly: in one round, once, it delivers other answers than the sites gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_round: int, change: Callable[[Answers, list[Answers]], Answers]) -> None:
        self.tampered = 0
        original, earlier = InProcess.collect, []

        def collect(engine: InProcess, tasks: Mapping[str, RoundTask]) -> Iterator[SiteUpdate | SiteFailure]:
            answers: Any = list(original(engine, tasks))
            earlier.append(answers)
            if next(iter(tasks.values())).round == at_round and not self.tampered:
                self.tampered += 1
                answers = change(list(answers), earlier[:-1])
            yield from answers

        monkeypatch.setattr(InProcess, "collect", collect)


def another_task(update: SiteUpdate, **changes: Any) -> SiteUpdate:
    """The update as a site would give it for a task with another clip norm, other weights or another plan."""
    base = {
        "run": update.run, "round": update.round, "first_step": 2 * update.round, "steps": update.steps, "declared_steps": 6,
        "clip_norm": 1.0, "plan_hash": "p", "weights": {"w": np.zeros(1, np.float32)},
    }  # fmt: skip
    return replace(update, task_digest=stored_update.task_digest(RoundTask(**{**base, **changes})))


TAMPERED: dict[str, Callable[[Answers, list[Answers]], Answers]] = {
    "an older round": lambda now, before: [before[-1][0], now[1]],
    "an older round under this one's number": lambda now, before: [replace(before[-1][0], round=now[0].round), now[1]],
    "another run": lambda now, _: [replace(now[0], run="another"), now[1]],
    "an unknown site": lambda now, _: [now[0], replace(now[1], site="ghost")],
    "twice": lambda now, _: [now[0], now[0], now[1]],
    "in another order": lambda now, _: [now[1], now[0]],
    "another clip norm": lambda now, _: [another_task(now[0], clip_norm=2.0), now[1]],
    "other weights": lambda now, _: [another_task(now[0], weights={"w": np.ones(1, np.float32)}), now[1]],
    "another privacy plan": lambda now, _: [another_task(now[0], plan_hash="q"), now[1]],
    "no task at all": lambda now, _: [replace(now[0], task_digest=""), now[1]],
    "an extra tensor": lambda now, _: [replace(now[0], weights={**now[0].weights, "evil": np.zeros(1, np.float32)}), now[1]],
    "a tensor less": lambda now, _: [replace(now[0], weights=dict(list(now[0].weights.items())[1:])), now[1]],
    "another type": lambda now, _: [with_first(now[0], lambda value: value.astype(np.float64)), now[1]],
    "another shape": lambda now, _: [with_first(now[0], lambda value: value[None]), now[1]],
    "not finite": lambda now, _: [with_first(now[0], lambda value: value * np.float32(math.nan)), now[1]],
    "not an array": lambda now, _: [with_first(now[0], lambda value: value.tolist()), now[1]],
    "a count that is no number": lambda now, _: [replace(now[0], noisy_count="3"), now[1]],
}  # fmt: skip


def with_first(update: SiteUpdate, change: Callable[[np.ndarray], Any]) -> SiteUpdate:
    name = next(iter(update.weights))
    return replace(update, weights={**update.weights, name: change(update.weights[name])})


QUICK = ("an older round under this one's number", "twice", "other weights", "a count that is no number")


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in TAMPERED])
def test_rule_15_the_server_refuses_it_and_averages_the_same_bits(
    case: str, workspace: Workspace, undisturbed: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network(monkeypatch, 1, TAMPERED[case])
    run = workspace.train()
    assert network.tampered == 1
    assert "round 1, site" in capsys.readouterr().err  # it was noticed, and the round repeated
    assert_equal(weights(run), undisturbed.weights)
    assert Result.of(run).records == undisturbed.records
    assert all(steps_paid(lines) == 6 for lines in ledgers(run).values())


def test_rule_15_a_network_that_keeps_replaying_stops_the_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    original = InProcess.collect
    first: list[Any] = []

    def collect(engine: InProcess, tasks: Mapping[str, RoundTask]) -> Iterator[Any]:
        answers = list(original(engine, tasks))
        first.extend(answers if not first else [])
        yield from first

    monkeypatch.setattr(InProcess, "collect", collect)
    with pytest.raises(AdpflError, match="round 1 failed twice"):
        workspace.train()
    assert not (workspace.run() / "checkpoint_final.pth").exists()
