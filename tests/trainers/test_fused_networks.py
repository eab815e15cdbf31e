"""The fused engine on nnU-Net's own networks and losses, in all shapes that the trainers meet."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import real_networks
from real_networks import PLAIN_2D, PLAIN_3D, RESIDUAL_3D, SHAPES, Shape, distance, norm, unit
from workspace import Workspace

from nnunet_adpfl.errors import PrivacyRefusedError
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy.clipping import AutoClip, NoClip, NormClip
from nnunet_adpfl.privacy.gradients import record, weight_gradients
from nnunet_adpfl.privacy.gradients.fused import FusedEngine
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.trainers.private_model import PrivateModel

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
some_shapes = pytest.mark.parametrize("shape", [PLAIN_2D, PLAIN_3D, RESIDUAL_3D], ids=str)

_FEW_PIXELS = 600  # over all patches

pytestmark = pytest.mark.slow  # nnU-Net's own networks, eight shapes


def build(workspace: Workspace, shape: Shape) -> tuple[PlannedTrainer, PrivateModel]:
    planned, model = real_networks.build(workspace, shape, engine="fused")
    assert isinstance(model.engine, FusedEngine)
    assert model.engine.unsupported is None
    return planned, model


def double(model: PrivateModel) -> tuple[FusedEngine, LoopEngine]:
    """The network in float64, with nnU-Net's own loss."""
    network = copy.deepcopy(model.network).double()
    trained = {name: parameter for name, parameter in network.named_parameters() if name in model.trained}
    return FusedEngine(network, model.loss, trained, patches_at_once=8), LoopEngine(network, model.loss, trained)


def as_double(whole: UnitPatches) -> UnitPatches:
    return UnitPatches(whole.data.double(), whole.target)


@shapes
@pytest.mark.parametrize("patches", [1, 3])
def test_rule_03_sums_agree_with_the_loop(shape: Shape, patches: int, workspace: Workspace) -> None:
    planned, model = build(workspace, shape)
    fused, loop = double(model)
    group = [as_double(unit(planned, seed, patches, scale)) for seed, scale in ((1, 1.0), (2, 3.0), (3, 0.1))]
    clip = norm(loop.clipped_sum(group[:1], NoClip()).total)
    for rule in (NoClip(), NormClip(clip), AutoClip(0.01)):
        found, expected = fused.clipped_sum(group, rule), loop.clipped_sum(group, rule)
        assert list(found.total) == list(model.trained)
        assert distance(found.total, expected.total) < 1e-12
        assert found.losses == pytest.approx(expected.losses)


def wherever_cheap(way: str) -> Callable[..., str]:
    """This way for all layers with few pixels: Gram matrices of the others would take minutes."""
    return lambda product, room: way if product.source[:, 0].numel() <= _FEW_PIXELS else "keep"


@some_shapes
@pytest.mark.parametrize("way", ["ghost", "twice"])
def test_rule_03_each_way_of_a_layer_agrees_with_the_loop(
    shape: Shape, way: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "choose", wherever_cheap(way))
    planned, model = build(workspace, shape)
    fused, loop = double(model)
    group = [as_double(unit(planned, seed, 2)) for seed in (1, 2)]
    assert distance(fused.clipped_sum(group, NoClip()).total, loop.clipped_sum(group, NoClip()).total) < 1e-12
    # A clipped sum may be shorter by the rounding that norms from Gram matrices allow for.
    allowed = 1e-6 if way == "ghost" else 1e-12
    assert distance(fused.clipped_sum(group, NormClip(1e-3)).total, loop.clipped_sum(group, NormClip(1e-3)).total) < allowed


@some_shapes
def test_rule_03_one_patient_changes_the_sum_by_at_most_one(shape: Shape, workspace: Workspace) -> None:
    planned, model = build(workspace, shape)
    group = [unit(planned, seed, 2, scale) for seed, scale in ((1, 1e-3), (2, 1.0), (3, 1e4))]
    for rule in (NormClip(1e-3), NormClip(10.0), AutoClip(0.01)):
        everyone = model.engine.clipped_sum(group, rule).total
        for left_out in range(3):
            alone = model.engine.clipped_sum([group[left_out]], rule).total
            assert norm(alone) <= 1 + 1e-5
            others = model.engine.clipped_sum([one for index, one in enumerate(group) if index != left_out], rule).total
            change = {name: everyone[name].double() - value.double() for name, value in others.items()}
            assert norm(change) <= 1 + 1e-3  # an activation at its kink may move float32 gradients of the others


@shapes
def test_rule_05_a_patient_that_is_not_finite_adds_nothing(shape: Shape, workspace: Workspace) -> None:
    planned, model = build(workspace, shape)
    first, spoilt, last = (unit(planned, seed, 2) for seed in (1, 2, 3))
    spoilt.data[1, 0, 0, 0] = float("inf")
    alone = model.engine.clipped_sum([first, last], NormClip(1.0))
    both = model.engine.clipped_sum([first, spoilt, last], NormClip(1.0))
    assert both.non_finite == 1
    assert both.losses == alone.losses
    assert distance(both.total, alone.total) < 1e-6  # others are added in passes of other sizes, so in another order


@some_shapes
def test_rule_03_a_norm_that_is_too_small_is_noticed_at_the_start(
    shape: Shape, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weight_gradients.squared_norms
    monkeypatch.setattr(record, "choose", wherever_cheap("ghost"))
    monkeypatch.setattr(weight_gradients, "squared_norms", lambda product: original(product) * 0.9)
    with pytest.raises(PrivacyRefusedError, match="engine: loop"):
        real_networks.build(workspace, shape, engine="fused")
    assert isinstance(real_networks.build(workspace, shape, engine="auto")[1].engine, LoopEngine)


def test_the_loop_is_the_default(workspace: Workspace) -> None:
    assert isinstance(real_networks.build(workspace, PLAIN_2D)[1].engine, LoopEngine)
