"""The run manifest ``run.json``: what kind of run a folder holds, with versions, seed and settings, and its lock."""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.cohort import names_a_file
from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.privacy import ledger
from nnunet_adpfl.privacy import plan as privacy_plan
from nnunet_adpfl.privacy.gradients.choice import EngineChoice

FILE_NAME = "run.json"
LOCK_FILE_NAME = ".lock"
_NAMES = ("dataset", "trainer", "plans", "configuration", "fold")
_PACKAGES = ("nnunet-adpfl", "nnunetv2", "torch", "dp-accounting", "opacus", "numpy")


@dataclass(frozen=True)
class RunManifest:
    """Identity of a run. ``run`` is in every ledger line; it differs between two runs in the same folder name."""

    kind: str  # stock (central, through nnUNetv2_train) or federated
    run: str
    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: str
    plan_hash: str
    seed: int
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    gradient_engine: dict[str, object] = field(default_factory=dict)  # an `EngineChoice`

    def save(self, folder: Path) -> None:
        atomic_files.write_json(folder / FILE_NAME, asdict(self))


def new(kind: str, *, dataset: str, trainer: str, plans: str, configuration: str, fold: str | int,
        plan: privacy_plan.PrivacyPlan, device: str, engine_choice: EngineChoice,
        settings: dict[str, object] | None = None) -> RunManifest:  # fmt: skip
    name = f"{trainer}__{plans}__{configuration}/fold_{fold}#{secrets.token_hex(4)}"
    return RunManifest(
        kind, name, dataset, trainer, plans, configuration, str(fold), plan.digest(), plan.seed, device,
        versions(), settings or {}, asdict(engine_choice),
    )  # fmt: skip


def load(folder: Path) -> RunManifest:
    """InputError when the folder is not a run of this plugin."""
    path = folder / FILE_NAME
    try:
        manifest = RunManifest(**json_files.load(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not a run folder of nnunet_adpfl: it holds no {FILE_NAME}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it") from None
    for name in _NAMES:  # a release is written to folders of these names
        value = getattr(manifest, name)
        if not isinstance(value, str) or not names_a_file(value):
            raise InputError(f"{path} is damaged: {name} is {value!r:.80}, which names nothing; restore it")
    texts, dicts = ("kind", "run", "plan_hash", "device"), ("versions", "settings", "gradient_engine")
    others: dict[str, type] = {"seed": int, **dict.fromkeys(texts, str), **dict.fromkeys(dicts, dict)}
    wrong = next((name for name, kind in others.items() if not isinstance(getattr(manifest, name), kind)), None)
    if wrong:
        raise InputError(f"{path} is damaged: {wrong} is not of its type; restore it")
    return manifest


def engine_choice(folder: Path) -> EngineChoice | None:
    """What was decided when the run in this folder began; None where there is none, or an older one."""
    if not (folder / FILE_NAME).is_file():
        return None
    found = load(folder).gradient_engine
    if not found:
        return None
    try:
        choice = EngineChoice(**found)  # type: ignore[arg-type]
        fits = choice.engine in ("loop", "fused") and type(choice.patches_at_once) is int and choice.patches_at_once >= 0
        fits = fits and isinstance(choice.reason, str) and isinstance(choice.seconds, dict)
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"{folder / FILE_NAME} is damaged: gradient_engine is not what this plugin writes; restore it")
    return choice


def check_same_kind(folder: Path, kind: str, plan_hash: str) -> RunManifest:
    """The manifest of the run to continue; refused when it is of another kind or privacy plan."""
    manifest = load(folder)
    if manifest.kind != kind:
        raise PrivacyRefusedError(f"{folder} holds a {manifest.kind} run, not a {kind} one: use another plans name")
    if manifest.plan_hash != plan_hash:
        raise PrivacyRefusedError(
            f"{folder}: the privacy plan was changed after this run began; restore it, or start a run with another plans name"
        )
    return manifest


def check_unused(folder: Path) -> None:
    """Refuse to start where a run lies already: its ledger must not be forgotten, its results must not be lost."""
    traces = [ledger.FILE_NAME, "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"]
    found = next((name for name in traces if (folder / name).exists()), None)
    if found is None:
        found = next((str(path.relative_to(folder)) for path in folder.glob(f"sites/*/{ledger.FILE_NAME}")), None)
    if found:
        raise PrivacyRefusedError(
            f"{folder} holds a run already ({found}): continue it (`adpfl train --continue`, `nnUNetv2_train --c`), or "
            "move the folder away to start a new one, which spends again"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process per run folder: two would take the same step twice."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"{folder} is in use by another process: wait until it ends") from None
    try:
        yield
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
