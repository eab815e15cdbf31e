"""Draws what the made-up cohorts look like at each site: the pictures of docs/datasets.md.

    python benchmarks/pictures.py docs/pictures

Each set is made with `adpfl synth`'s generator, found by its converter, and shown at the slice with most of the label, outlined.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import nibabel
import numpy as np
from PIL import Image

from nnunet_adpfl.cli.synth import GENERATORS
from nnunet_adpfl.dataset_conversion.converters import CONVERTERS
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
from nnunet_adpfl.dataset_conversion.source_set import Options, SourceCase, SourceSet

mpl.use("Agg")
from matplotlib import pyplot

CASES = {"ham10000": 5, "kits23": 5, "brats2024": 2}  # a row; of a brain, every case has four channels
HU_WINDOW = (-160, 240)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--heterogeneity", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, module in GENERATORS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / name
            import_module(module).generate(source, units=24, sites=4, heterogeneity=arguments.heterogeneity, seed=arguments.seed)
            draw(name, _found(name, source), arguments.out / f"synthetic_{name}.png")


def _found(name: str, source: Path) -> SourceSet:
    tables = sorted(source.glob("*_sites.csv"))
    converter = import_module(f"nnunet_adpfl.dataset_conversion.{CONVERTERS[name]}")
    found: SourceSet = converter.find(name, source, SitesChoice(tables[0] if tables else None), Options())
    return found


def draw(name: str, found: SourceSet, out: Path) -> None:
    """One row a site."""
    assert found.cohort is not None
    rows = []
    for site in found.cohort.sites:
        cases = [case for case in found.cases if found.cohort.cases[case.name].site == site][: CASES[name]]
        rows.append((site, [panel for case in cases for panel in _panels(case)]))
    width = max(len(panels) for _, panels in rows)
    figure, axes = pyplot.subplots(len(rows), width, figsize=(1.5 * width, 1.55 * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, (site, panels) in zip(axes, rows, strict=True):
        for axis, (picture, mask) in zip(row, panels, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if mask.any():
                axis.contour(mask, levels=[0.5], colors="#ffd500", linewidths=0.8)
        row[0].set_title(site, fontsize=8, loc="left", pad=2)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    print(f"{out}: {len(found.cases)} cases, {len(rows)} sites")


def _panels(case: SourceCase) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures in 0..1 and masks of a case: one for a photograph or a CT, four for a brain."""
    assert case.label is not None
    if case.label.name.endswith(".png"):
        return [(np.asarray(Image.open(case.images[0])) / 255, np.asarray(Image.open(case.label)) > 0)]
    label = _canonical(case.label)
    slice_at = int((label > 0).sum(axis=(0, 1)).argmax())
    panels = []
    for path in case.images:
        picture = _canonical(path)[..., slice_at]
        inside = picture[picture != 0] if len(case.images) > 1 else np.array(HU_WINDOW)
        low, high = (0, np.percentile(inside, 99.5)) if len(case.images) > 1 else HU_WINDOW
        panels.append((np.clip((picture - low) / (high - low), 0, 1).T[::-1], (label[..., slice_at] > 0).T[::-1]))
    return panels


def _canonical(path: Path) -> np.ndarray:
    """Voxels with axes right, anterior, superior."""
    return np.asanyarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


if __name__ == "__main__":
    main()
