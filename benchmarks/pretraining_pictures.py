"""Draws patches that `adpfl pretrain` trains on, their labels outlined, and times them: docs/pretraining.md.

    python benchmarks/pretraining_pictures.py docs/pictures/pretraining.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

from nnunet_adpfl.nnunet_compat.patch_format import PatchFormat
from nnunet_adpfl.procedural.generated_patches import GeneratedPatches

mpl.use("Agg")
from matplotlib import pyplot

COLOURS = ("#ffd500", "#00c8ff", "#ff4fa0")
FORMATS = {
    "2D, three channels, one label": PatchFormat((96, 128), (1.0, 1.0), 3, (1,), None, ((1.0, 1.0),)),
    "2D, one channel, two labels": PatchFormat((96, 128), (1.0, 1.0), 1, (1, 2), None, ((1.0, 1.0),)),
    "3D (middle slice), regions 1+2+3, 2+3, 3": PatchFormat(
        (40, 56, 40), (1.0, 1.0, 1.0), 1, (1, 2, 3), ((1, 2, 3), (2, 3), 3), ((1.0, 1.0, 1.0),)
    ),
}
COLUMNS, ROWS, TIMED = 10, 2, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figure, axes = pyplot.subplots(ROWS * len(FORMATS), COLUMNS, figsize=(1.35 * COLUMNS, 1.2 * ROWS * len(FORMATS)))
    for index, (title, patches) in enumerate(FORMATS.items()):
        generated = GeneratedPatches(patches, TIMED, arguments.seed)
        _draw(generated, axes[ROWS * index : ROWS * (index + 1)].ravel())
        axes[ROWS * index, 0].set_title(title, fontsize=8, loc="left", pad=2)
        print(f"{title}: {_milliseconds(generated):.1f} ms a patch of {patches.size}")
    figure.tight_layout(pad=0.3)
    figure.savefig(arguments.out, dpi=72)


def _draw(generated: GeneratedPatches, axes: np.ndarray) -> None:
    for number, axis in enumerate(axes):
        image, labels = generated.image_and_labels(number)
        if labels.ndim == 3:
            middle = labels.shape[0] // 2
            image, labels = image[:, middle], labels[middle]
        low, high = np.percentile(image, (1, 99))
        picture = np.clip((np.moveaxis(image, 0, -1) - low) / (high - low), 0, 1)
        axis.imshow(picture if len(image) == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for label, colour in enumerate(COLOURS, start=1):
            if (labels == label).any():
                axis.contour(labels == label, levels=[0.5], colors=colour, linewidths=0.8)
        axis.axis("off")


def _milliseconds(generated: GeneratedPatches) -> float:
    began = time.perf_counter()
    for number in range(TIMED):
        generated[number]
    return 1000 * (time.perf_counter() - began) / TIMED


if __name__ == "__main__":
    main()
