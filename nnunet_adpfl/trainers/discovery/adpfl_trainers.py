"""What nnU-Net finds through ``nnUNet_extTrainer``: nothing but the trainers."""

from nnunet_adpfl.trainers.nnUNetTrainerADP import nnUNetTrainerADP
from nnunet_adpfl.trainers.nnUNetTrainerDP import nnUNetTrainerDP
from nnunet_adpfl.trainers.nnUNetTrainerNP import nnUNetTrainerNP

__all__ = ["nnUNetTrainerADP", "nnUNetTrainerDP", "nnUNetTrainerNP"]
