"""`adpfl convert`: which module reads which data set, and the way from a downloaded folder to nnUNet_raw."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from nnunet_adpfl.dataset_conversion import raw_dataset
from nnunet_adpfl.dataset_conversion.raw_dataset import WrittenDataset
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
from nnunet_adpfl.dataset_conversion.source_set import Options
from nnunet_adpfl.errors import InputError

# Set -> module with a function `find`, imported when its turn comes.
CONVERTERS: Mapping[str, str] = {
    "ham10000": "ham10000",
    "isic2018": "isic2018",
    "kits19": "kits",
    "kits23": "kits",
    "brats2020": "brats",
    "brats2021": "brats",
    "brats2023": "brats",
    "brats2024": "brats",
    "fets2022": "brats",
    "msd": "msd",
}


def convert(
    data_set: str,
    source: Path,
    number: int,
    *,
    sites: SitesChoice | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    skip_broken: bool = False,
    options: Options | None = None,
) -> WrittenDataset:
    """Find what is in ``source``, check all of it and write ``nnUNet_raw/DatasetNNN_NAME``.

    Args:
        data_set: key of ``CONVERTERS``.
        sites: table of sites, or all that is to be said about them; None: the set's own sites where it has any.
        name: data set name; default: the set's own.
        skip_broken: leave broken cases out instead of refusing the set.

    Raises InputError for a folder, table or case that cannot be used; nothing is written then.
    """
    if data_set not in CONVERTERS:
        raise InputError(f"convert: data set {data_set!r} is unknown; use one of {', '.join(CONVERTERS)}")
    choice = sites if isinstance(sites, SitesChoice) else SitesChoice(sites)
    raw_dataset.check_number_and_name(number, name)  # before any file is read
    module = import_module(f"nnunet_adpfl.dataset_conversion.{CONVERTERS[data_set]}")
    found = module.find(data_set, source, choice, options or Options())
    return raw_dataset.write(found, number, name or found.name, overwrite=overwrite, skip_broken=skip_broken)
