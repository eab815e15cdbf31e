"""Differentially private federated segmentation of medical images, as a plugin for nnU-Net v2."""

__version__ = "0.1.0"
