"""Checks of an nnU-Net plan that somebody else wrote, before any of it is used.

nnU-Net imports and calls whatever class a plan names, and a plan's names become names of files and folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nnunet_adpfl.cohort import names_a_file

# Exactly one class in one module: a longer path could lead through a module's own imports to anything (torch.hub.load).
_NETWORKS = re.compile(r"dynamic_network_architectures\.architectures\.[a-z]\w*\.[A-Z]\w*")
_MODULES = re.compile(r"torch\.nn\.(modules\.[a-z]\w*\.)?[A-Z]\w*")
_MOST_FEATURES = 4096  # of a stage; nnU-Net's largest have 512


def check_foreign_plans(plans: Any) -> None:
    """ValueError unless names can name files and every class comes from nnU-Net's own libraries.

    KeyError or TypeError where the plan has not the structure of one.
    """
    names = [plans["plans_name"], plans["dataset_name"], *plans["configurations"]]
    odd = next((name for name in names if not isinstance(name, str) or not names_a_file(name)), None)
    if odd is not None:
        raise ValueError(f"{odd!r:.80} cannot name a file")
    for settings in plans["configurations"].values():
        for inner in _architectures(settings):
            _check_classes(inner)


def _architectures(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not isinstance(settings, dict):
        raise TypeError("a configuration is not an object")
    return [settings["architecture"]] if "architecture" in settings else []


def _check_classes(architecture: Mapping[str, Any]) -> None:
    if not _is_from(architecture["network_class_name"], _NETWORKS):
        raise ValueError(f"network class {architecture['network_class_name']!r:.80} is not one of nnU-Net's")
    features = architecture["arch_kwargs"]["features_per_stage"]
    if not isinstance(features, list) or not features or not all(type(n) is int and 0 < n <= _MOST_FEATURES for n in features):
        raise ValueError("features_per_stage are not numbers of features")
    for argument in architecture["_kw_requires_import"]:
        value = architecture["arch_kwargs"][argument]
        if value is not None and not _is_from(value, _MODULES):
            raise ValueError(f"{argument} {value!r:.80} is not a module of torch")


def _is_from(name: object, library: re.Pattern[str]) -> bool:
    return isinstance(name, str) and library.fullmatch(name) is not None
