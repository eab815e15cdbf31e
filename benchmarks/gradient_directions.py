"""Where the signal lies: how much of patients' gradients falls into the span of gradients on generated images, and how well
patients agree with one another as each contributes more patches.

    python benchmarks/gradient_directions.py DATASET CONFIG FOLD -p PLANS [--weights FILE] [--json OUT]

An experiment on exact gradients of patients, without clip and noise: for data that may be looked at. It trains nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from nnunet_adpfl import folders
from nnunet_adpfl.nnunet_compat.patches import PatchSettings, PatchSource
from nnunet_adpfl.nnunet_compat.training import Patches, PlannedTrainer
from nnunet_adpfl.privacy.plan import Projection
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import prepared_fold, private_model
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.private_model import PrivateModel
from nnunet_adpfl.trainers.public_subspace import leading_directions

Gradient = Callable[[Patches], torch.Tensor]
PUBLIC_GRADIENTS = 200
DIMENSIONS = (1, 5, 20, 50, 100, 200)
PATCHES = (2, 4, 16, 48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dataset", "configuration", "fold"):
        parser.add_argument(name)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("--weights", type=Path, help="checkpoint; default: random weights")
    parser.add_argument("--patches", type=int, nargs="*", default=PATCHES, help="K, patches of a patient")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.dataset, arguments.configuration, arguments.fold, arguments.plans, arguments.weights, arguments.patches)
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


def measure(dataset: str, configuration: str, fold: str, plans: str, weights: Path | None, numbers: list[int]) -> dict[str, object]:
    prepared = prepared_fold.load(folders.preprocessed_folder(dataset), plans, configuration, fold, "nnUNetTrainerADP")
    plan = prepared.plan.model_copy(update={"projection": Projection(dimensions=1, public_gradients=PUBLIC_GRADIENTS)})
    trainer = PlannedTrainer(prepared.plans, configuration, prepared.dataset_json, torch.device("cpu"))
    model = private_model.build(trainer, plan)
    if weights:
        checkpoints.load_weights(model.network, checkpoints.load(weights)["network_weights"], str(weights))
    assert model.subspace is not None
    directions = leading_directions(model.subspace._public_gradients(0), PUBLIC_GRADIENTS)
    gradients = {number: _patients(prepared, trainer, _gradient_of(model), number) for number in numbers}
    return {
        "parameters": directions.shape[1],
        "weights": str(weights.name) if weights else "random",
        "captured": {number: _captured(rows, directions) for number, rows in gradients.items()},
        "agreement": {number: _agreement(rows) for number, rows in gradients.items()},
    }


def _gradient_of(model: PrivateModel) -> Gradient:
    def gradient(patches: Patches) -> torch.Tensor:
        for parameter in model.trained.values():
            parameter.grad = None
        model.loss(model.network(patches[0]), patches[1]).backward()  # type: ignore[arg-type]
        row = torch.cat([parameter.grad.flatten() for parameter in model.trained.values() if parameter.grad is not None])
        return row / torch.linalg.vector_norm(row)

    return gradient


def _patients(prepared: PreparedFold, trainer: PlannedTrainer, gradient: Gradient, number: int) -> torch.Tensor:
    """One gradient of norm 1 for each training unit, of ``number`` patches, (units, parameters)."""
    plan = prepared.plan
    settings = PatchSettings(number, plan.oversample_foreground, plan.mirroring, plan.augmentation)
    source = PatchSource(trainer, prepared.data_folder, settings)
    units = prepared.cases_by_unit()
    keys = {unit: hashlib.sha256(f"{unit}|{number}".encode()).digest()[:16] for unit in units}
    return torch.stack([gradient(source.patches(tuple(cases), keys[unit])) for unit, cases in sorted(units.items())])


def _captured(rows: torch.Tensor, directions: torch.Tensor) -> dict[str, dict[int, float]]:
    """Share of squared length that lies in the first k directions: of the units' mean, and of a unit on average."""
    mean = rows.mean(dim=0)
    kept = [number for number in DIMENSIONS if number <= len(directions)]
    return {
        "mean": {k: round(float((directions[:k] @ mean).square().sum() / mean.square().sum()), 4) for k in kept},
        "unit": {k: round(float((rows @ directions[:k].T).square().sum(dim=1).mean()), 4) for k in kept},
    }


def _agreement(rows: torch.Tensor) -> float:
    """Length of the expected gradient of norm-1 units, free of their own chance: from products of different units."""
    number, total = len(rows), rows.sum(dim=0)
    squared = (float(total.square().sum()) - number) / (number * (number - 1))
    return round(max(squared, 0.0) ** 0.5, 4)


if __name__ == "__main__":
    main()
