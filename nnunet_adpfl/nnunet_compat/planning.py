"""nnU-Net's case checks, case analysis, planners and preprocessor, called one case or one plan at a time."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_adpfl.errors import InputError

FOREGROUND_SAMPLES = int(10e7)  # nnU-Net's number for a whole data set
CASE_ERRORS = (  # what a damaged file makes nnU-Net, and the libraries that it reads with, raise
    RuntimeError, ValueError, AssertionError, OSError, EOFError, SyntaxError, LookupError, TypeError, ArithmeticError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
CT = CTNormalization.__name__  # the only one that looks at the fingerprint's intensities
CaseFiles = dict[str, Any]  # {"images": [...], "label": ...}


def reader_name(dataset_json: Mapping[str, Any], example_image: str) -> str:
    """Name of the reader that nnU-Net takes for this data set; InputError when none can read it."""
    try:
        with _quiet(), contextlib.redirect_stderr(io.StringIO()):
            return str(determine_reader_writer_from_dataset_json(dict(dataset_json), example_image).__name__)
    except RuntimeError:
        raise InputError(f"{example_image} cannot be read by any reader of nnU-Net; check the file and file_ending") from None


def declared_reader_name(dataset_json: Mapping[str, Any]) -> str:
    """Name of the reader that dataset.json or its file ending names; `reader_name` asks a patient's file as well.

    Raises InputError where there is none.
    """
    try:
        return str(determine_reader_writer_from_dataset_json(dict(dataset_json), None, verbose=False).__name__)
    except RuntimeError:
        ending = dataset_json["file_ending"]
        raise InputError(f"dataset.json: no reader of nnU-Net knows file_ending {ending!r}; convert the images") from None


def made_up_spacing(reader: str) -> tuple[float, ...] | None:
    """The spacing that a reader of photographs gives to every image; None where images have one of their own."""
    return (999.0, 1.0, 1.0) if reader == NaturalImage2DIO.__name__ else None


def normalisations(dataset_json: Mapping[str, Any]) -> list[str]:
    """Name of nnU-Net's normalisation of each channel."""
    return [str(get_normalization_scheme(name).__name__) for name in dataset_json["channel_names"].values()]


def can_use_mask(normalisation: str) -> bool:
    """Whether a normalisation can be told to look at the inside of the cropped image only."""
    found = recursive_find_python_class(
        str(Path(nnunetv2.__path__[0]) / "preprocessing" / "normalization"), normalisation, "nnunetv2.preprocessing.normalization"
    )
    return bool(found.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true)


class OpenCase:
    """One case, read once; nnU-Net's checks and analysis each ask for the files anew."""

    def __init__(self, files: CaseFiles, dataset_json: Mapping[str, Any], reader: str):
        self._files, self._dataset_json = files, dataset_json
        instance = recursive_find_reader_writer_by_name(reader)()
        self._images, self._image_properties = instance.read_images(files["images"])
        self._label, self._label_properties = instance.read_seg(files["label"])

    def __call__(self) -> OpenCase:  # nnU-Net makes an instance of the "class" that it is given
        return self

    def read_images(self, _files: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self._images, self._image_properties

    def read_seg(self, _file: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self._label.copy(), self._label_properties  # nnU-Net's cropping writes into it

    @property
    def images(self) -> np.ndarray:
        """Channels x slices x rows x columns, as nnU-Net's reader gives them."""
        return self._images

    @property
    def label(self) -> np.ndarray:
        """1 x slices x rows x columns."""
        return self._label

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        return tuple(float(value) for value in self._image_properties["spacing"])

    def problem(self) -> str | None:
        """What nnU-Net's integrity check finds wrong, in one line; None where all is well."""
        if not np.isfinite(self._images).all():
            return "the image has values that are not finite"
        labels = _expected_labels(self._dataset_json)
        with _quiet() as said:
            fine = verify_labels(self._files["label"], self, labels)
            fine = check_cases(self._files["images"], self._files["label"], len(self._dataset_json["channel_names"]), self) and fine
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        return None if fine else " ".join(lines[:3])[:300]

    def analysis(self, samples: int) -> tuple[Any, Any, Any, float]:
        """Shape after cropping, spacing_mm, ``samples`` foreground intensities per channel, relative size after cropping."""
        shape, spacing, intensities, _, relative = DatasetFingerprintExtractor.analyze_case(
            self._files["images"], self._files["label"], self, samples
        )
        return shape, spacing, intensities, float(relative)


def foreground_share(files: CaseFiles, reader: str) -> float:
    """Voxels with a label above 0, over all voxels."""
    label, _ = recursive_find_reader_writer_by_name(reader)().read_seg(files["label"])
    return float((label > 0).mean())


def run_planner(
    planner_name: str,
    dataset: str,
    fingerprint: Mapping[str, Any],
    files: Mapping[str, CaseFiles],
    *,
    plans_name: str | None = None,
    declared_cases: int | None = None,
) -> dict[str, Any]:
    """Plans that any stock planner class makes from a fingerprint. Nothing is read from or written to nnUNet_preprocessed.

    Args:
        declared_cases: public number that the planner shall take for numTraining; with it, it opens no patient's file.

    Raises InputError for an unknown planner, or one that cannot plan for this data set.
    """
    # Same class name, because nnU-Net notes it in the plans.
    planner_class = _planner_class(planner_name)
    kept = type(planner_class.__name__, (planner_class,), {"save_plans": _keep_plans})
    with _planner_surroundings(dataset, fingerprint, files), _quiet():
        planner = kept(dataset) if plans_name is None else kept(dataset, plans_name=plans_name)
        if declared_cases is not None:
            reader = recursive_find_reader_writer_by_name(declared_reader_name(planner.dataset_json))
            planner.dataset_json = {**planner.dataset_json, "numTraining": declared_cases}
            planner.determine_reader_writer = lambda: reader
        try:
            with torch.device("meta"):  # networks are built to count their features, dozens of times: without memory
                planner.plan_experiment()
        except CASE_ERRORS as error:
            raise InputError(f"--planner {planner_name} cannot plan for {dataset} ({_first_line(error)})") from None
    return dict(planner.plans)


def preprocess_case(
    files: CaseFiles, target: str, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> None:
    """Run the plan's stock preprocessor on one case and save it in nnU-Net's format, without file ending."""
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    preprocessor = settings.preprocessor_class(verbose=False)
    preprocessor.run_case_save(target, files["images"], files["label"], manager, settings, dataset_json)


def use_one_thread() -> None:
    """For forked workers: they are parallel themselves, and a thread pool does not survive a fork."""
    torch.set_num_threads(1)


def case_error(case: str, files: CaseFiles, error: BaseException) -> InputError:
    """One line for a case that nnU-Net could not handle."""
    return InputError(f"case {case} cannot be used ({_first_line(error)}); check {files['images'][0]} and its label")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


def _expected_labels(dataset_json: Mapping[str, Any]) -> list[int]:
    manager = LabelManager(dataset_json["labels"], regions_class_order=dataset_json.get("regions_class_order"))
    return [*manager.all_labels, *([manager.ignore_label] if manager.has_ignore_label else [])]


def check_labels(dataset_json: Mapping[str, Any]) -> None:
    """InputError unless the labels of dataset.json are 0, 1, 2, ... without a gap, as nnU-Net requires."""
    try:
        labels = _expected_labels(dataset_json)
    except (*CASE_ERRORS, TypeError) as error:
        raise InputError(f"dataset.json: labels are not what nnU-Net needs ({_first_line(error)})") from None
    if labels != list(range(len(labels))):
        raise InputError(f"dataset.json: labels must be 0, 1, 2, ... without a gap, not {labels}")


def _planner_class(name: str) -> Any:
    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    with _quiet():
        found = recursive_find_python_class(folder, name, "nnunetv2.experiment_planning")
    if not (inspect.isclass(found) and issubclass(found, default_experiment_planner.ExperimentPlanner)):
        raise InputError(f"--planner {name!r} is unknown to nnU-Net; use for example ExperimentPlanner or nnUNetPlannerResEncM")
    return found


@contextlib.contextmanager
def _planner_surroundings(dataset: str, fingerprint: Mapping[str, Any], files: Mapping[str, CaseFiles]) -> Iterator[None]:
    """Planners read the fingerprint from, and copy dataset.json to, nnUNet_preprocessed: here a temporary folder.

    They also search the raw files (slow for many cases), and crash where nnUNet_n_proc_DA is 0.
    """
    module, threads = default_experiment_planner, torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="adpfl_plan_") as folder:
        (Path(folder) / dataset).mkdir()
        (Path(folder) / dataset / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")
        replacements: dict[str, Any] = {
            "nnUNet_preprocessed": folder,
            "get_filenames_of_train_images_and_targets": lambda *_: dict(files),
            "_maybe_copy_splits_file": lambda *_: None,
            "get_allowed_n_proc_DA": lambda: 1,
        }
        originals = {name: getattr(module, name) for name in replacements}
        vars(module).update(replacements)
        try:
            yield
        finally:
            vars(module).update(originals)
            torch.set_num_threads(threads)


def _keep_plans(planner: Any, plans: dict[str, Any]) -> None:
    recursive_fix_for_json_export(plans)
    planner.plans = plans
