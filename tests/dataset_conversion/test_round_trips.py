"""Each data set from its download to the challenge's labels: convert, plan, two rounds, predict, convert back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_challenges import CHALLENGES, Challenge

from nnunet_adpfl import cohort as cohorts
from nnunet_adpfl import trainers
from nnunet_adpfl.dataset_conversion.synthetic import brats2024, kits23
from nnunet_adpfl.nnunet_compat import planning as stock

Command = Callable[..., tuple[int, str, str]]
PLAN = ("--base-features", 2, "--epsilon", 8, "--delta", 1e-3, "--steps", 4, "--local-steps", 2, "--sampling-rate", 0.4)


def _kits(folder: Path) -> tuple[Path, tuple[str, ...]]:
    kits23.generate(folder / "kits", units=10, sites=2, size=(24, 40, 40))
    return folder / "kits", ("--sites", str(folder / "kits" / "kits23_sites.csv"))


def _brats(folder: Path) -> tuple[Path, tuple[str, ...]]:
    brats2024.generate(folder / "brats", units=10, sites=2, size=(32, 40, 32))
    return folder / "brats", ()


MADE_UP = {
    "synth kits23": Challenge(_kits, frozenset({0, 1, 2, 3})),
    "synth brats2024": Challenge(_brats, frozenset({0, 1, 2, 3, 4})),
}  # HAM10000 of CHALLENGES is made up too
SETS = {**CHALLENGES, **MADE_UP}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_from_download_to_submission(
    name: str, raw: Path, tmp_path: Path, adpfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(stock, "FOREGROUND_SAMPLES", 20_000)
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(trainers.__file__).parent / "discovery"))
    challenge, converter = SETS[name], "kits23" if name == "kits21" else name.removeprefix("synth ")
    source, arguments = challenge.write(tmp_path / "download")
    code, out, err = adpfl("convert", converter, source, 55, *arguments, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["unit"], told["units"], len(told["sites"])) == (challenge.unit, challenge.units, challenge.sites)
    configuration = "2d" if challenge.flat else "3d_fullres"
    code, _, err = adpfl("plan", 55, "-c", configuration, *PLAN)
    assert code == 0, err
    code, out, err = adpfl("train", 55, configuration, 0, "-p", "nnUNetPlans_f2", "--rounds", 2, "--json")
    assert code == 0, err
    run = Path(json.loads(out)["run"])
    data_set = Path(told["folder"])
    cases = sorted(cohorts.load(data_set).cases)[:2]
    predictions = _predict(run, data_set, cases, tmp_path / "predictions")
    code, _, err = adpfl("convert", converter, predictions, tmp_path / "back", "--back")
    assert code == 0, err
    for case in cases:
        _check_submission(name, case, source, tmp_path / "back", challenge.values)


def _predict(run: Path, data_set: Path, cases: list[str], out: Path) -> Path:
    """nnU-Net's own predictor over the raw images, as `nnUNetv2_predict` calls it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir()
    ending = json.loads((data_set / "dataset.json").read_text())["file_ending"]
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(run.parent), (0,), "checkpoint_final.pth")
    images = [sorted(map(str, (data_set / "imagesTr").glob(f"{case}_????{ending}"))) for case in cases]
    predictor.predict_from_files_sequential(images, [str(out / case) for case in cases], save_probabilities=False)
    return out


def _check_submission(name: str, case: str, source: Path, back: Path, values: frozenset[int]) -> None:
    """The file has the challenge's name and values, and lies on the grid of the mask that the challenge gave."""
    if SETS[name].flat:
        found = Image.open(back / f"{case}_segmentation.png")
        original = Image.open(next(source.rglob(f"{case}_segmentation.png")))
        assert (found.size, found.mode) == (original.size, "L")
        assert set(np.unique(np.asarray(found)).tolist()) <= values
        return
    submitted = nibabel.load(back / f"{case}.nii.gz")
    assert set(np.unique(submitted.dataobj).tolist()) <= values
    first = next(path for path in sorted(source.rglob("*.nii*")) if case in (path.parent.name, path.name.split(".")[0]))
    original = nibabel.load(first)
    assert submitted.shape == original.shape[:3]
    np.testing.assert_allclose(submitted.affine, original.affine, atol=1e-5)
