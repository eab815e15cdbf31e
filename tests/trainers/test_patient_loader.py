"""Rules 1, 2 and 3 on the real loader: a patient's patches are its own business, whoever else is drawn."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from injected_randomness import InjectedRandomness
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from workspace import CONFIGURATION, PLANS, Workspace, ledgers, read, steps_paid

from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.nnunet_compat.patches import PatchSettings, PatchSource
from nnunet_adpfl.nnunet_compat.training import PlannedTrainer
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.gradients.interface import ClippedSum, UnitPatches
from nnunet_adpfl.privacy.mechanism import Permit
from nnunet_adpfl.privacy.noise import SecretRandomness
from nnunet_adpfl.privacy.sampling import poisson_draw
from nnunet_adpfl.trainers import prepared_fold
from nnunet_adpfl.trainers.parcel import Parcel
from nnunet_adpfl.trainers.patient_loader import (
    PatientLoader,
    UnitRequest,
    UnreadableCaseError,
    default_workers,
    patch_source,
)
from nnunet_adpfl.trainers.private_training import PrivateTraining

Source = Callable[..., PatchSource]
Loader = Callable[..., PatientLoader]
UNITS = {
    "patient_00": ("case_00_0", "case_00_1"),
    "patient_01": ("case_01_0",),
    "patient_03": ("case_03_0", "case_03_1"),
    "patient_05": ("case_05_0",),
}


def request(unit: str, step: int = 0, site: str = "a") -> UnitRequest:
    return UnitRequest(UNITS[unit], InjectedRandomness(3).patch_key(site, step, unit))


def tensors(patches: UnitPatches) -> list[torch.Tensor]:
    assert isinstance(patches.target, list)
    return [patches.data, *patches.target]


def equal(first: UnitPatches, second: UnitPatches) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@pytest.mark.parametrize("configuration", [CONFIGURATION, "2d"])
def test_rule_03_patches_are_the_same_bits_whoever_else_is_drawn(configuration: str, source: Source, loader: Loader) -> None:
    patches = source(configuration)
    mine = request("patient_00")
    alone = next(loader(patches).stream([mine]))
    for others in (["patient_01"], ["patient_05", "patient_03"], ["patient_00", "patient_00"]):
        requests = [*(request(unit, step=7) for unit in others), mine]
        assert equal(list(loader(patches).stream(requests))[-1], alone)


@pytest.mark.parametrize("workers", [1, 2])
def test_rule_03_patches_are_the_same_bits_with_any_number_of_workers(workers: int, source: Source, loader: Loader) -> None:
    patches = source()
    requests = [request(unit, step) for step in range(2) for unit in UNITS]
    expected = list(loader(patches).stream(requests))
    pool = loader(patches, workers)
    for order in (requests, requests[::-1]):  # the same pool again: its workers stay for the next block
        found = list(pool.stream(order))
        for wanted, got in zip(order, found, strict=True):
            assert equal(got, expected[requests.index(wanted)])


def test_rule_03_patches_do_not_depend_on_generators_of_the_process(source: Source) -> None:
    patches, key = source(), bytes(range(32))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = patches.patches(UNITS["patient_00"], key)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    second = patches.patches(UNITS["patient_00"], key)
    assert equal(UnitPatches(*first), UnitPatches(*second))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])


@pytest.mark.parametrize("byte", [0, 8, 31])
def test_rule_03_every_part_of_the_key_counts(byte: int, source: Source) -> None:
    key = bytearray(range(32))
    first = source().patches(UNITS["patient_00"], bytes(key))
    key[byte] ^= 16
    assert not torch.equal(first[0], source().patches(UNITS["patient_00"], bytes(key))[0])


def test_rule_03_keys_differ_by_site_step_unit_and_run_and_are_long() -> None:
    secret, other = SecretRandomness(), SecretRandomness()
    names = [(site, step, unit) for site in ("a", "b") for step in (0, 1, 11) for unit in ("p1", "p11")]
    keys = [source.patch_key(*name) for source in (secret, other) for name in names]
    assert len(set(keys)) == len(keys)
    assert secret.patch_key("a", 1, "1p1") != secret.patch_key("a", 11, "p1")
    assert secret.patch_key(*names[0]) == keys[0]
    assert {len(key) for key in keys} == {32}


def cases_cut(patches: PatchSource, unit: str, key: bytes) -> list[str]:
    patches.patches(UNITS[unit], key)
    return list(patches._loader.chosen)


def test_rule_01_patches_are_spread_over_a_units_cases(source: Source) -> None:
    keys = [bytes([number] * 32) for number in range(12)]
    both = set(UNITS["patient_00"])
    assert all(sorted(cases_cut(source(patches=4), "patient_00", key)) == sorted([*both, *both]) for key in keys[:3])
    assert all(set(cases_cut(source(patches=3), "patient_00", key)) == both for key in keys[:3])
    single = [cases_cut(source(patches=1), "patient_00", key) for key in keys]
    assert {len(cases) for cases in single} == {1}
    assert {cases[0] for cases in single} == both
    assert cases_cut(source(patches=3), "patient_01", keys[0]) == ["case_01_0"] * 3


@pytest.mark.parametrize(("unit", "k"), [("patient_01", 4), ("patient_00", 4), ("patient_00", 1), ("patient_00", 8)])
def test_k_patches_of_a_case_read_it_once(unit: str, k: int, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, read_cases = source(patches=k), []
    dataset = patches._loader._data._dataset
    original = dataset.load_case
    monkeypatch.setattr(dataset, "load_case", lambda case: read_cases.append(case) or original(case))
    cut = cases_cut(patches, unit, bytes(32))
    assert len(cut) == k
    assert read_cases == sorted(set(cut))


def test_thread_pools_are_looked_up_once_and_limited_for_every_unit(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, threads = source(), []
    transforms, torch_threads = patches._loader.transforms, torch.get_num_threads()
    torch.set_num_threads(2)

    def transform(**sample: Any) -> Any:
        threads.append(torch.get_num_threads())
        return transforms(**sample)

    patches._loader.transforms = transform
    patches.patches(UNITS["patient_00"], bytes(32))
    monkeypatch.setattr("threadpoolctl.ThreadpoolController.__init__", lambda *_: pytest.fail("looked up again"))
    patches.patches(UNITS["patient_01"], bytes(32))
    assert threads == [1] * 4
    assert torch.get_num_threads() == 2
    torch.set_num_threads(torch_threads)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("scales", [0, 1, 3])
def test_a_parcel_holds_what_was_packed(scales: int, regions: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(3, 2, 5, 7, generator=generator)
    made = [torch.randint(0, 2, (3, 1, 5 + scale, 7), generator=generator) for scale in range(max(1, scales))]
    targets = [target.bool() if regions else target.to(torch.int16) for target in made]
    unpacked = Parcel.packed(data, targets if scales else targets[0]).unpacked(torch.device("cpu"))
    assert isinstance(unpacked.target, list) == bool(scales)
    found = unpacked.target if isinstance(unpacked.target, list) else [unpacked.target]
    for got, wanted in zip([unpacked.data, *found], [data, *targets], strict=True):
        assert got.dtype == wanted.dtype
        assert got.is_contiguous()
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("configuration", "dims"), [(CONFIGURATION, 3), ("2d", 2)])
def test_rule_03_a_unit_has_its_k_patches_and_a_target_for_every_output(
    configuration: str, dims: int, source: Source, loader: Loader
) -> None:
    found = next(loader(source(configuration, patches=3)).stream([request("patient_00")]))
    assert tuple(found.data.shape) == (3, 1, *[16] * dims)
    assert found.data.dtype == torch.float32
    assert isinstance(found.target, list)
    assert [tuple(target.shape) for target in found.target] == [(3, 1, *[size] * dims) for size in (16, 8)]


def test_rule_03_foreground_is_oversampled_by_chance_for_each_patch_alone(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By position, the second of two patches would always be centred on foreground and the first never."""
    patches = source("2d", patches=2, foreground=0.5)
    forced: list[bool] = []
    original = patches._loader.get_bbox

    def get_bbox(shape: Any, force_fg: bool, *others: Any) -> Any:
        forced.append(bool(force_fg))
        return original(shape, force_fg, *others)

    monkeypatch.setattr(patches._loader, "get_bbox", get_bbox)
    for number in range(200):
        patches.patches(UNITS["patient_01"], number.to_bytes(32, "little"))
    table = np.array(forced).reshape(-1, 2)
    assert (np.abs(table.mean(0) - 0.5) < 0.15).all()
    assert abs(np.corrcoef(table.T)[0, 1]) < 0.25


class RecordingEngine:
    """Counts the units of every step; their gradient is zero."""

    def __init__(self, trained: dict[str, torch.nn.Parameter]) -> None:
        self.drawn: list[int] = []
        self._trained = trained

    def clipped_sum(self, units: Iterable[UnitPatches], rule: Any) -> ClippedSum:
        self.drawn.append(sum(1 for _ in units))
        return ClippedSum({name: torch.zeros_like(value) for name, value in self._trained.items()})


class RecordingLoader:
    def __init__(self) -> None:
        self.requests: list[UnitRequest] = []

    def stream(self, requests: Sequence[UnitRequest]) -> Any:
        self.requests += requests
        return iter([UnitPatches(torch.zeros(1), torch.zeros(1))] * len(requests))


def run_steps(workspace: Workspace, steps: int, **plan: Any) -> tuple[RecordingEngine, RecordingLoader, dict[str, list[str]]]:
    workspace.edit_plan(noise_multiplier=5.0, steps=steps, **plan)
    prepared = prepared_fold.load(workspace.preprocessed, PLANS, CONFIGURATION, 0, "nnUNetTrainerADP")
    mechanism = mechanisms.make(prepared.plan, 0)
    trained = {"w": torch.nn.Parameter(torch.zeros(3))}
    engine, loader = RecordingEngine(trained), RecordingLoader()
    permit = Permit({step: mechanism.noise_multiplier_at(step) for step in range(steps)})
    training = PrivateTraining(mechanism, engine, trained, loader, InjectedRandomness(9))  # type: ignore[arg-type]
    cases = prepared.cases_by_unit("site-a")
    training.run_block(permit, "site-a", cases, first_step=0, steps=steps, clip_norm=1.0)
    return engine, loader, cases


def test_rule_01_a_unit_with_two_cases_is_one_contribution(workspace: Workspace) -> None:
    engine, loader, cases = run_steps(workspace, 2, sampling_rate=1.0)
    assert engine.drawn == [len(cases)] * 2
    assert max(len(found) for found in cases.values()) == 2
    assert [list(made.cases) for made in loader.requests] == [cases[unit] for unit in sorted(cases)] * 2


def test_rule_03_keys_of_a_block_depend_on_site_step_and_unit_alone(workspace: Workspace) -> None:
    """Not on the order or the number of those drawn: half of the units are missing in each step."""
    _, loader, cases = run_steps(workspace, 8, sampling_rate=0.5)
    randomness, units = InjectedRandomness(9), sorted(cases)
    drawn = [(step, unit) for step in range(8) for unit in poisson_draw(units, 0.5, randomness.draws("site-a", step))]
    assert len(drawn) > 8
    assert [made.key for made in loader.requests] == [randomness.patch_key("site-a", *each) for each in drawn]
    assert [made.cases for made in loader.requests] == [tuple(cases[unit]) for _, unit in drawn]


def test_rule_02_an_empty_draw_is_a_step_like_any_other(workspace: Workspace) -> None:
    engine, _, cases = run_steps(workspace, 40, sampling_rate=0.2)
    assert len(engine.drawn) == 40
    assert engine.drawn.count(0) > 5
    assert 0.1 < sum(engine.drawn) / (40 * len(cases)) < 0.3


def corrupt(workspace: Workspace, change: Callable[[Path], None], case: str = "case_01_0") -> None:
    """Give the test its own copy of the preprocessed cases, one of them spoilt."""
    link = workspace.preprocessed / "nnUNetPlans_3d_fullres"
    real = link.resolve()
    link.unlink()
    shutil.copytree(real, link)
    change(link / f"{case}.b2nd")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def scramble(path: Path) -> None:
    path.write_bytes(b"not an image")


def spoil_properties(path: Path) -> None:
    path.with_suffix(".pkl").write_bytes(b"no")


SPOILT = {"truncated": truncate, "scrambled": scramble, "missing": Path.unlink, "properties": spoil_properties}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", SPOILT)
def test_rule_02_an_unreadable_case_stops_the_stream_with_one_line(
    damage: str, workers: int, workspace: Workspace, source: Source, loader: Loader
) -> None:
    patches = source()
    corrupt(workspace, SPOILT[damage])
    stream = loader(patches, workers).stream([request("patient_00"), request("patient_01"), request("patient_03")])
    next(stream)
    with pytest.raises(UnreadableCaseError, match="case_01_0 cannot be read") as error:
        next(stream)
    assert "\n" not in str(error.value)


def test_rule_02_an_unreadable_case_stops_the_run_and_nobody_is_drawn_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn again until the unreadable patient is not among them, the draw would no longer be the accounted one."""
    workspace.edit_plan(sampling_rate=0.5, noise_multiplier=5.0)
    fold = read(workspace.preprocessed / "splits_final.json")[0]["train"]
    case = next(case for case in fold if case.startswith("case_02"))
    corrupt(workspace, truncate, case)
    with pytest.raises(PrivacyRefusedError, match="site site-a stops: a preprocessed case cannot be read") as error:
        workspace.train()
    assert "\n" not in str(error.value)
    assert case not in str(error.value)  # it goes to the server
    assert f"{case} cannot be read" in capsys.readouterr().err
    lines = ledgers(workspace.run())["site-a"]
    attempts = [(line["round"], line["attempt"]) for line in lines if line["event"] == "poisson_gaussian"]
    assert len(attempts) == len({number for number, _ in attempts})
    assert steps_paid(lines) == 2 * len(attempts)


def test_number_of_workers_is_nnunets_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    assert default_workers() == 3
    monkeypatch.delenv("nnUNet_n_proc_DA")
    assert 1 <= default_workers() <= 2
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    with pytest.raises(InputError, match="nnUNet_n_proc_DA"):
        default_workers()


@pytest.mark.parametrize("mirroring", [True, False])
def test_without_mirroring_no_patch_and_no_prediction_is_flipped(mirroring: bool, workspace: Workspace) -> None:
    """As in nnU-Net's own trainers without mirroring: neither in the augmentation nor when the model predicts."""
    workspace.edit_plan(mirroring=mirroring)
    prepared = prepared_fold.load(workspace.preprocessed, PLANS, CONFIGURATION, 0, "nnUNetTrainerADP")
    trainer = PlannedTrainer(prepared.plans, CONFIGURATION, prepared.dataset_json, torch.device("cpu"))
    source = PatchSource(trainer, prepared.data_folder, PatchSettings(1, 1.0, prepared.plan.mirroring))
    names = [type(getattr(part, "transform", part)).__name__ for part in source._loader.transforms.transforms]
    assert ("MirrorTransform" in names) == mirroring
    axes = torch.load(workspace.train() / "checkpoint_final.pth", weights_only=True)["inference_allowed_mirroring_axes"]
    assert axes == ((0, 1, 2) if mirroring else None)


@pytest.mark.parametrize("mirroring", [True, False])
def test_without_augmentation_patches_are_cut_from_the_preprocessed_case(mirroring: bool, workspace: Workspace) -> None:
    """As nnU-Net's nnUNetTrainerNoDA does; flips are asked for apart."""
    workspace.edit_plan(augmentation="none", mirroring=mirroring, oversample_foreground=1.0, patches_per_unit=6)
    prepared = prepared_fold.load(workspace.preprocessed, PLANS, CONFIGURATION, 0, "nnUNetTrainerADP")
    trainer = PlannedTrainer(prepared.plans, CONFIGURATION, prepared.dataset_json, torch.device("cpu"))
    source = patch_source(trainer, prepared)
    case = min(prepared.fold.train)
    image, labels, *_ = infer_dataset_class(str(prepared.data_folder))(str(prepared.data_folder)).load_case(case)
    values = set(np.asarray(image).ravel().tolist()) | {0.0}  # zeros beyond the border
    data, target = source.patches((case,), bytes(16))
    assert data.shape[2:] == tuple(trainer.configuration_manager.patch_size)
    assert set(data.numpy().ravel().tolist()) <= values
    assert set(torch.unique(target[0]).tolist()) <= set(np.unique(np.asarray(labels)).tolist())
    augmented = PatchSource(trainer, prepared.data_folder, PatchSettings(6, 1.0, mirroring)).patches((case,), bytes(16))[0]
    assert not set(augmented.numpy().ravel().tolist()) <= values
    flipped = [type(part).__name__ == "MirrorTransform" for part in source._loader.transforms.transforms]
    assert any(flipped) == mirroring
