"""The ``adpfl`` command. Each group of commands lives in its own file; nothing heavy is imported until one runs."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import typer

from nnunet_adpfl.cli import cohort, convert, demo, evaluate, plan, privacy, run, train
from nnunet_adpfl.errors import AdpflError

# Before torch is loaded: waiting threads sleep instead of spinning. Where training shares the cores with its loader or
# with other programs, a step takes a fraction of the time so (measured: docs/performance.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GROUPS: tuple[ModuleType, ...] = (
    convert,
    cohort,
    plan,
    train,
    run,
    evaluate,
    privacy,
    demo,
)

app = typer.Typer(
    name="adpfl",
    help="Differentially private federated training for nnU-Net.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


for _group in GROUPS:
    _group.register(app)


def main() -> None:
    """Entry point: an error meant for the user is one line on standard error and a non-zero exit code."""
    try:
        app()
    except AdpflError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept (most commands go on with --continue)", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(2)
