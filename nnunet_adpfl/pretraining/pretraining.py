"""`adpfl pretrain`: the network of a plan, trained on generated patches; no image of the data set is opened."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from nnunet_adpfl import atomic_files, folders, json_files, progress
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.nnunet_compat import training as stock
from nnunet_adpfl.nnunet_compat.patch_format import PatchFormat, patch_format
from nnunet_adpfl.pretraining.overlap import HardDice
from nnunet_adpfl.procedural.generated_patches import FRESH, GeneratedPatches
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import run_manifest
from nnunet_adpfl.trainers.device import chosen_device
from nnunet_adpfl.trainers.prepared_fold import plans_digest
from nnunet_adpfl.trainers.private_model import choose_memory_format
from nnunet_adpfl.trainers.release import without_unused_intensities

TRAINER_NAME = "nnUNetTrainer"  # stock prediction looks it up
MOST_ON_A_CPU = {2: 8, 3: 2}  # patches of a step, by axes: there, more steps do more than larger ones in the same time
_WARM_UP, _LARGEST_GRADIENT, _WEIGHT_DECAY = 0.05, 1.0, 1e-2
_TIMED_STEPS = 5
_FRESH_PATCHES = 64  # to judge by


@dataclass(frozen=True)
class PretrainingSettings:
    """How long and how.

    Attributes:
        batch_size: None: the plan's, on a CPU at most 8, in 3D at most 2.
        learning_rate: the highest, of AdamW; it rises over the first twentieth and falls along a cosine to zero.
        workers: processes that draw patches; 0 draws in this one. The result is the same with any number.
    """

    steps: int = 600
    seed: int = 0
    batch_size: int | None = None
    learning_rate: float = 6e-3
    workers: int = 0
    device: str = "cpu"


def pretrain(
    dataset: str, configuration: str, out: Path, settings: PretrainingSettings, *, plans: str = "nnUNetPlans", overwrite: bool = False
) -> dict[str, Any]:
    """Train and write the checkpoint ``out`` and its manifest beside it, ``out`` with the ending .json.

    Returns the manifest, with the checkpoint's path under ``file``. Raises InputError before any work.
    """
    _check(out, settings, overwrite)
    device = chosen_device(settings.device)
    planned = _planned(folders.preprocessed_folder(dataset), plans, configuration, device)
    network = stock.build_network(planned, settings.seed)
    choose_memory_format(network, device)
    batch_size = settings.batch_size or _batch_size(planned)
    loss = stock.build_loss(planned)
    patches = patch_format(planned)
    began = time.monotonic()
    _train(network, loss, _batches(patches, settings.steps * batch_size, batch_size, settings, device), settings)
    seconds = time.monotonic() - began
    fresh_loss, fresh_dice = _judge(network, loss, patches, batch_size, settings, device)
    _save(network, planned, settings.steps, out)
    manifest = {
        "format": 1,
        "configuration": configuration,
        "plans": planned.plans_manager.plans_name,
        "plans_digest": plans_digest(planned.plans_manager.plans),
        "patches": asdict(patches),
        "settings": {**asdict(settings), "batch_size": batch_size},
        "versions": run_manifest.versions(),
        "fresh_patches": {"count": _FRESH_PATCHES, "loss": fresh_loss, "dice": fresh_dice},
        "seconds": round(seconds, 1),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    atomic_files.write_json(out.with_suffix(".json"), manifest)
    return {"file": str(out), **manifest}


def _check(out: Path, settings: PretrainingSettings, overwrite: bool) -> None:
    least = {"--steps": (settings.steps, 1), "--seed": (settings.seed, 0), "--workers": (settings.workers, 0)}
    least["--batch-size"] = (1 if settings.batch_size is None else settings.batch_size, 1)
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise InputError(f"{name} {value}: must be {smallest} or more")
    if not 0 < settings.learning_rate < math.inf:
        raise InputError(f"--learning-rate {settings.learning_rate}: must be above 0")
    if out.suffix != ".pth":
        raise InputError(f"OUT {out}: name a file that ends in .pth")
    if not out.parent.is_dir():
        raise InputError(f"OUT {out}: the folder {out.parent} does not exist; make it first")
    for path in (out, out.with_suffix(".json")):
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"OUT: {path} exists already; name another file, or give --overwrite to replace it")


def _planned(preprocessed: Path, plans: str, configuration: str, device: torch.device) -> stock.PlannedTrainer:
    """Network, loss and labels: all that is read are the plan and dataset.json."""
    remedy = "run `adpfl plan` for this data set, or name its plans with -p"
    content = json_files.load_object(preprocessed / f"{plans}.json", remedy)
    dataset_json = json_files.load_object(preprocessed / "dataset.json", remedy)
    stock.check_supported(content, configuration)
    try:
        without_unused_intensities(content)  # what the checkpoint will need is missed now, not at the end
        return stock.PlannedTrainer(content, configuration, dataset_json, device)
    except InputError:
        raise
    except Exception as error:  # labels that were edited make nnU-Net raise whatever they suggest
        raise InputError(f"{preprocessed}: plans and dataset.json are not what nnU-Net needs ({error!r:.120}): plan again") from None


def _batch_size(planned: stock.PlannedTrainer) -> int:
    size = int(planned.configuration_manager.batch_size)
    axes = len(planned.configuration_manager.patch_size)
    return min(size, MOST_ON_A_CPU[axes]) if planned.device.type == "cpu" else size


def _batches(
    patches: PatchFormat, count: int, batch_size: int, settings: PretrainingSettings, device: torch.device, stream: int = 0
) -> Iterator[stock.Patches]:
    generated = GeneratedPatches(patches, count, settings.seed, stream)
    for image, targets in DataLoader(generated, batch_size, num_workers=settings.workers):
        yield image.to(device), [target.to(device) for target in targets]


def _train(network: nn.Module, loss: Any, batches: Iterator[stock.Patches], settings: PretrainingSettings) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    began = time.monotonic()
    for step, (image, targets) in enumerate(progress.track(batches, "pretraining", settings.steps), start=1):
        value = loss(network(image), targets)
        if not bool(torch.isfinite(value)):
            raise InputError(f"pretraining: the loss is not finite at step {step}; plan larger patches, or lower --learning-rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step == _TIMED_STEPS:
            seconds = (time.monotonic() - began) / step
            progress.note(f"pretraining: about {settings.steps * seconds / 60:.1f} minutes ({1000 * seconds:.0f} ms a step)")


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: warm-up, then half a cosine."""
    warm = max(1, round(_WARM_UP * steps))
    return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


@torch.no_grad()
def _judge(
    network: nn.Module, loss: Any, patches: PatchFormat, batch_size: int, settings: PretrainingSettings, device: torch.device
) -> tuple[float, float | None]:
    """Mean loss and mean Dice on patches that it was not trained on; no Dice where they happen to show no label."""
    overlap, losses = HardDice(patches), []
    for image, targets in _batches(patches, _FRESH_PATCHES, batch_size, settings, device, FRESH):
        outputs = network(image)
        losses.append(float(loss(outputs, targets)))
        overlap.add(outputs[0], targets[0])
    return sum(losses) / len(losses), overlap.mean()


def _save(network: nn.Module, planned: stock.PlannedTrainer, steps: int, out: Path) -> None:
    content = checkpoints.make(
        network,
        init_args={
            "plans": without_unused_intensities(planned.plans_manager.plans),  # the file may leave the hospitals, as a release may
            "configuration": planned.configuration_name,
            "fold": "all",
            "dataset_json": {key: planned.dataset_json[key] for key in checkpoints.DATASET_KEYS if key in planned.dataset_json},
        },
        trainer_name=TRAINER_NAME,
        mirroring_axes=None,
        optimizer_state={},
        epoch=steps,
        adpfl={},
    )
    del content["adpfl"]  # marks private runs, whose weights are refused as public ones
    checkpoints.save(content, out)
