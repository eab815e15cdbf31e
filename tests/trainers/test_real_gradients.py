"""Rules 3, 4 and 6 on nnU-Net's own networks and losses: each patient's gradient is exact, bounded and its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import real_networks
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from injected_randomness import InjectedRandomness
from opacus.grad_sample import GradSampleModule
from real_networks import PLAIN_2D, PLAIN_3D, RESIDUAL_3D, SHAPES, Shape, distance, norm, unit
from torch import nn
from workspace import Workspace

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.clipping import AutoClip, NoClip, NormClip
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.privacy.gradients.loop import LoopEngine
from nnunet_adpfl.privacy.mechanism import Permit
from nnunet_adpfl.trainers.private_model import PrivateModel

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
@pytest.mark.parametrize("patches", [1, 3])
def test_rule_03_gradient_is_the_mean_of_the_patches_own_gradients(shape: Shape, patches: int, workspace: Workspace) -> None:
    planned, model = real_networks.build(workspace, shape)
    whole = unit(planned, 5, patches)
    found = model.engine.clipped_sum([whole], NoClip()).total
    network = copy.deepcopy(model.network)
    trained = {name: parameter for name, parameter in network.named_parameters() if name in model.trained}
    loss = planned._build_loss()
    alone = [
        real_networks.gradient_by_autograd(network, loss, trained, real_networks.one_patch(whole, index))
        for index in range(patches)
    ]
    mean = {name: sum(gradient[name].double() for gradient in alone) / patches for name in trained}
    assert set(found) == set(mean)
    assert distance(found, mean) < 1e-5
    for name, value in found.items():
        assert torch.allclose(value.double(), mean[name], rtol=1e-3, atol=1e-6 * norm(mean)), name


class FirstRegistrationsOnly(GradSampleModule):
    """Opacus hooks each layer as often as it is registered (twice or four times in nnU-Net): wrong gradients, no error."""

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        seen: set[int] = set()
        for found in super().iterate_submodules(module):
            if id(found) not in seen:
                seen.add(id(found))
                yield found


def out_of_place(block: BasicBlockD, data: torch.Tensor) -> torch.Tensor:
    """BasicBlockD.forward without ``out += residual``, which Opacus' hooks cannot follow."""
    return block.nonlin2(block.conv2(block.conv1(data)) + block.skip(data))


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.regions or shape.network == "plain"], ids=str)
def test_rule_03_gradients_agree_with_opacus(shape: Shape, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, model = real_networks.build(workspace, shape)
    whole = unit(planned, 6, 3)
    expected = [
        model.engine.clipped_sum([real_networks.one_patch(whole, index)], NoClip()).total for index in range(3)
    ]
    network = copy.deepcopy(model.network)
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = False
    monkeypatch.setattr(BasicBlockD, "forward", out_of_place)
    hooked = FirstRegistrationsOnly(network, loss_reduction="mean")
    planned._build_loss()(hooked(whole.data), whole.target).backward()
    samples = {name: parameter.grad_sample for name, parameter in network.named_parameters() if name in model.trained}
    for index, mine in enumerate(expected):
        theirs = {name: value[index] for name, value in samples.items()}
        assert distance(mine, theirs) < 1e-5


@pytest.mark.parametrize("shape", [PLAIN_2D, PLAIN_3D, RESIDUAL_3D], ids=str)
@pytest.mark.parametrize("rule", [NormClip(0.01), NormClip(10.0), AutoClip(0.01)], ids=str)
def test_rule_03_one_patient_adds_at_most_norm_one(shape: Shape, rule: Any, workspace: Workspace) -> None:
    planned, model = real_networks.build(workspace, shape)
    for seed, scale in ((1, 1e-3), (2, 1.0), (3, 1e4)):
        total = model.engine.clipped_sum([unit(planned, seed, 2, scale)], rule).total
        assert norm(total) <= 1 + 1e-5


@pytest.mark.parametrize("shape", [PLAIN_3D, RESIDUAL_3D], ids=str)
def test_rule_03_no_tensor_escapes_the_clip(shape: Shape, workspace: Workspace) -> None:
    """A loss that grows in one tensor alone: all of that patient's gradient lies there, and it is still bounded."""
    planned, model = real_networks.build(workspace, shape)
    patches = unit(planned, 1)
    for name, parameter in model.trained.items():

        def concentrated(*_: Any, steep: nn.Parameter = parameter) -> torch.Tensor:
            flat = sum((other * 0).sum() for other in model.trained.values())
            return 1e4 * steep.sum() + flat

        total = LoopEngine(model.network, concentrated, model.trained).clipped_sum([patches], NormClip(0.5)).total
        assert norm(total) == pytest.approx(1, abs=1e-5), name
        assert norm({name: total[name]}) == pytest.approx(1, abs=1e-5), name


@shapes
def test_rule_03_another_patients_image_changes_nothing(
    shape: Shape, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, model = real_networks.build(workspace, shape)
    kept: list[list[torch.Tensor]] = []
    original = LoopEngine._gradient

    def gradient(self: LoopEngine, patches: UnitPatches) -> tuple[float, list[torch.Tensor]]:
        found = original(self, patches)
        kept.append([tensor.clone() for tensor in found[1]])
        return found

    monkeypatch.setattr(LoopEngine, "_gradient", gradient)
    other, changed, spoilt = unit(planned, 1, 2), unit(planned, 2, 2, 100.0), unit(planned, 3, 2, float("nan"))
    mine = unit(planned, 4, 2)
    for before in ([], [other], [changed], [spoilt], [other, changed]):
        model.engine.clipped_sum([*before, mine], NormClip(1.0))
    mine_each_time = [kept[0], kept[2], kept[4], kept[6], kept[9]]
    for again in mine_each_time[1:]:
        assert all(torch.equal(first, second) for first, second in zip(mine_each_time[0], again, strict=True))


@shapes
def test_rule_03_loss_of_a_patient_is_the_mean_over_its_patches(shape: Shape, workspace: Workspace) -> None:
    """So batch_dice is off, and nothing else in the loss couples patches."""
    planned, model = real_networks.build(workspace, shape)
    whole = unit(planned, 7, 3)
    with torch.no_grad():
        together = float(model.loss(model.network(whole.data), whole.target))
        parts = [real_networks.one_patch(whole, index) for index in range(3)]
        alone = [float(model.loss(model.network(part.data), part.target)) for part in parts]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_rule_05_a_patient_that_is_not_finite_adds_exactly_nothing(workspace: Workspace) -> None:
    planned, model = real_networks.build(workspace, PLAIN_3D)
    good, spoilt = unit(planned, 1), unit(planned, 2)
    spoilt.data[0, 0, 0, 0, 0] = float("inf")
    alone = model.engine.clipped_sum([good], NormClip(1.0))
    both = model.engine.clipped_sum([good, spoilt], NormClip(1.0))
    assert both.non_finite == 1
    assert all(torch.equal(value, alone.total[name]) for name, value in both.total.items())


def irrelevant(model: PrivateModel) -> set[str]:
    """Conv biases before InstanceNorm, and the deep supervision head whose weight in the loss is zero."""
    names = set(dict(model.network.named_parameters()))
    biases = {name for name in names if name.endswith(".conv.bias") and name.replace("conv.bias", "norm.weight") in names}
    return biases | {name for name in names if name.startswith("decoder.seg_layers.0.")}


@shapes
def test_rule_04_exactly_the_irrelevant_parameters_are_frozen(shape: Shape, workspace: Workspace) -> None:
    _, model = real_networks.build(workspace, shape)
    names = set(dict(model.network.named_parameters()))
    assert len(irrelevant(model)) > 5
    assert names - set(model.trained) == irrelevant(model)
    for name, parameter in model.network.named_parameters():
        assert parameter.requires_grad == (name in model.trained)


@pytest.mark.parametrize("shape", [PLAIN_2D, RESIDUAL_3D], ids=str)
def test_rule_04_frozen_parameters_change_nothing(shape: Shape, workspace: Workspace) -> None:
    planned, model = real_networks.build(workspace, shape)
    patches = unit(planned, 3)
    with torch.no_grad():
        before = model.network(patches.data)
        for name, parameter in model.network.named_parameters():
            if name not in model.trained:
                parameter.add_(0.5)
        after = model.network(patches.data)
    for first, second in zip(before[:-1], after[:-1], strict=True):  # the last output is the one without weight
        assert torch.allclose(first, second, atol=1e-4)


@shapes
def test_rule_04_every_coordinate_that_is_trained_gets_noise(shape: Shape, workspace: Workspace) -> None:
    _, model = real_networks.build(workspace, shape)
    mechanism = mechanisms.make(real_networks.privacy_plan(), 0)
    summed = model.engine.clipped_sum([], NormClip(1.0))
    permit = Permit({0: mechanism.noise_multiplier_at(0)})
    update = mechanism.release(summed, permit, "a", 0, InjectedRandomness(4))
    assert set(update.gradient) == set(model.trained)
    assert all((value != 0).all() for value in update.gradient.values())
    everything = torch.cat([value.flatten() for value in update.gradient.values()])
    assert len(everything.unique()) > 0.99 * len(everything)


def test_rule_04_freezing_by_pattern(workspace: Workspace) -> None:
    _, model = real_networks.build(workspace, PLAIN_2D, trainable={"freeze_patterns": ["encoder.*"]})
    assert model.trained
    assert not any(name.startswith("encoder.") for name in model.trained)
    with pytest.raises(InputError, match="gets no gradient"):
        real_networks.build(workspace, PLAIN_2D, trainable={"freeze_irrelevant": False})


def test_rule_06_sums_are_float32_or_better(workspace: Workspace) -> None:
    planned, model = real_networks.build(workspace, PLAIN_2D)
    total = model.engine.clipped_sum([unit(planned, 1)], NormClip(1.0)).total
    assert {value.dtype for value in total.values()} == {torch.float32}


def test_rule_03_networks_that_mix_patients_are_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = real_networks.trainer(workspace, PLAIN_2D)
    layers = {"batch normalisation": nn.BatchNorm2d(1), "buffers that change": Counter(), "dropout": nn.Dropout2d(0.1)}
    for reason, layer in layers.items():
        network = nn.Sequential(nn.Conv2d(1, 3, 1), layer)
        monkeypatch.setattr(planned, "build_network_architecture", lambda *_, built=network: built)
        with pytest.raises(InputError, match=reason):
            stock.build_network(planned, 0)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_network_whose_loss_is_not_finite_is_refused(workspace: Workspace) -> None:
    """Two stages have one output, to which nnU-Net gives no weight: 0/0. Every patient would silently add nothing."""
    planned = real_networks.trainer(workspace, PLAIN_2D)
    plans = planned.plans_manager.plans
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        arguments[name] = arguments[name][:2]
    arguments.update(n_stages=2, n_conv_per_stage_decoder=[2])
    planned = real_networks.PlannedTrainer(plans, "2d", planned.dataset_json, planned.device)
    with pytest.raises(InputError, match="not finite"):
        real_networks.private_model.build(planned, real_networks.privacy_plan())


def test_weights_depend_on_the_seed_alone(workspace: Workspace) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(digests))
        digests.append(real_networks.build(workspace, PLAIN_2D, seed=seed)[1].initial_digest)
    assert digests[0] == digests[1] != digests[2]
