"""Layers that stay each site's own between rounds: normalisation layers (FedBN, Li et al. 2021), or all of them (local).

Their values at a site come from that site's private steps, so they are covered like everything else that it sends. The
server still averages what it gets, for sites that never trained; a site goes on with its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from nnunet_adpfl import tensor_files
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.privacy.plan import Rounds
from nnunet_adpfl.trainers import checkpoint as checkpoints


def names_of(settings: Rounds, trained: Iterable[str]) -> list[str]:
    """Trained parameters that stay local: those of ``fedbn``'s patterns, or all for ``local``, where nothing is shared.

    Raises InputError when the patterns match nothing, or everything.
    """
    names = list(trained)
    if settings.strategy != "fedbn":
        return names if settings.strategy == "local" else []
    local = [name for name in names if any(fnmatchcase(name, glob) for glob in settings.local_patterns)]
    if not local or len(local) == len(names):
        what = "no trained parameter" if not local else "every trained parameter, so nothing would be shared"
        raise InputError(f"privacy plan: rounds.local_patterns {list(settings.local_patterns)} match {what}")
    return local


def file_of(folder: Path, round_index: int) -> Path:
    return folder / f"local_layers_after_round_{round_index}.pth"


def keep(folder: Path, round_index: int, values: Mapping[str, torch.Tensor]) -> None:
    """Store a site's own values after a round; those of the round before stay, for a round that is taken again."""
    content = {name: checkpoints.plain_copy(value) for name, value in values.items()}
    checkpoints.save(content, file_of(folder, round_index), private=True)
    file_of(folder, round_index - 2).unlink(missing_ok=True)


def put_in_(folder: Path, round_index: int, trained: Mapping[str, torch.Tensor]) -> None:
    """A site's own values from before a round into its network.

    Args:
        trained: local parameters of the network; changed in place.

    Raises InputError when the file is missing or does not fit.
    """
    path = file_of(folder, round_index - 1)
    if not path.is_file():
        raise InputError(f"{path} is missing: the plan keeps these layers at the site; restore it")
    values = tensor_files.load(path)
    if not isinstance(values, dict) or set(values) != set(trained):
        raise InputError(f"{path}: its tensors are not the local layers of the plan; restore it")
    checkpoints.check_tensors(values, trained, str(path))
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(values[name])
