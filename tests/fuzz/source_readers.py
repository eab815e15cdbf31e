"""Readers of data sets as they were downloaded, and of the tables that name sites and patients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny_dataset
from damaged_binary import nifti, picture, workbook
from damaged_text import json_file, table
from PIL import Image
from reader import Reader
from tiny_challenges import write_brats, write_kits, write_rows, write_workbook
from tiny_sources import HAM_SIZE, ham_image, ham_mask, write_ham, write_msd, write_nifti

from nnunet_adpfl.dataset_conversion import (
    brats,
    brats_sites,
    ham10000,
    kits,
    labels_back,
    msd,
    nifti_case,
    photo_case,
    sites_table,
)
from nnunet_adpfl.dataset_conversion.site_assignment import SitesChoice, assigned
from nnunet_adpfl.dataset_conversion.source_set import BrokenCaseError, Options, SourceSet
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
    return [
        *_tables(base), *_published_tables(base / "published"), *_decathlon(base / "msd"), *_photos(base / "photos"),
        *_challenges(base / "challenges"), *_examined(base / "examined", raw),
    ]  # fmt: skip


def _tables(base: Path) -> list[Reader]:
    sites = base / "sites.csv"
    sites.write_text("case,site,patient\n" + "".join(f"c{k},site {k % 2},p{k}\n" for k in range(4)))
    ham = write_ham(base / "ham")
    metadata = ham / "HAM10000_metadata"

    def read_sites() -> Any:
        rows, cases = sites_table.read_sites_table(sites), {f"c{k}": f"c{k}" for k in range(4)}
        sites_table.check_known(rows, cases, sites)
        return assigned(cases, "case", rows, SitesChoice(), sites)

    def read_metadata() -> Any:
        path, rows = ham10000._read_metadata([metadata], ham)
        return ham10000._cohort(rows, path, SitesChoice())

    return [Reader("sites table", sites, read_sites, table), Reader("HAM10000 metadata", metadata, read_metadata, table)]


def _published_tables(base: Path) -> list[Reader]:
    """As `adpfl convert` reads the sites of BraTS, FeTS and KiTS."""
    scans = [f"BraTS-GLI-{number:05d}-100" for number in range(4)]
    cases = {
        "brats2024": scans, "fets2022": [f"FeTS2022_{number:05d}" for number in range(4)],
        "brats2020": [f"BraTS20_Training_{number:03d}" for number in range(4)],
    }  # fmt: skip
    header = ["BraTS Subject ID", "Site", "Site Subject ID", "Train/Test/Validation "]
    book = write_workbook(base / "metadata.xlsx", header, [[scan, "UCSF", index, "Train"] for index, scan in enumerate(scans)])
    parted = [f"0{index % 2},{case}" for index, case in enumerate(cases["fets2022"])]
    partition = write_rows(base / "p.csv", "Partition_ID,Subject_ID", parted)
    mapping = write_rows(
        base / "name_mapping.csv",
        "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID",
        [f"HGG,BraTS19_CBICA_A{index}_1,{case}" for index, case in enumerate(cases["brats2020"])],
    )

    def read(converter: str, file: Path) -> Callable[[], Any]:
        unit_of = {case: case.removesuffix("-100") for case in cases[converter]}
        return lambda: brats_sites.cohort(converter, base, unit_of, SitesChoice(file))

    return [
        Reader("BraTS 2024 workbook", book, read("brats2024", book), workbook),
        Reader("FeTS partition", partition, read("fets2022", partition), table),
        Reader("BraTS 2020 name mapping", mapping, read("brats2020", mapping), table),
    ]


def _challenges(base: Path) -> list[Reader]:
    """Volumes of KiTS and BraTS as their converters take them, and predictions on their way back."""
    write_kits(base / "kits", [0])
    write_brats(base / "brats", ["BraTS2021_00000"])
    out = base / "out"
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True)

    def read(found: SourceSet) -> Callable[[], None]:
        def convert() -> None:
            try:
                found.convert_case(found.cases[0], out / "images", out / "labels")
            finally:
                for path in [*(out / "images").iterdir(), *(out / "labels").iterdir()]:
                    path.unlink()

        return as_the_converter_reports(convert)

    ct, brain = (
        module.find(name, base / folder, SitesChoice(), Options())
        for module, name, folder in ((kits, "kits23", "kits"), (brats, "brats2021", "brats"))
    )
    (base / "predictions").mkdir()
    (base / "masks").mkdir()
    volume, mask = base / "predictions" / "a.nii.gz", base / "masks" / "a.png"
    write_nifti(volume, np.array([0, 1, 2, 3], dtype=np.uint8).reshape(1, 2, 2))
    Image.fromarray((np.arange(48, dtype=np.uint8) % 2).reshape(6, 8)).save(mask)

    def back(name: str, folder: Path) -> Callable[[], None]:
        def convert() -> None:
            labels_back.convert_back(name, folder, base / "back")
            shutil.rmtree(base / "back")

        return convert

    assert brain.cases[0].label is not None
    return [
        Reader("KiTS image", ct.cases[0].images[0], read(ct), nifti),
        Reader("KiTS label", ct.cases[0].label or base, read(ct), nifti),
        Reader("BraTS channel", brain.cases[0].images[2], read(brain), nifti),
        Reader("BraTS label", brain.cases[0].label, read(brain), nifti),
        Reader("prediction, volume", volume, back("brats2021", volume.parent), nifti),
        Reader("prediction, picture", mask, back("isic2018", mask.parent), picture),
    ]


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
