"""What is compared: each method is the data set's privacy plan with some fields changed, and a way to train.

DP-FL is DP-SGD as it is usually run: fixed clip norm, constant noise, SGD, plain FedAvg, the last weights. NP-FL is the same
without clip and noise, with momentum where that is better. ADP-FL is the privacy plan as it stands. All share splits, start,
steps, sampling rate, patches (but for stock-dp) and network; each has its own grid of settings, tried on other patients (tuning.py).
Variants of the user may also differ in what is paid for or computed; the table shows their epsilon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.patch_rules import NNUNET_FOREGROUND
from nnunet_adpfl.privacy.plan import InitialWeights, PrivacyPlan
from nnunet_adpfl.trainers import prepared_fold

RANDOM, PUBLIC = "random", "public"
RATES = (0.1, 0.3, 1.0, 3.0)
PRIVATE_RATES = (0.03, 0.1, 0.3, 1.0)  # clipped gradients are divided by C, so their noise sets the scale, not the loss
CLIP_NORMS = (0.03, 0.1, 0.3, 1.0)
# What a plan is about, who is protected and how: no method may have its own.
SAME_FOR_ALL = frozenset({
    "format", "unit", "adjacency", "delta", "training_units", "fingerprint", "fingerprint_release", "cohort_digest", "plans_digest",
    "validation", "seed", "initial_weights", "noise_multiplier",
})  # fmt: skip
_PLAIN: dict[str, Any] = {
    "optimizer": {"name": "sgd", "momentum": 0.0, "ema_decay": 0.0, "tail_share": 0.0, "keep_fraction": 1.0},
    "trainable": {"random_mask": 1.0, "phases": []},
    "projection": {"dimensions": 0},
    "rounds": {"strategy": "fedavg", "weights": "declared"},
}


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: of the row and of its folder.
        trainer: whose fields of the privacy plan are used.
        place: sites train together (federated), or all units in one pool (central).
        changes: section of the privacy plan -> field -> value.
        grid: field, as ``section.field``, -> values that tuning tries.
        start: random weights, or the declared public ones.
        base: of a variant: the method whose tuning it shares.
    """

    name: str
    trainer: str
    place: Literal["federated", "central"] = "federated"
    changes: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    start: str = RANDOM
    base: str | None = None

    @property
    def tuned_as(self) -> str:
        """Name that its settings have in tuning.json."""
        return self.name if self.base is None else self.base + (f"@{PUBLIC}" if self.start == PUBLIC else "")

    def from_public(self) -> Method:
        """The same with the public start."""
        return replace(self, name=f"{self.name}@{PUBLIC}", start=PUBLIC)


_NP_GRID = {"optimizer.learning_rate_non_private": RATES, "optimizer.momentum": (0.0, 0.9)}
_ADP_GRID = {"optimizer.learning_rate": PRIVATE_RATES}
_DP_GRID = {"optimizer.learning_rate": PRIVATE_RATES, "clipping.clip_norm": CLIP_NORMS}
_SVT_GRID = {**_NP_GRID, "update_filter.gamma": (1e-4, 1e-3, 1e-2)}
_NP = {**_PLAIN, "rounds": {**_PLAIN["rounds"], "optimizer_state": "kept"}}  # momentum as nnU-Net has it, if it helps
_FILTERED = {**_NP, "clipping": {"method": "none"}}
# One patch of a patient, with nnU-Net's flips, foreground and augmentation: what a stock pipeline gives.
_STOCK_PATCHES = {"patches_per_unit": 1, "mirroring": True, "oversample_foreground": NNUNET_FOREGROUND, "augmentation": "nnunet"}
_LOCAL = {**_NP, "rounds": {"strategy": "local", "optimizer_state": "kept"}}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("local", "nnUNetTrainerNP", changes=_LOCAL, grid=_NP_GRID),
        Method("central", "nnUNetTrainerNP", "central", _NP, _NP_GRID),
        Method("np-fl", "nnUNetTrainerNP", changes=_NP, grid=_NP_GRID),
        Method("dp-fl", "nnUNetTrainerDP", changes=_PLAIN, grid=_DP_GRID),
        Method("stock-dp", "nnUNetTrainerDP", changes={**_PLAIN, **_STOCK_PATCHES}, grid=_DP_GRID),
        Method("adp-fl", "nnUNetTrainerADP", grid=_ADP_GRID),
        Method(
            "local-adp", "nnUNetTrainerADP", grid=_ADP_GRID,
            changes={"rounds": {"strategy": "local"}, "projection": {"dimensions": 0}},  # its directions are shared among sites
        ),
        Method("paper", "nnUNetTrainerNP", changes={**_FILTERED, "update_filter": {"kind": "paper"}}, grid=_NP_GRID),
        Method("paper-dp", "nnUNetTrainerNP", changes={**_FILTERED, "update_filter": {"kind": "svt"}}, grid=_SVT_GRID),
        Method("central-adp", "nnUNetTrainerADP", "central", grid=_ADP_GRID),
    )
}


def chosen(names: Sequence[str], variants: Sequence[str]) -> list[Method]:
    """Methods by name, then variants: ``NAME=BASE:field=value,field=value`` with fields of the privacy plan.

    Raises InputError for an unknown name, a name given twice, or a variant that is not written so.
    """
    found = [_known(name) for name in names] + [_variant(text) for text in variants]
    all_names = [method.name for method in found]
    if taken := next((name for name in map(_plain_name, found[len(names) :]) if name in METHODS), None):
        raise InputError(f"--variant {taken}: that is the name of a method; give the variant a name of its own")
    if twice := next((name for name in all_names if all_names.count(name) > 1), None):
        raise InputError(f"method {twice!r} is named twice: give each variant a name of its own")
    if not found:
        raise InputError("--methods names no method")
    return found


def plan_of(declared: PrivacyPlan, method: Method, tuned: Mapping[str, Any], seed: int, init: InitialWeights) -> PrivacyPlan:
    """The privacy plan that a method trains with.

    Args:
        declared: of the data set.
        tuned: ``section.field`` -> value that tuning chose.
        init: initial weights of methods with the public start.

    Raises InputError for a field that the plan does not have.
    """
    content = declared.model_dump(mode="json")
    content["seed"] = seed
    content["initial_weights"] = init.model_dump(mode="json") if method.start == PUBLIC else {"kind": "random"}
    content["noise_multiplier"] = None  # calibrated anew: changes may touch it
    for section, fields in method.changes.items():
        if section in SAME_FOR_ALL:
            raise InputError(f"method {method.name}: {section} is the same for all methods of a comparison; leave it out")
        if section not in content:
            raise InputError(f"method {method.name}: the privacy plan has no section or field {section!r}")
        content[section] = {**content[section], **fields} if isinstance(fields, Mapping) else fields
    for path, value in tuned.items():
        _set(content, path, value)
    plan = privacy_plans.parse(content, f"method {method.name}")
    made = prepared_fold.variant(plan, method.trainer)
    if made.update_filter != plan.update_filter:
        raise InputError(f"method {method.name}: update_filter is for methods without clip and noise; start from paper or paper-dp")
    return made


def untuned(method: Method) -> Method:
    """The method that is tuned for a row: of a variant the one that it came from, so that a variant cannot spoil its tuning."""
    return method if method.base is None else _known(method.tuned_as)


def _plain_name(method: Method) -> str:
    return method.name.removesuffix(f"@{PUBLIC}")


def _known(name: str) -> Method:
    if name.removesuffix(f"@{PUBLIC}") not in METHODS:
        raise InputError(f"method {name!r} is unknown; use some of {', '.join(METHODS)} (with @{PUBLIC} for the public start)")
    method = METHODS[name.removesuffix(f"@{PUBLIC}")]
    return method.from_public() if name.endswith(f"@{PUBLIC}") else method


def _variant(text: str) -> Method:
    name, equals, rest = text.partition("=")
    base, colon, settings = rest.partition(":")
    if not (name and equals and colon and settings) or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InputError(f"--variant {text!r}: write NAME=METHOD:SECTION.FIELD=VALUE;SECTION.FIELD=VALUE")
    method = _known(base)
    changes = json.loads(json.dumps(method.changes))
    grid = dict(method.grid)
    for setting in settings.split(";"):
        path, sign, value = setting.partition("=")
        if not sign:
            raise InputError(f"--variant {text!r}: {setting!r} is not FIELD=VALUE")
        _set(changes, path.strip(), _value(value), create=True)
        grid.pop(path.strip(), None)
    if method.start == PUBLIC:
        name += f"@{PUBLIC}"
    return replace(method, name=name, changes=changes, grid=grid, base=base.removesuffix(f"@{PUBLIC}"))


def _set(content: dict[str, Any], path: str, value: Any, *, create: bool = False) -> None:
    section, dot, name = path.partition(".")
    if not dot:
        content[section] = value
        return
    if create:
        content.setdefault(section, {})
    if not isinstance(content.get(section), dict):
        raise InputError(f"the privacy plan has no section {section!r} (of {path!r})")
    content[section][name] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
