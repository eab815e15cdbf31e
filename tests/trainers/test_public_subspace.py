"""Training in a public subspace: the right span, clip and noise of the coefficients, no patient in the directions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from workspace import Workspace, assert_equal, ledgers, steps_paid, weights

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.clipping import NormClip
from nnunet_adpfl.privacy.gradients.interface import PROJECTED, ClippedSum, UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.mechanism import Mechanism
from nnunet_adpfl.privacy.plan import Projection
from nnunet_adpfl.trainers import prepared_fold
from nnunet_adpfl.trainers.private_training import PrivateTraining
from nnunet_adpfl.trainers.public_subspace import PublicSubspace, leading_directions

ON = {"dimensions": 3, "public_gradients": 5, "public_batch": 1, "refresh_steps": 4}


@given(seed=st.integers(0, 100), rows=st.integers(1, 12), dimensions=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_directions_are_orthonormal_and_hold_the_most(seed: int, rows: int, dimensions: int) -> None:
    gradients = torch.randn(rows, 40, generator=torch.Generator().manual_seed(seed))
    found = leading_directions(gradients, dimensions)
    assert found.shape == (min(rows, dimensions), 40)
    assert torch.allclose(found @ found.T, torch.eye(len(found)), atol=1e-4)
    values = torch.linalg.svdvals(gradients)
    held = float((gradients @ found.T).square().sum())
    assert held == pytest.approx(float(values[:dimensions].square().sum()), rel=1e-3)


def test_rows_that_span_less_give_fewer_directions_and_nothing_gives_none() -> None:
    assert leading_directions(torch.ones(4, 10), 3).shape == (1, 10)
    assert leading_directions(torch.zeros(0, 10), 3).shape == (0, 10)


def subspace(dimensions: int = 2) -> tuple[PublicSubspace, dict[str, nn.Parameter], list[int]]:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3)
    drawn: list[int] = []

    def draw(number: int, size: int) -> Any:
        drawn.append(number)
        generator = torch.Generator().manual_seed(number)
        return torch.randn(size, 1, 6, 6, generator=generator), torch.zeros(size, 2, 4, 4)

    def loss(output: Any, target: Any) -> torch.Tensor:
        return ((output - target) ** 2).mean()

    chosen = Projection(dimensions=dimensions, public_gradients=4, public_batch=2, refresh_steps=10)
    trained = dict(network.named_parameters())
    return PublicSubspace(chosen, network, loss, trained, draw), trained, drawn


def tensors(trained: dict[str, nn.Parameter], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in trained.values()]


def flat(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in gradients])


def test_a_projection_keeps_the_span_and_shortens_everything_else() -> None:
    space, trained, _ = subspace(dimensions=4)
    space.prepare(0)
    gradient = tensors(trained)
    once = space.spread(space.coefficients(gradient))
    twice = space.spread(space.coefficients(list(once.values())))
    assert torch.allclose(flat(twice.values()), flat(once.values()), atol=1e-5)  # what lies in the span stays
    rest = flat(gradient) - flat(once.values())
    assert torch.dot(rest, flat(once.values())) == pytest.approx(0, abs=1e-4)
    assert {name: value.shape for name, value in once.items()} == {name: p.shape for name, p in trained.items()}


class Stretched:
    """Directions that are neither orthonormal nor short."""

    count = 5

    def __init__(self, parameters: int) -> None:
        self._map = 100 * torch.randn(5, parameters, generator=torch.Generator().manual_seed(1))

    def coefficients(self, gradients: Any) -> torch.Tensor:
        return self._map @ flat(gradients)


@given(seed=st.integers(0, 1000), log_scale=st.floats(-3, 6), clip=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_rule_03_a_unit_adds_at_most_norm_one_whatever_the_directions_are(seed: int, log_scale: float, clip: float) -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3)
    trained = dict(network.named_parameters())
    engine = LoopEngine(
        network, lambda output, target: ((output - target) ** 2).mean(), trained,  # type: ignore[operator]
        directions=Stretched(sum(p.numel() for p in trained.values())),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    unit = UnitPatches(10**log_scale * torch.randn(2, 1, 6, 6, generator=generator), torch.zeros(2, 2, 4, 4))
    total = engine.clipped_sum([unit], NormClip(clip)).total
    assert list(total) == [PROJECTED]
    assert total[PROJECTED].shape == (5,)
    assert float(total[PROJECTED].double().norm()) <= 1 + 1e-6
    both = engine.clipped_sum([unit, unit], NormClip(clip)).total[PROJECTED]
    assert torch.allclose(both, 2 * total[PROJECTED], rtol=1e-5)


def test_directions_are_found_anew_only_after_the_declared_steps() -> None:
    space, _, drawn = subspace()
    for first_step in (0, 5, 9, 10, 15):
        space.prepare(first_step)
    assert drawn == [0, 1, 2, 3, 4, 5, 6, 7]


def test_before_prepare_nothing_is_projected() -> None:
    space, trained, _ = subspace()
    with pytest.raises(RuntimeError, match="prepare"):
        space.coefficients(tensors(trained))


def test_rule_04_the_coefficients_get_the_noise_and_nothing_else_reaches_the_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.edit_plan(projection=ON)
    released: list[torch.Tensor] = []
    original, release = PublicSubspace.spread, Mechanism.release

    def watched_release(self: Any, summed: ClippedSum, *arguments: Any) -> Any:
        before = summed.total[PROJECTED].clone()
        update = release(self, summed, *arguments)
        assert list(update.gradient) == [PROJECTED]
        assert bool((update.gradient[PROJECTED] * self.expected_units(arguments[1]) != before).all())
        released.append(update.gradient[PROJECTED].clone())
        return update

    def watched(self: PublicSubspace, coefficients: torch.Tensor) -> dict[str, torch.Tensor]:
        assert torch.equal(coefficients, released[-1])
        return original(self, coefficients)

    monkeypatch.setattr(Mechanism, "release", watched_release)
    monkeypatch.setattr(PublicSubspace, "spread", watched)
    run = workspace.train()
    assert len(released) == 12
    assert {site: steps_paid(lines) for site, lines in ledgers(run).items()} == {"site-a": 6, "site-b": 6}


def test_a_repeated_run_finds_the_same_directions(workspace: Workspace) -> None:
    workspace.edit_plan(projection=ON)
    first = weights(workspace.train())
    workspace.run().rename(workspace.base / "first")
    assert_equal(first, weights(workspace.train()))


def test_all_sites_of_a_round_share_the_directions(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.edit_plan(projection=ON)
    seen: list[tuple[int, str]] = []
    original = PrivateTraining.run_block

    def watched(self: PrivateTraining, permit: Any, site: str, cases: Any, **settings: Any) -> Any:
        outcome = original(self, permit, site, cases, **settings)
        assert self._subspace is not None
        assert self._subspace._found is not None
        seen.append((settings["first_step"], str(float(self._subspace._found[1].sum()))))
        return outcome

    monkeypatch.setattr(PrivateTraining, "run_block", watched)
    workspace.train()
    by_step: dict[int, set[str]] = {}
    for step, digest in seen:
        by_step.setdefault(step, set()).add(digest)
    assert {step: len(digests) for step, digests in by_step.items()} == {0: 1, 2: 1, 4: 1}
    assert by_step[0] == by_step[2] != by_step[4]


@pytest.mark.parametrize("trainer", ["nnUNetTrainerDP", "nnUNetTrainerNP"])
def test_only_adp_projects(trainer: str, workspace: Workspace) -> None:
    workspace.edit_plan(projection=ON)
    plan = privacy_plans.load(workspace.plan_file)
    assert prepared_fold.variant(plan, trainer).projection.dimensions == 0
    assert prepared_fold.variant(plan, "nnUNetTrainerADP").projection.dimensions == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"projection": ON, "trainable": {"random_mask": 0.5}},
        {"projection": ON, "optimizer": {"name": "adam"}},
        {"projection": {**ON, "dimensions": 6}},
        {"projection": ON, "engine": "fused"},
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], workspace: Workspace, tmp_path: Path) -> None:
    workspace.edit_plan(**changes)
    with pytest.raises(InputError):
        workspace.train()
