"""The ``adpfl`` command. Each group of commands lives in its own file; nothing heavy is imported until one runs."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import NoReturn

import typer

from nnunet_adpfl.cli import (
    audit,
    budget,
    cohort,
    compare,
    convert,
    demo,
    evaluate,
    install,
    plan,
    pretrain,
    privacy,
    run,
    synth,
    train,
)
from nnunet_adpfl.errors import AdpflError

# Before torch is loaded: waiting threads sleep instead of spinning. Where training shares the cores with its loader or
# with other programs, a step takes a fraction of the time so (measured: docs/performance.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GROUPS: tuple[ModuleType, ...] = (
    budget,
    convert,
    synth,
    cohort,
    pretrain,
    plan,
    train,
    run,
    compare,
    evaluate,
    privacy,
    install,
    audit,
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
        sys.exit(app(standalone_mode=False) or 0)
    except AdpflError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; what was finished is kept (adpfl train and run go on with --continue, others: call again)", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except Exception as error:
        _fail_for_usage(error)


def _fail_for_usage(error: Exception) -> NoReturn:
    """Errors of the command line's parser, which typer keeps private (click's own, or a copy of them)."""
    if not hasattr(error, "format_message"):
        raise error
    message = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message)
        sys.exit(2)
    _fail(f"{' '.join(message.split())} (see --help)")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
