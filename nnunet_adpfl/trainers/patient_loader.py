"""Feeds the gradient engine: the patches of the units that were drawn, in the order of the draw, by worker processes.

The main process decides who is drawn; workers only crop and augment. A patch depends on the unit's cases and on its
key, never on which worker made it or on who else was drawn (design section 5, rule 3).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.nnunet_compat.patches import PatchSettings, PatchSource
from nnunet_adpfl.privacy.gradients.interface import UnitPatches
from nnunet_adpfl.trainers.parcel import Parcel
from nnunet_adpfl.trainers.prepared_fold import PreparedFold

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

DEFAULT_WORKERS = 2
WORKERS_VARIABLE = "nnUNet_n_proc_DA"
_LEAST_PREFETCH = 2  # units of each worker


class UnreadableCaseError(PrivacyRefusedError):
    """A case of a drawn unit cannot be read. The text names it: for the site's own eyes, it shows who was drawn."""


@dataclass(frozen=True)
class UnitRequest:
    """One drawn unit of one step: its cases and the key of its patches."""

    cases: tuple[str, ...]
    key: bytes


def patch_source(trainer: nnUNetTrainer, prepared: PreparedFold) -> PatchSource:
    """Patches of the cases of a fold, as its privacy plan wants them. InputError where a case is not preprocessed."""
    plan = prepared.plan
    settings = PatchSettings(plan.patches_per_unit, plan.oversample_foreground, plan.mirroring, plan.augmentation)
    source = PatchSource(trainer, prepared.data_folder, settings)
    if missing := sorted(set(prepared.fold.train) - source.cases):
        raise InputError(f"{prepared.data_folder}: case {missing[0]} is not preprocessed; run `adpfl plan` again")
    return source


class PatientLoader:
    """One pool of workers for a whole run, whichever site's units are asked for.

    Args:
        source: cuts the patches.
        device: where the patches go.
        workers: number of processes; 0 loads in this process. Default: nnU-Net's nnUNet_n_proc_DA, else 2.
    """

    def __init__(self, source: PatchSource, device: torch.device, workers: int | None = None) -> None:
        self._device = device
        self._queue = _Queue()
        count = default_workers() if workers is None else workers
        options: dict[str, Any] = {}
        if count > 0:
            context = multiprocessing.get_context("fork" if device.type == "cpu" else "forkserver")
            options = {"multiprocessing_context": context, "persistent_workers": True}
            # A batch of the engine lies ready when it asks for one: it takes one at once and none while it works.
            options["prefetch_factor"] = max(_LEAST_PREFETCH, -(-source.units_at_once // count))
        self._loader: DataLoader[Parcel | str] = DataLoader(
            _UnitPatchSet(source),
            batch_size=None,
            collate_fn=_as_it_is,
            sampler=self._queue,
            num_workers=count,
            worker_init_fn=_one_thread,
            pin_memory=device.type == "cuda",
            **options,
        )

    def stream(self, requests: Sequence[UnitRequest]) -> Iterator[UnitPatches]:
        """Patches of every request, in order. The caller reads them all, or the rest is dropped.

        Raises UnreadableCaseError when a case cannot be read: the run stops. Repeating the step until nobody unreadable is
        drawn would no longer be the sampling that is accounted for.
        """
        self._queue.requests = list(requests)
        if not requests:
            return
        for parcel in self._loader:
            if isinstance(parcel, str):
                raise UnreadableCaseError(parcel)
            yield parcel.unpacked(self._device)

    def close(self) -> None:
        """Stop the workers."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self._loader._iterator = None


def default_workers() -> int:
    """nnU-Net's variable for its augmentation processes, or two."""
    text = os.environ.get(WORKERS_VARIABLE)
    if text is None:
        return min(DEFAULT_WORKERS, os.cpu_count() or 1)
    if not text.isdigit():
        raise InputError(f"the environment variable {WORKERS_VARIABLE} must be a whole number, not {text!r}")
    return int(text)


class _UnitPatchSet(Dataset[Any]):
    def __init__(self, source: PatchSource) -> None:
        self._source = source

    def __getitem__(self, request: UnitRequest) -> Parcel | str:
        try:
            return Parcel.packed(*self._source.patches(request.cases, request.key))
        except Exception as error:
            # A worker's exception would lose its sentence in a traceback of processes; strings travel intact.
            return _reason(request, error)


class _Queue(Sampler[UnitRequest]):
    def __init__(self) -> None:
        self.requests: Iterable[UnitRequest] = ()

    def __iter__(self) -> Iterator[UnitRequest]:
        return iter(self.requests)


def _reason(request: UnitRequest, error: Exception) -> str:
    first_line = " ".join(str(error).strip().splitlines()[:1])
    return (
        f"a preprocessed case among {', '.join(request.cases)} cannot be read ({type(error).__name__}: {first_line}); "
        "preprocess it again with `adpfl plan`"
    )


def _as_it_is(parcel: Any) -> Any:
    return parcel


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
