"""nnU-Net's own network and loss, taken from a trainer without starting a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_adpfl.errors import InputError

Target = torch.Tensor | list[torch.Tensor]
Patches = tuple[torch.Tensor, Target]


class PlannedTrainer(nnUNetTrainer):
    """A trainer that can build what a plan describes, and nothing else: no folder, no log file, no training."""

    def __init__(self, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], device: torch.device):
        self.is_ddp = False
        self.local_rank = 0
        self.device = device
        self.plans_manager = PlansManager(plans)
        self.configuration_name = configuration
        self.configuration_manager = configuration_of(self.plans_manager, configuration)
        self.dataset_json = dataset_json
        self.label_manager = self.plans_manager.get_label_manager(dataset_json)
        self.enable_deep_supervision = True
        self.is_cascaded = False
        self.inference_allowed_mirroring_axes = None

    def _do_i_compile(self) -> bool:
        return False

    def print_to_log_file(self, *args: Any, **kwargs: Any) -> None:
        pass


def configuration_of(plans_manager: PlansManager, configuration: str) -> Any:
    """nnU-Net's ConfigurationManager, or InputError naming the configurations that the plan has."""
    if configuration not in plans_manager.plans["configurations"]:
        known = ", ".join(plans_manager.available_configurations)
        raise InputError(f"configuration {configuration!r} is not in {plans_manager.plans_name} (it has {known})")
    return plans_manager.get_configuration(configuration)


def check_supported(plans: dict[str, Any], configuration: str) -> None:
    """Refuse what would let patients influence each other's gradients, or what is not built for it.

    Raises InputError for cascades, for batch_dice and for networks with batch normalisation.
    """
    try:
        settings = configuration_of(PlansManager(plans), configuration)
        norm = str(settings.network_arch_init_kwargs.get("norm_op"))
        cascade, _, name = settings.previous_stage_name, settings.batch_dice, plans["plans_name"]
    except InputError:
        raise
    except Exception as error:  # a plan that was edited makes nnU-Net raise whatever its values suggest
        raise InputError(f"configuration {configuration} of the plans is not what nnU-Net needs ({error!r:.120}): plan again") from None
    if cascade is not None:
        raise InputError(
            f"configuration {configuration} is a cascade, which has no privacy guarantee here: use 3d_fullres"
        )
    if settings.batch_dice:
        raise InputError(
            f"plans {name}: batch_dice is true in {configuration}, which mixes patients in one loss; make "
            "the plans with `adpfl plan`"
        )
    if "BatchNorm" in norm:
        raise InputError(f"plans {name}: {norm} mixes patients; use a network with InstanceNorm")


def build_network(trainer: nnUNetTrainer, seed: int) -> nn.Module:
    """The network of the plan with random weights that depend on the seed alone, on the trainer's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = trainer.build_network_architecture(
                trainer.plans_manager,
                trainer.configuration_manager,
                determine_num_input_channels(
                    trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json
                ),
                trainer.label_manager.num_segmentation_heads,
                trainer.enable_deep_supervision,
            )
        except Exception as error:  # as many kinds as a plan can have mistakes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{trainer.configuration_name}: the network of the plan cannot be built ({reason:.120}); plan again") from None
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise InputError("the network has batch normalisation, which mixes patients; use one with InstanceNorm")
    if any(_drops_at_random(module) for module in network.modules()):
        raise InputError("the network has dropout or stochastic depth, whose draws would depend on who else was drawn; use none")
    if any(True for _ in network.buffers()):
        raise InputError("the network has buffers that change during training; they would be outside the guarantee")
    return network.to(trainer.device)


def parameter_count(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], frozen: Sequence[str] = ()
) -> int:
    """Parameters of the plan's network but for those whose names match a ``frozen`` glob pattern.

    The few hundred that get no gradient in any case are counted too. No memory is taken for the weights.
    """
    meta = torch.device("meta")
    with meta:
        network = build_network(PlannedTrainer(plans, configuration, dataset_json, meta), seed=0)
    trained = (p for name, p in network.named_parameters() if not any(fnmatchcase(name, glob) for glob in frozen))
    return max(1, sum(parameter.numel() for parameter in trained))


def _drops_at_random(module: nn.Module) -> bool:
    """Dropout of any kind, or the stochastic depth of residual blocks, that is switched on."""
    rate = getattr(module, "p", None) if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "drop_prob", None)
    return isinstance(rate, (int, float)) and rate > 0


def build_loss(trainer: nnUNetTrainer) -> Callable[..., torch.Tensor]:
    """nnU-Net's loss with deep supervision; it averages over the patches of a batch, one unit's patches here."""
    return trainer._build_loss()


def random_batch(trainer: nnUNetTrainer, patches: int, generator: torch.Generator) -> Patches:
    """Random numbers in the shape of a training batch: for probes and trials that must not see a patient."""
    manager, size = trainer.label_manager, list(trainer.configuration_manager.patch_size)
    channels = determine_num_input_channels(trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
    data = torch.randn((patches, channels, *size), generator=generator)
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(size)]
    targets = []
    for scale in scales:
        shape = [max(1, round(s * f)) for s, f in zip(size, scale, strict=True)]
        if manager.has_regions:
            regions = len(manager.foreground_regions)
            targets.append(torch.randint(0, 2, (patches, regions, *shape), generator=generator).bool())
        else:
            classes = len(manager.foreground_labels) + 1
            targets.append(torch.randint(0, classes, (patches, 1, *shape), generator=generator).to(torch.int16))
    return data.to(trainer.device), [target.to(trainer.device) for target in targets]
