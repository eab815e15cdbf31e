"""A planned tiny data set in nnU-Net's folders that a test may train on and spoil: the data is shared, the rest copied."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_dataset
import torch
from injected_randomness import InjectedRandomness

from nnunet_adpfl.experiments import pipeline
from nnunet_adpfl.federation.client import Site, run_site_round
from nnunet_adpfl.federation.engines import in_process
from nnunet_adpfl.federation.messages import RoundTask, SiteUpdate
from nnunet_adpfl.federation.privacy_planning import PrivacyChoices
from nnunet_adpfl.federation.training import train
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.privacy import accounting, hash_chain
from nnunet_adpfl.privacy import plan as privacy_plans

PLANS = "nnUNetPlans_f2"
CONFIGURATION = "3d_fullres"
SITES = ("site-a", "site-b")
ROUNDS, LOCAL_STEPS = 3, 2
SEED = 1
PRIVACY = PrivacyChoices(
    epsilon=8.0, delta=1e-3, steps=ROUNDS * LOCAL_STEPS, reserve_steps=2 * LOCAL_STEPS, sampling_rate=0.4,
    patches_per_unit=2,
    sections={
        "rounds": {"local_steps": LOCAL_STEPS},
        "optimizer": {"learning_rate": 0.1, "ema_decay": 0.0, "momentum": 0.0},
        "clipping": {"method": "percentile", "clip_norm": 1.0},
    },
)  # fmt: skip


def remember_epsilons() -> None:
    """Compute the epsilon of equal events once a session: it is most of the time of a tiny run."""
    for name in ("epsilon", "epsilon_prv"):
        setattr(accounting, name, _remembering(getattr(accounting, name)))


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[object, Any] = {}

    def remembered(events: Iterable[Mapping[str, Any]], delta: float) -> Any:
        events = list(events)
        fields = ("event", "sampling_rate", "noise_multiplier", "steps")
        key = (tuple(str(event.get(field)) for event in events for field in fields), delta)
        if key not in known:
            known[key] = function(events, delta)
        return known[key]

    return remembered


def set_folders(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    for kind in ("raw", "preprocessed", "results"):
        (base / kind).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{kind}", str(base / kind))


def plan_once(base: Path) -> None:
    """Plan 10 patients at two sites for 3d_fullres and 2d, with `adpfl plan`'s own function."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_folders(monkeypatch, base)
        monkeypatch.setattr(stock, "FOREGROUND_SAMPLES", 14_000)
        tiny_dataset.write_raw(base / "raw", patients=10, side=16)
        pipeline.plan(tiny_dataset.NAME, [CONFIGURATION, "2d"], pipeline.PlanningChoices(base_features=2), PRIVACY)


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's folders below ``base``; the environment variables point at them."""

    base: Path

    @property
    def preprocessed(self) -> Path:
        return self.base / "preprocessed" / tiny_dataset.NAME

    @property
    def results(self) -> Path:
        return self.base / "results" / tiny_dataset.NAME

    @property
    def plan_file(self) -> Path:
        return self.preprocessed / privacy_plans.file_name(PLANS, CONFIGURATION)

    def run(self, trainer: str = "nnUNetTrainerADP", configuration: str = CONFIGURATION, fold: str | int = 0) -> Path:
        return self.results / f"{trainer}__{PLANS}__{configuration}" / f"fold_{fold}"

    def train(self, configuration: str = CONFIGURATION, fold: str | int = 0, **choices: Any) -> Path:
        """`adpfl train` in this process, with randomness that repeats itself."""
        choices = {"plans": PLANS, "workers": 0, "randomness": InjectedRandomness(SEED), **choices}
        return train(tiny_dataset.NAME, configuration, fold, **choices)

    def train_until(self, round_index: int, **choices: Any) -> Path:
        """A run that is killed before the first step of this round; returns its folder."""

        def killed(task: RoundTask, site: Site) -> SiteUpdate:
            if task.round == round_index:
                raise KeyboardInterrupt
            return run_site_round(task, site)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(in_process, "run_site_round", killed)
            with pytest.raises(KeyboardInterrupt):
                self.train(**choices)
        return self.run()

    def edit_plan(self, **changes: Any) -> None:
        """Edit the privacy plan by hand; a mapping changes fields of a section."""
        content = read(self.plan_file)
        for name, value in changes.items():
            content[name] = {**content[name], **value} if isinstance(value, dict) else value
        self.plan_file.write_text(json.dumps(content))


def copy_of(planned: Path, base: Path) -> Workspace:
    """A workspace of its own for one test: preprocessed cases are links into the shared folder, files are copies."""
    workspace = Workspace(base)
    workspace.preprocessed.mkdir(parents=True)
    for entry in (planned / "preprocessed" / tiny_dataset.NAME).iterdir():
        if entry.name in ("sites", ".adpfl"):  # what is spent or noted in one test is not in another
            shutil.copytree(entry, workspace.preprocessed / entry.name)
        elif entry.is_dir():
            (workspace.preprocessed / entry.name).symlink_to(entry)
        else:
            shutil.copy(entry, workspace.preprocessed)
    (base / "raw").symlink_to(planned / "raw")
    return workspace


@contextmanager
def own_workspace(planned: Path, base: Path) -> Iterator[Workspace]:
    """A workspace outside of a test, for fixtures that several tests share; nnU-Net's variables point at it meanwhile."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        workspace = copy_of(planned, base)
        set_folders(monkeypatch, base)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        yield workspace


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledgers(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Site -> intact lines of its ledger."""
    found = sorted(run.glob("sites/*/privacy_ledger.jsonl"))
    return {path.parent.name: list(hash_chain.read(path).lines) for path in found}


def steps_paid(lines: list[dict[str, Any]]) -> int:
    return sum(line["steps"] for line in lines if line["event"] in ("poisson_gaussian", "recovered"))


def weights(run: Path, name: str = "checkpoint_final.pth") -> dict[str, torch.Tensor]:
    return dict(torch.load(run / name, weights_only=True)["network_weights"])


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal names and equal bits."""
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
