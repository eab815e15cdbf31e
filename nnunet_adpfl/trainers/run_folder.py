"""The folder of one run: its manifest, frozen privacy plan, checkpoints and round records, in nnU-Net's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import ledger
from nnunet_adpfl.privacy import plan as privacy_plans
from nnunet_adpfl.privacy.gradients.choice import EngineChoice
from nnunet_adpfl.trainers import checkpoint as checkpoints
from nnunet_adpfl.trainers import run_manifest
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.run_manifest import RunManifest
from nnunet_adpfl.trainers.run_state import RunState

ROUNDS_FILE_NAME = "rounds.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes what a run leaves behind.

    Attributes:
        path: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIG/fold_K``.
        prepared: what the run trains on.
        trainer_name: the class that stock nnU-Net will look for when it predicts.
    """

    path: Path
    prepared: PreparedFold
    trainer_name: str

    def start(
        self, kind: str, device: str, engine_choice: EngineChoice, initial_digest: str, settings: dict[str, object] | None = None
    ) -> RunState:
        """Describe a new run here and return the state that it begins with.

        Args:
            kind: stock, federated or central.
            initial_digest: sha256 of the weights that training starts from.
            settings: of the manifest: what the privacy plan does not say.
        """
        prepared = self.prepared
        manifest = run_manifest.new(
            kind,
            dataset=prepared.preprocessed.name,
            trainer=self.trainer_name,
            plans=str(prepared.plans["plans_name"]),
            configuration=prepared.configuration,
            fold=prepared.fold.name,
            plan=prepared.plan,
            device=device,
            engine_choice=engine_choice,
            settings=settings,
        )
        self._describe(manifest)
        return RunState(manifest.run, prepared.plan.digest(), initial_digest, prepared.plan.clipping.clip_norm)

    def _describe(self, manifest: RunManifest) -> None:
        """Write all that describes the run. Refused where a run lies already."""
        run_manifest.check_unused(self.path)
        parent = self.path.parent
        atomic_files.write_json(parent / "plans.json", self.prepared.plans)
        atomic_files.write_json(parent / "dataset.json", self.prepared.dataset_json)
        fingerprint = self.prepared.preprocessed / "dataset_fingerprint.json"
        if fingerprint.is_file() and self.prepared.plan.fingerprint == "pooled":  # else it may be of another plan, and exact
            atomic_files.write_bytes(parent / fingerprint.name, fingerprint.read_bytes())
        self.prepared.plan.save(self.path / privacy_plans.FROZEN_FILE_NAME)
        manifest.save(self.path)

    def resume(self, kind: str) -> tuple[checkpoints.Checkpoint, RunState]:
        """Newest checkpoint and state of the run in this folder.

        Raises PrivacyRefusedError for a run of another kind or plan, and for a ledger without checkpoint.
        """
        plan_hash = self.prepared.plan.digest()
        found = checkpoints.newest(self.path)
        if found is None and self.has_ledger():
            raise PrivacyRefusedError(
                f"{self.path} has a privacy ledger but no checkpoint: the weights that were paid for are lost; restore "
                "the checkpoint, or move the folder away and start a new run, which spends again"
            )
        manifest = run_manifest.check_same_kind(self.path, kind, plan_hash)
        self._check_same_fold(manifest)
        frozen = privacy_plans.load(self.path / privacy_plans.FROZEN_FILE_NAME)
        if frozen.digest() != plan_hash:
            raise PrivacyRefusedError(f"{self.path / privacy_plans.FROZEN_FILE_NAME} was edited; restore it")
        if found is None:
            raise InputError(f"{self.path} holds no checkpoint to continue from")
        content = checkpoints.load(found)
        state = RunState.from_dict(checkpoints.private_state(content, found, plan_hash), str(found))
        if state.run != manifest.run:
            raise PrivacyRefusedError(f"{found} belongs to another run than {run_manifest.FILE_NAME}; restore it")
        return content, state

    def _check_same_fold(self, manifest: RunManifest) -> None:
        prepared = self.prepared
        asked = (prepared.preprocessed.name, prepared.plans["plans_name"], prepared.configuration, prepared.fold.name)
        found = (manifest.dataset, manifest.plans, manifest.configuration, manifest.fold)
        if found != tuple(map(str, asked)):
            raise PrivacyRefusedError(f"{self.path} holds a run of {' '.join(found)}, not of {' '.join(map(str, asked))}: use another name")

    def is_bare(self) -> bool:
        """Whether nothing was trained here yet: no checkpoint and no ledger."""
        return checkpoints.newest(self.path) is None and not self.has_ledger()

    def has_ledger(self) -> bool:
        return (self.path / ledger.FILE_NAME).exists() or any(self.path.glob(f"sites/*/{ledger.FILE_NAME}"))

    def save_checkpoint(
        self,
        network: nn.Module,
        state: RunState,
        *,
        mirroring_axes: tuple[int, ...] | None,
        average: Mapping[str, torch.Tensor] | None = None,
        optimizer_state: Mapping[str, Any] | None = None,
        site: str | None = None,
    ) -> Path:
        """Write checkpoint_latest.pth, or checkpoint_final.pth when the state is finished.

        Args:
            average: averaged values of trained parameters; they become the checkpoint's network weights.
            site: whose own model this is, where layers stay local: it goes to ``sites/SITE``.
        """
        prepared = self.prepared
        content = checkpoints.make(
            network,
            init_args={
                "plans": prepared.plans,
                "configuration": prepared.configuration,
                "fold": prepared.fold.name if prepared.fold.name == "all" else int(prepared.fold.name),
                "dataset_json": {key: prepared.dataset_json[key] for key in checkpoints.DATASET_KEYS if key in prepared.dataset_json},
            },
            trainer_name=self.trainer_name,
            mirroring_axes=mirroring_axes,
            optimizer_state=optimizer_state or {},
            epoch=state.round,
            adpfl=state.as_dict(),
        )
        if average:
            names = checkpoints.first_names(network)
            content["network_weights"].update(
                {name: checkpoints.plain_copy(average[first]) for name, first in names.items() if first in average}
            )
        folder = self.path if site is None else self.path / "sites" / site
        path = folder / (checkpoints.FINAL if state.finished else checkpoints.LATEST)
        checkpoints.save(content, path, private=not state.finished)
        if state.finished and site is None:
            (self.path / checkpoints.LATEST).unlink(missing_ok=True)
        return path

    def append_round(self, record: Mapping[str, Any]) -> None:
        atomic_files.append_line(self.path / ROUNDS_FILE_NAME, json.dumps(record, allow_nan=False))

    def rewind_rounds(self, finished_rounds: int) -> None:
        """Drop records of rounds that the checkpoint does not contain; they will be taken again."""
        path = self.path / ROUNDS_FILE_NAME
        if not path.is_file():
            return
        text = path.read_bytes().decode("utf-8", errors="replace")  # a torn line may end in half a character
        kept = [line for line in text.split("\n") if _round_of(line) < finished_rounds]
        atomic_files.write_text(path, "".join(line + "\n" for line in kept))


def _round_of(line: str) -> float:
    try:
        return int(json_files.parse(line)["round"])
    except (ValueError, KeyError, TypeError):  # also of an empty line
        return float("inf")  # torn by a crash: its round is taken again
