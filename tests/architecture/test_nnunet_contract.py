"""What this package needs of nnU-Net, private and moving names first. A failure here means: nnU-Net moved, read its changes.

The pinned range of versions is in pyproject.toml; these tests say what to look at before it is widened.
"""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from source_imports import files, imports
from workspace import PLANS, Workspace, read

TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
LOADER = "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader"
DATASET = "nnunetv2.training.dataloading.nnunet_dataset"
PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
HANDLER = "nnunetv2.utilities.plans_handling.plans_handler"
LABELS = "nnunetv2.utilities.label_handling.label_handling"
RUN = "nnunetv2.run.run_training"
CHECKS = "nnunetv2.experiment_planning.verify_dataset_integrity"
READERS = "nnunetv2.imageio.reader_writer_registry"
NORMALISATIONS = "nnunetv2.preprocessing.normalization"

SIGNATURES = {
    # the trainer that ours derives from, and what its commands call
    f"{TRAINER}.__init__": "self plans configuration fold dataset_json device",
    f"{TRAINER}.initialize": "self",
    f"{TRAINER}.load_checkpoint": "self filename_or_checkpoint",
    f"{TRAINER}.run_training": "self",
    f"{TRAINER}.save_checkpoint": "self filename",
    f"{TRAINER}.perform_actual_validation": "self save_probabilities",
    f"{TRAINER}.print_to_log_file": "self args also_print_to_console add_timestamp",
    f"{TRAINER}._do_i_compile": "self",
    f"{TRAINER}._build_loss": "self",
    f"{TRAINER}._get_deep_supervision_scales": "self",
    f"{TRAINER}.configure_rotation_dummyDA_mirroring_and_inital_patch_size": "self",
    f"{TRAINER}.build_network_architecture": (
        "plans_manager configuration_manager num_input_channels num_output_channels enable_deep_supervision"
    ),
    f"{TRAINER}.get_training_transforms": (
        "patch_size rotation_for_DA deep_supervision_scales mirror_axes do_dummy_2d_data_aug use_mask_for_norm is_cascaded "
        "foreground_labels regions ignore_label"
    ),
    f"{RUN}:get_trainer_from_args": (
        "dataset_name_or_id configuration fold trainer_name plans_identifier continue_training device"
    ),
    f"{RUN}:maybe_load_checkpoint": "nnunet_trainer continue_training validation_only pretrained_weights_file",
    "nnunetv2.run.load_pretrained_weights:load_pretrained_weights": "network fname verbose",
    # patches
    f"{LOADER}.__init__": (
        "self data batch_size patch_size final_patch_size label_manager oversample_foreground_percent "
        "sampling_probabilities pad_sides probabilistic_oversampling transforms"
    ),
    f"{LOADER}.generate_train_batch": "self",
    f"{LOADER}.get_indices": "self",
    f"{LOADER}.get_bbox": "self data_shape force_fg class_locations overwrite_class verbose",
    f"{LOADER}._probabilistic_oversampling": "self sample_idx",
    f"{DATASET}:infer_dataset_class": "folder",
    f"{DATASET}:nnUNetDatasetBlosc2.__init__": "self folder identifiers folder_with_segs_from_previous_stage",
    f"{DATASET}:nnUNetDatasetBlosc2.load_case": "self identifier",
    # plans
    f"{HANDLER}:PlansManager.__init__": "self plans_file_or_dict",
    f"{HANDLER}:PlansManager.get_configuration": "self configuration_name",
    f"{HANDLER}:PlansManager.get_label_manager": "self dataset_json kwargs",
    f"{LABELS}:LabelManager.__init__": "self label_dict regions_class_order force_use_labels inference_nonlin",
    f"{LABELS}:determine_num_input_channels": "plans_manager configuration_or_config_manager dataset_json",
    "nnunetv2.utilities.get_network_from_plans:get_network_from_plans": (
        "arch_class_name arch_kwargs arch_kwargs_req_import input_channels output_channels allow_init deep_supervision"
    ),
    "nnunetv2.utilities.utils:get_filenames_of_train_images_and_targets": "raw_dataset_folder dataset_json",
    "nnunetv2.utilities.find_class_by_name:recursive_find_python_class": (
        "folder class_name current_module base_folder verbose cleanup_imports_from_base_folder"
    ),
    "nnunetv2.utilities.json_export:recursive_fix_for_json_export": "my_dict",
    # planning
    "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor:DatasetFingerprintExtractor.analyze_case": (
        "image_files segmentation_file reader_writer_class num_samples"
    ),
    f"{PLANNER}:ExperimentPlanner.__init__": (
        "self dataset_name_or_id gpu_memory_target_in_gb preprocessor_name plans_name overwrite_target_spacing "
        "suppress_transpose"
    ),
    f"{PLANNER}:ExperimentPlanner.plan_experiment": "self",
    f"{PLANNER}:ExperimentPlanner.save_plans": "self plans",
    f"{CHECKS}:check_cases": "image_files label_file expected_num_channels readerclass",
    f"{CHECKS}:verify_labels": "label_file readerclass expected_labels",
    f"{READERS}:determine_reader_writer_from_dataset_json": (
        "dataset_json_content example_file allow_nonmatching_filename verbose"
    ),
    f"{READERS}:recursive_find_reader_writer_by_name": "rw_class_name",
    "nnunetv2.imageio.natural_image_reader_writer:NaturalImage2DIO.read_images": "self image_fnames",
    f"{NORMALISATIONS}.map_channel_name_to_normalization:get_normalization_scheme": "channel_name",
    f"{NORMALISATIONS}.default_normalization_schemes:CTNormalization.run": "self image seg",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor.run_case_save": (
        "self output_filename_truncated image_files seg_file plans_manager configuration_manager dataset_json"
    ),
    # prediction
    f"{PREDICTOR}.__init__": (
        "self tile_step_size use_gaussian use_mirroring perform_everything_on_device device verbose verbose_preprocessing "
        "allow_tqdm"
    ),
    f"{PREDICTOR}.manual_initialization": (
        "self network plans_manager configuration_manager parameters dataset_json trainer_name "
        "inference_allowed_mirroring_axes"
    ),
    f"{PREDICTOR}.predict_sliding_window_return_logits": "self input_image",
    f"{PREDICTOR}.initialize_from_trained_model_folder": "self model_training_output_dir use_folds checkpoint_name",
    "nnunetv2.inference.export_prediction:export_prediction_from_logits": (
        "predicted_array_or_file properties_dict configuration_manager plans_manager dataset_json_dict_or_file "
        "output_file_truncated save_probabilities num_threads_torch"
    ),
}
MODULE_NAMES = {
    "nnunetv2.training.dataloading.data_loader": ("threadpool_limits",),
    PLANNER: (
        "nnUNet_preprocessed", "get_filenames_of_train_images_and_targets", "_maybe_copy_splits_file",
        "get_allowed_n_proc_DA", "ExperimentPlanner",
    ),
}  # fmt: skip


def find(dotted: str) -> Any:
    module, _, path = dotted.partition(":")
    found: Any = importlib.import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


def test_installed_version_is_in_the_range_that_this_contract_was_read_from() -> None:
    assert version("nnunetv2").split(".")[:2] == ["2", "8"]


@pytest.mark.parametrize("dotted", SIGNATURES)
def test_name_exists_with_its_parameters(dotted: str) -> None:
    assert " ".join(inspect.signature(find(dotted)).parameters) == SIGNATURES[dotted]


@pytest.mark.parametrize("module", MODULE_NAMES)
def test_names_that_planning_replaces_exist(module: str) -> None:
    """Replacing a name that is not there would silently do nothing."""
    assert not [name for name in MODULE_NAMES[module] if not hasattr(importlib.import_module(module), name)]


def test_every_name_that_the_package_imports_is_in_this_contract() -> None:
    listed = {dotted.split(".__init__")[0] for dotted in SIGNATURES} | set(MODULE_NAMES)
    for found in (found for file in files() for found in imports(file) if found.module.split(".")[0] == "nnunetv2"):
        if not found.name:
            continue  # `import nnunetv2`, for its folder
        wanted = (f"{found.module}:{found.name}", f"{found.module}.{found.name}")
        assert any(entry == name or entry.startswith(f"{name}.") for entry in listed for name in wanted), found


def test_the_fingerprint_is_used_as_the_noisy_one_answers_it(tmp_path: Path) -> None:
    """The questions of federation/public_bins: no statistic is read that they leave out, no spacing is made up elsewhere."""
    source = inspect.getsource(importlib.import_module(PLANNER))
    read_of_it = set(re.findall(r"dataset_fingerprint\[\s*'(\w+)'\]", source))
    assert read_of_it == {
        "spacings", "shapes_after_crop", "median_relative_size_after_cropping", "foreground_intensity_properties_per_channel",
    }  # fmt: skip
    assert "np.percentile(spacings, 50, 0)" in source
    assert "np.percentile(spacings_of_that_axis, 10)" in source
    assert "np.median(new_shapes, 0)" in source
    assert "['median_relative_size_after_cropping'] < (3 / 4.)" in source
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "photo.png")
    photo = find("nnunetv2.imageio.natural_image_reader_writer:NaturalImage2DIO")().read_images([str(tmp_path / "photo.png")])
    assert (photo[0].shape, photo[1]["spacing"]) == ((3, 1, 4, 5), (999, 1, 1))
    schemes = inspect.getsource(importlib.import_module(f"{NORMALISATIONS}.default_normalization_schemes"))
    using = [text.split("(")[0] for text in schemes.split("\nclass ") if "self.intensityproperties[" in text]
    assert using == ["CTNormalization"]


def test_plans_and_labels_have_the_attributes_that_are_read(workspace: Workspace) -> None:
    manager = find(f"{HANDLER}:PlansManager")(read(workspace.preprocessed / f"{PLANS}.json"))
    for name in ("plans", "plans_name", "dataset_name", "available_configurations", "image_reader_writer_class"):
        assert hasattr(manager, name), name
    settings = manager.get_configuration("2d")
    for name in (
        "configuration", "patch_size", "batch_size", "batch_dice", "previous_stage_name", "data_identifier", "use_mask_for_norm",
        "preprocessor_class", "network_arch_class_name", "network_arch_init_kwargs", "network_arch_init_kwargs_req_import",
    ):  # fmt: skip
        assert hasattr(settings, name), name
    regions = {"labels": {"background": 0, "ball": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    labels = manager.get_label_manager({**read(workspace.preprocessed / "dataset.json"), **regions})
    for name in (
        "num_segmentation_heads", "has_regions", "foreground_regions", "foreground_labels", "ignore_label", "all_labels",
        "has_ignore_label",
    ):  # fmt: skip
        assert hasattr(labels, name), name


def test_trainer_sets_the_attributes_that_are_read_or_replaced(workspace: Workspace) -> None:
    trainer = find(TRAINER)(
        {**read(workspace.preprocessed / f"{PLANS}.json"), "continue_training": False}, "2d", 0,
        read(workspace.preprocessed / "dataset.json"), torch.device("cpu"),
    )  # fmt: skip
    for name in (
        "is_ddp", "local_rank", "device", "plans_manager", "configuration_manager", "configuration_name", "dataset_json",
        "label_manager", "enable_deep_supervision", "is_cascaded", "inference_allowed_mirroring_axes",
        "oversample_foreground_percent", "probabilistic_oversampling", "num_iterations_per_epoch", "num_epochs",
        "disable_checkpointing", "was_initialized", "preprocessed_dataset_folder", "dataset_class", "network", "loss",
    ):  # fmt: skip
        assert hasattr(trainer, name), name
    assert "continue_training" not in trainer.plans_manager.plans


def test_a_batch_has_the_keys_and_the_loader_the_attributes_that_are_used() -> None:
    source = inspect.getsource(find(LOADER))
    for text in ("'data': data_all", "'target': seg_all", "self.get_indices()", "self.get_do_oversample(j)", "self._data.load_case("):
        assert text in source, text


def test_the_blur_that_times_itself_is_still_found(workspace: Workspace) -> None:
    """It keeps the faster of two methods: patches would differ from run to run. Ours is told to stop (compat)."""
    from nnunet_adpfl.nnunet_compat.patches import _switch_off_benchmarks
    from nnunet_adpfl.nnunet_compat.training import PlannedTrainer

    plans, dataset = read(workspace.preprocessed / f"{PLANS}.json"), read(workspace.preprocessed / "dataset.json")
    trainer = PlannedTrainer(plans, "2d", dataset, torch.device("cpu"))
    rotation, dummy, _, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = trainer.get_training_transforms((16, 16), rotation, None, axes, dummy)

    def timed() -> list[bool]:
        inner = [getattr(transform, "transform", transform) for transform in transforms.transforms]
        return [transform.benchmark for transform in inner if hasattr(transform, "benchmark")]

    assert timed() == [True]
    _switch_off_benchmarks(transforms)
    assert timed() == [False]


def test_the_predictor_reads_the_keys_that_checkpoints_have() -> None:
    source = inspect.getsource(find(PREDICTOR).initialize_from_trained_model_folder)
    for key in ("trainer_name", "init_args", "inference_allowed_mirroring_axes", "network_weights"):
        assert f"['{key}']" in source or f"'{key}'" in source, key


def test_commands_continue_from_the_checkpoints_that_the_trainer_writes() -> None:
    source = inspect.getsource(find(f"{RUN}:maybe_load_checkpoint"))
    assert source.index("checkpoint_final.pth") < source.index("checkpoint_latest.pth") < source.index("checkpoint_best.pth")
    assert "nnunet_trainer.load_checkpoint(expected_checkpoint_file)" in source
    assert "nnunet_trainer.initialize()" in source  # weights of -pretrained_weights are loaded behind the trainer's back


def test_weights_and_biases_is_switched_on_by_the_variable_that_is_refused() -> None:
    logger = importlib.import_module("nnunetv2.training.logging.nnunet_logger")
    source = inspect.getsource(logger.MetaLogger)
    assert '"nnUNet_wandb_enabled"' in source
    assert '("1", "True", "true")' in source


def test_networks_register_their_layers_as_this_package_expects() -> None:
    """Several names for one tensor, and a Sequential in which InstanceNorm follows the convolution."""
    blocks = importlib.import_module("dynamic_network_architectures.building_blocks.simple_conv_blocks")
    block = blocks.ConvDropoutNormReLU(
        torch.nn.Conv2d, 1, 2, 3, 1, conv_bias=True, norm_op=torch.nn.InstanceNorm2d, norm_op_kwargs={"affine": True}
    )
    assert block.all_modules[0] is block.conv
    assert block.all_modules[1] is block.norm
    assert len(dict(block.named_parameters(remove_duplicate=False))) == 2 * len(dict(block.named_parameters()))


def test_folders_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nnU-Net's paths follow the environment, also after it was imported."""
    paths = importlib.import_module("nnunetv2.paths")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert paths.nnUNet_preprocessed.is_set()
    assert str(paths.nnUNet_preprocessed) == str(tmp_path)
