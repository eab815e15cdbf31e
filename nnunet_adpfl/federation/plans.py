"""nnU-Net's plans for a federation: made by a stock planner, or taken from a public data set, then adapted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_adpfl import json_files
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.raw_cases import RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.nnunet_compat.foreign_plans import check_foreign_plans


def make_plans(
    dataset: str,
    raw: RawCases,
    merged: Mapping[str, Any],
    *,
    planner: str = "ExperimentPlanner",
    base_features: int | None = None,
    plans_name: str | None = None,
    declared_cases: int | None = None,
) -> dict[str, Any]:
    """The stock planner's plan from nnU-Net's fingerprint ``merged``, adapted (see adapted_plans); nothing is written.

    Args:
        declared_cases: public number of cases; None: as dataset.json counts them.
    """
    found = stock.run_planner(planner, dataset, merged, raw.files, plans_name=plans_name, declared_cases=declared_cases)
    return adapted_plans(found, base_features)


def public_plans(path: Path, dataset: str, raw: RawCases) -> dict[str, Any]:
    """Plans of another, public data set for this one: of our patients only the file format is used.

    The plans get the name PLANSPublic and their own preprocessed data. Raises InputError when the file is not nnU-Net's
    plan, or was made for another number of channels.
    """
    try:
        plans: dict[str, Any] = json_files.load(path)
        check_foreign_plans(plans)
        base, suffix = re.fullmatch(r"(.*?)((?:_f\d+)?)", plans["plans_name"]).groups()  # type: ignore[union-attr]
        base = base if base.endswith("Public") else f"{base}Public"
        channels = len(plans["foreground_intensity_properties_per_channel"])
        for configuration, settings in plans["configurations"].items():
            if "data_identifier" in settings:
                settings["data_identifier"] = f"{base}_{configuration}"
                channels = min(channels, len(settings["normalization_schemes"]))
    except OSError as error:
        raise InputError(f"--fingerprint public:{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--fingerprint public:{path} is not a plans file of nnU-Net ({error!r})") from None
    if plans.get("dataset_name") == dataset:
        raise InputError(f"--fingerprint public:{path} was made from {dataset} itself, so it is not public; use another data set's plan")
    if channels != len(raw.dataset_json["channel_names"]):
        raise InputError(
            f"--fingerprint public:{path} was made for {channels} channels, {dataset} has "
            f"{len(raw.dataset_json['channel_names'])}; use the plan of a data set with the same channels"
        )
    reader = stock.declared_reader_name(raw.dataset_json)  # from the file ending: no patient's image is opened
    return {**plans, "dataset_name": dataset, "plans_name": base + suffix, "image_reader_writer": reader}


def adapted_plans(plans: dict[str, Any], base_features: int | None) -> dict[str, Any]:
    """The plan with batch_dice off everywhere (it would mix patients) and, on request, another width of the network.

    Feature numbers of all stages, the cap included, are scaled alike; the name gets ``_fN``, the preprocessed data is
    shared with the unscaled plan.
    """
    plans = json.loads(json.dumps(plans))
    for settings in plans["configurations"].values():
        if "batch_dice" in settings:
            settings["batch_dice"] = False
        if base_features is not None and "architecture" in settings:
            arguments = settings["architecture"]["arch_kwargs"]
            first = arguments["features_per_stage"][0]
            arguments["features_per_stage"] = [
                max(1, round(number * base_features / first)) for number in arguments["features_per_stage"]
            ]
    if base_features is not None:
        plans["plans_name"] = re.sub(r"_f\d+$", "", plans["plans_name"]) + f"_f{base_features}"
    return dict(plans)
