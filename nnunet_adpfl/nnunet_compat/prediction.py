"""Predictions for preprocessed cases with nnU-Net's own predictor and export, in this process (no pools)."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from torch import nn

from nnunet_adpfl import tensor_files
from nnunet_adpfl.errors import DivergedError, InputError
from nnunet_adpfl.nnunet_compat.training import configuration_of


@dataclass(frozen=True)
class TrainedModel:
    """Weights with all that is needed to predict with them.

    Attributes:
        plans: nnU-Net's plan that the network was built from.
        dataset_json: labels, channels and file ending.
        weights: name -> tensor, as in ``network_weights`` of nnU-Net's checkpoints.
        mirroring_axes: axes that test-time mirroring may flip; None: no mirroring.
    """

    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    configuration: str
    weights: Mapping[str, torch.Tensor]
    mirroring_axes: tuple[int, ...] | None = None


def load_model(checkpoint: Path) -> TrainedModel:
    """Read a checkpoint in nnU-Net's format without executing anything in it.

    Raises InputError when it is missing, damaged or holds more than plain tensors, numbers and text.
    """
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint} is missing: finish the run with `adpfl train ... --continue`")
    try:
        content = tensor_files.load(checkpoint, numpy_scalars=True)
        init = content["init_args"]
        axes = content.get("inference_allowed_mirroring_axes")
        if not all(isinstance(part, dict) for part in (init["plans"], init["dataset_json"], content["network_weights"])):
            raise TypeError("plans, dataset_json and network_weights must be dictionaries")
        if axes is not None and not (axes and all(axis in (0, 1, 2) for axis in axes)):
            raise ValueError("inference_allowed_mirroring_axes are no axes")
        return TrainedModel(
            init["plans"], init["dataset_json"], init["configuration"], content["network_weights"],
            None if axes is None else tuple(axes),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{checkpoint} is not an nnU-Net checkpoint of plain tensors ({reason})") from None


def data_identifier(model: TrainedModel) -> str:
    """Name of the folder with the model's preprocessed cases, inside nnUNet_preprocessed/DATASET."""
    return str(configuration_of(PlansManager(dict(model.plans)), model.configuration).data_identifier)


class CasePredictor:
    """Predicts cases one after the other.

    Args:
        model: what predicts.
        data_folder: preprocessed cases of the model's configuration.
        device: where the network runs.
        mirroring: average over all flips, as nnU-Net does; off is 4 (2D) or 8 (3D) times faster.
    """

    def __init__(self, model: TrainedModel, data_folder: Path, device: torch.device, *, mirroring: bool = True) -> None:
        self._plans = PlansManager(dict(model.plans))
        self._settings = configuration_of(self._plans, model.configuration)
        self._dataset_json = dict(model.dataset_json)
        self._dataset = infer_dataset_class(str(data_folder))(str(data_folder))
        self._network = network = _network(model, self._plans, self._settings).to(device).eval()
        benchmark = torch.backends.cudnn.benchmark
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a warning on every CPU, whatever it was asked for
            self._predictor = nnUNetPredictor(use_mirroring=mirroring, device=device, allow_tqdm=False)
            self._predictor.manual_initialization(
                network, self._plans, self._settings, None, self._dataset_json, "nnUNetTrainer", model.mirroring_axes
            )
        torch.backends.cudnn.benchmark = benchmark  # the predictor switches it on for the whole process

    @property
    def cases(self) -> set[str]:
        return set(self._dataset.identifiers)

    def replace_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on with other weights of the same network; of a tensor with several names one is enough."""
        self._network.load_state_dict(dict(weights), strict=False)

    def label_maps(self, case: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Predicted and true label map of a case on the grid that the network works on, without going back to the
        original image: quick. None where the network's output is not finite."""
        data, _ = self._load(case)
        truth = np.maximum(np.asarray(self._dataset.load_case(case)[1][:])[0], 0)  # -1: outside of the image
        with contextlib.redirect_stdout(sys.stderr):
            logits = self._logits(data)
        if logits is None:
            return None
        labels = self._plans.get_label_manager(self._dataset_json).convert_logits_to_segmentation(logits)
        return np.asarray(labels), truth

    def predict_to_file(self, case: str, folder: Path) -> Path:
        """Write the predicted label map of a case in the geometry of its original image, and return the file.

        Raises InputError for a case that cannot be read, DivergedError when the network's output is not finite (weights
        that diverged).
        """
        data, properties = self._load(case)
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to results
            logits = self._logits(data)
            if logits is None:
                raise DivergedError(f"case {case}: the network's output is not finite; its weights have diverged")
            export_prediction_from_logits(
                logits, properties, self._settings, self._plans, self._dataset_json, str(folder / case),
                num_threads_torch=torch.get_num_threads(),
            )  # fmt: skip
        return folder / f"{case}{self._dataset_json['file_ending']}"

    def _load(self, case: str) -> tuple[torch.Tensor, dict[str, Any]]:
        try:
            data, _, _, properties = self._dataset.load_case(case)
            return torch.from_numpy(np.asarray(data[:])), properties
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"case {case} cannot be read ({reason}); run `adpfl plan` again") from None

    def _logits(self, data: torch.Tensor) -> torch.Tensor | None:
        """Logits of a preprocessed case, None where they are not finite."""
        try:
            logits: torch.Tensor = self._predictor.predict_sliding_window_return_logits(data).cpu()
        except RuntimeError as error:
            if "inf" in str(error):  # the predictor's own check, in half precision
                return None
            raise
        return logits if bool(torch.isfinite(logits).all()) else None


class LabelReader:
    """Reads label maps and images with the reader that nnU-Net's plan names."""

    def __init__(self, plans: Mapping[str, Any]) -> None:
        self._reader = PlansManager(dict(plans)).image_reader_writer_class()

    def labels(self, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
        """Label map (z, y, x), 2D images as (1, y, x), and its spacing in the same order, in mm (pixels for PNG)."""
        with contextlib.redirect_stdout(sys.stderr):
            array, properties = self._reader.read_seg(str(path))
        return array[0], tuple(float(step) for step in properties["spacing"])

    def image(self, paths: Sequence[Path]) -> np.ndarray:
        """Channels of one case, (channels, z, y, x)."""
        with contextlib.redirect_stdout(sys.stderr):
            array, _ = self._reader.read_images([str(path) for path in paths])
        return np.asarray(array)


def raw_images(raw: Path) -> dict[str, list[Path]]:
    """Case -> image files of a raw data set; empty where it is not on this machine."""
    try:
        dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
        found = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
        return {case: [Path(image) for image in entry["images"]] for case, entry in found.items()}
    except (OSError, ValueError, KeyError, AssertionError):
        return {}


def _network(model: TrainedModel, plans: PlansManager, settings: Any) -> nn.Module:
    try:
        network = _empty_network(model, plans, settings)
    except Exception as error:  # as many kinds as a plan can have mistakes
        raise InputError(f"the network of the checkpoint's plan cannot be built ({error!r:.120}); restore the checkpoint") from None
    try:
        network.load_state_dict(dict(model.weights))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"the weights do not fit the network of the plan ({str(error).splitlines()[-1].strip()})"
        ) from None
    return network


def _empty_network(model: TrainedModel, plans: PlansManager, settings: Any) -> nn.Module:
    labels = plans.get_label_manager(dict(model.dataset_json))
    network: nn.Module = get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, settings, dict(model.dataset_json)),
        labels.num_segmentation_heads,
        allow_init=False,
        deep_supervision=False,
    )
    return network
