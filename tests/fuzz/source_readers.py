"""Readers of data sets as they were downloaded, and of the tables that name sites and patients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny_dataset
from damaged_binary import nifti, picture
from damaged_text import json_file, table
from PIL import Image
from reader import Reader
from tiny_sources import HAM_SIZE, ham_image, ham_mask, write_ham, write_msd

from nnunet_adpfl.dataset_conversion import ham10000, msd, nifti_case, photo_case, sites_table
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import examination
from nnunet_adpfl.federation.raw_cases import RawCases
from nnunet_adpfl.nnunet_compat import planning as stock

CASE = "ISIC_0000001"


def as_the_converter_reports(read: Callable[[], Any]) -> Callable[[], Any]:
    """A broken case ends the conversion with one line (`raw_dataset.write`)."""

    def reported() -> Any:
        try:
            return read()
        except BrokenCaseError as error:
            raise InputError(f"1 of 1 cases are broken, nothing was written: case ({error})") from None

    return reported


def source_readers(base: Path, raw: Path) -> list[Reader]:
    """Args: base: a folder for the sources; raw: a raw data set in nnU-Net's form."""
    return [*_tables(base), *_decathlon(base / "msd"), *_photos(base / "photos"), *_examined(base / "examined", raw)]


def _tables(base: Path) -> list[Reader]:
    sites = base / "sites.csv"
    sites.write_text("case,site,patient\n" + "".join(f"c{k},site {k % 2},p{k}\n" for k in range(4)))
    ham = write_ham(base / "ham")
    metadata = ham / "HAM10000_metadata"

    def read_sites() -> Any:
        return sites_table.cohort_from_rows(sites_table.read_sites_table(sites), [f"c{k}" for k in range(4)], "patient", sites)

    def read_metadata() -> Any:
        path, rows = ham10000._read_metadata([metadata], ham)
        return ham10000._cohort(rows, path, SitesChoice())

    return [Reader("sites table", sites, read_sites, table), Reader("HAM10000 metadata", metadata, read_metadata, table)]


def _decathlon(folder: Path) -> list[Reader]:
    write_msd(folder)
    image, label = folder / "imagesTr" / "brain_01.nii.gz", folder / "labelsTr" / "brain_01.nii.gz"

    def description() -> None:
        content = msd._read_description(folder)
        msd._labels(content, folder)
        msd._channels(content, folder)
        msd._note_unused(folder, msd._cases(content, folder))

    def volumes() -> None:
        read, mask = nifti_case.read(image, "image"), nifti_case.read(label, "label")
        nifti_case.check_same_grid(read, mask)
        nifti_case.check_labels(mask, (0, 1, 2))
        nifti_case.write_channels(read, "brain", 1, folder)
        (folder / "brain_0000.nii.gz").unlink(missing_ok=True)

    return [
        Reader("MSD dataset.json", folder / "dataset.json", description, json_file),
        Reader("NIfTI image", image, as_the_converter_reports(volumes), nifti),
        Reader("NIfTI label", label, as_the_converter_reports(volumes), nifti),
    ]


def _photos(folder: Path) -> list[Reader]:
    write_ham(folder)
    image, mask = ham_image(folder, CASE), ham_mask(folder, CASE)

    def read() -> None:
        photo_case.check_same_size(photo_case.read_photo(image), photo_case.read_mask(mask))

    return [
        Reader("JPEG photograph", image, as_the_converter_reports(read), picture),
        Reader("PNG mask", mask, as_the_converter_reports(read), picture),
    ]


def _examined(folder: Path, raw: Path) -> list[Reader]:
    """nnU-Net's own readers, as `adpfl plan` calls them for every case."""
    folder.mkdir()
    tiny_dataset.write_raw(folder, patients=1, side=8)
    data_set = folder / tiny_dataset.NAME
    volume = {
        "images": [str(data_set / "imagesTr" / "case_00_0_0000.nii.gz")],
        "label": str(data_set / "labelsTr" / "case_00_0.nii.gz"),
    }
    photo = {"images": [str(folder / "photo_0000.png")], "label": str(folder / "photo.png")}
    Image.fromarray(np.arange(HAM_SIZE[0] * HAM_SIZE[1], dtype=np.uint8).reshape(HAM_SIZE)).save(photo["images"][0])
    Image.fromarray((np.arange(HAM_SIZE[0] * HAM_SIZE[1]) % 3).astype(np.uint8).reshape(HAM_SIZE)).save(photo["label"])
    labels = {"background": 0, "ball": 1, "core": 2}
    found = []
    for kind, files, ending, damage in (("NIfTI", volume, ".nii.gz", nifti), ("PNG", photo, ".png", picture)):
        dataset_json = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ending, "numTraining": 1}
        reader = stock.reader_name(dataset_json, files["images"][0])

        def examine(files: Any = files, dataset_json: Any = dataset_json, reader: str = reader) -> Any:
            return examination.site_fingerprint("a", ["case"], RawCases(dataset_json, {"case": files}), reader, 1_000, 1)

        found += [
            Reader(f"{kind} image, examined", Path(files["images"][0]), examine, damage),
            Reader(f"{kind} label, examined", Path(files["label"]), examine, damage),
        ]
    return found
