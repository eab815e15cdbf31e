"""DP-SGD with a fixed clip norm and constant noise: the plain private baseline."""

from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP


class nnUNetTrainerDP(nnUNetTrainerADP):  # noqa: N801  (nnU-Net finds trainers by class name)
    """As nnUNetTrainerADP, but the privacy plan's clipping is fixed and its noise constant."""

    settings_of = "nnUNetTrainerDP"
