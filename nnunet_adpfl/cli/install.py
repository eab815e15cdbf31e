"""``adpfl install``: a release of somebody else into nnUNet_results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_adpfl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command()(install)


def install(
    archive: Annotated[Path, typer.Argument(metavar="RELEASE.zip", help="Zip file that `adpfl export` wrote.")],
    as_json: opt.Json = False,
) -> None:
    """Check a release and install it, so that nnUNetv2_predict finds it: nothing in it is executed.

    The privacy statement is recomputed from the ledgers of the release; a model that is there is never overwritten.

    Example: adpfl install release/Dataset004_Hippocampus.zip
    """
    from nnunet_adpfl.trainers.installation import install as install_release

    done = install_release(archive)
    if as_json:
        opt.print_json(done)
        return
    promise = "no privacy guarantee"
    if done["epsilon"] is not None:
        promise = f"epsilon {done['epsilon']:.4f} at delta {done['delta']:g} for each {done['unit']}"
    typer.echo(f"{done['folder']} ({promise}, guarantee {done['guarantee']}; recomputed from its ledgers)")
