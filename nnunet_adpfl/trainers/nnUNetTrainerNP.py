"""The same loop without clipping and noise: the non-private baseline. Its epsilon is null."""

from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP


class nnUNetTrainerNP(nnUNetTrainerADP):  # noqa: N801  (nnU-Net finds trainers by class name)
    """As nnUNetTrainerADP, but gradients are neither clipped nor noised. NO PRIVACY GUARANTEE."""

    settings_of = "nnUNetTrainerNP"
