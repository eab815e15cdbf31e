"""Rules 3, 13 and 16: networks that draw at random, plans and weights that are called public and are not."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from torch import nn
from workspace import PLANS, Workspace, read

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation.planning import public_plans
from nnunet_adpfl.federation.raw_cases import load as load_raw
from nnunet_adpfl.nnunet_compat.training import _drops_at_random
from nnunet_adpfl.privacy.plan import Clipping


@pytest.mark.parametrize("module", [nn.Dropout(0.1), nn.Dropout2d(0.5), nn.Dropout3d(0.2), nn.AlphaDropout(0.3)], ids=str)
def test_rule_03_dropout_is_seen(module: nn.Module) -> None:
    assert _drops_at_random(module)
    assert not _drops_at_random(type(module)(0.0))
    assert not _drops_at_random(nn.Conv3d(1, 1, 1))


def test_rule_03_a_plan_with_dropout_is_refused_before_the_first_step(workspace: Workspace) -> None:
    path = workspace.preprocessed / f"{PLANS}.json"
    plans = read(path)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments.update(dropout_op="torch.nn.modules.dropout.Dropout3d", dropout_op_kwargs={"p": 0.2, "inplace": True})
    path.write_text(json.dumps(plans))
    from nnunet_adpfl.trainers.prepared_fold import plans_digest

    workspace.edit_plan(plans_digest=plans_digest(plans))
    with pytest.raises(InputError, match="dropout"):
        workspace.train()
    assert not list(workspace.results.rglob("privacy_ledger.jsonl"))


def test_rule_06_factors_fit_a_float32() -> None:
    for field in ("stabiliser", "clip_norm_min"):
        with pytest.raises(ValidationError):
            Clipping(**{field: 1e-40})


def test_rule_13_a_plan_of_the_same_data_set_is_not_public(workspace: Workspace) -> None:
    raw = load_raw(next((workspace.base / "raw").iterdir()))
    with pytest.raises(InputError, match="not public"):
        public_plans(workspace.preprocessed / f"{PLANS}.json", workspace.preprocessed.name, raw)
