"""How far private training moved the weights in the direction in which training without privacy moved them.

    python benchmarks/captured_signal.py START.pth --target RUN [RUN ..] --runs RUN [RUN ..]

START is the public start of all runs; a RUN is a fold's folder with checkpoint_final.pth (of `adpfl compare`: .../METHOD/seed_K). The
displacement of a private model is nearly all noise, and its Dice varies by more than methods differ. Along one direction that
was fixed beforehand, the mean displacement of the runs without privacy, noise is one number among d, so the signal stands out:
its chance is the displacement's length / sqrt(d), printed beside it. Experiments only: the direction is not private.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nnunet_adpfl import tensor_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path)
    parser.add_argument("--target", type=Path, nargs="+", required=True, help="runs without privacy")
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    start = _weights(arguments.start)
    moved = [_displacement(start, run) for run in arguments.target]
    direction = torch.stack([one / one.norm() for one in moved]).mean(dim=0)
    direction /= direction.norm()
    print(f"{len(direction):,} coordinates")
    for run in arguments.runs:
        found = _displacement(start, run)
        chance = float(found.norm()) / len(direction) ** 0.5
        print(f"{run}: {float(found @ direction):.2f} along it, chance {chance:.2f}; whole length {float(found.norm()):.1f}")


def _weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = tensor_files.load(path)["network_weights"]
    return found


def _displacement(start: dict[str, torch.Tensor], run: Path) -> torch.Tensor:
    """Of everything but the segmentation layers; what nnU-Net's files hold twice counts once."""
    after = _weights(run / "checkpoint_final.pth")
    copies = ("decoder.encoder.", ".all_modules.", ".seg_layers.")
    names = [name for name in start if not any(part in name for part in copies)]
    return torch.cat([(after[name].double() - start[name].double()).flatten() for name in names])


if __name__ == "__main__":
    main()
