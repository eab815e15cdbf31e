"""Tiny data sets in the layouts of the challenges, to convert and to break: ten units at two sites each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_sources

SHAPE = (18, 20, 16)
SLICE_FIRST = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1.0]])  # KiTS: axes I, P, L
ISOTROPIC = np.diag([-1.0, -1.0, 1.0, 1.0])
OLD_CHANNELS = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NEW_CHANNELS = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")
XLSX = "BraTS-PTG supplementary demographic information and metadata.xlsx"


def blob_label(seed: int, values: Sequence[int], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Shells of ``values`` round a point, the last value innermost."""
    generator = np.random.default_rng(seed)
    centre = [generator.uniform(0.4, 0.6) * side for side in shape]
    distance = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True)))
    label = np.zeros(shape, dtype=np.uint8)
    for rank, value in enumerate(values):
        label[distance < min(shape) * 0.42 * (1 - rank / (len(values) + 0.5))] = value
    return label


def image_of(label: np.ndarray, seed: int, background: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed + 1000).normal(0, 8, label.shape)
    return (background + 30.0 * label + noise).astype(np.float32)


def write_isic(folder: Path, training: int = 10, validation: int = 2, test: int = 1) -> Path:
    size, number = (40, 48), 0
    for part, count, first in (("Training", training, 0), ("Validation", validation, 12255), ("Test", test, 12169)):
        for index in range(count):
            name, number = f"ISIC_{first + index:07d}", number + 1
            tiny_sources.write_jpg(folder / f"ISIC2018_Task1-2_{part}_Input" / f"{name}.jpg", shade=10 * number, size=size)
            mask = np.zeros(size, dtype=np.uint8)
            mask[8 : 20 + number, 10:30] = 255
            tiny_sources.write_png(folder / f"ISIC2018_Task1_{part}_GroundTruth" / f"{name}_segmentation.png", mask)
    (folder / "ISIC2018_Task1-2_Training_Input" / "LICENSE.txt").write_text("CC BY-NC 4.0\n")
    return folder


def write_kits(folder: Path, numbers: Iterable[int] = range(10), *, label: str = "segmentation", values: Sequence[int] = (1, 3, 2)) -> Path:
    """``folder/case_00000/...`` with labels from ``values``."""
    for number in numbers:
        case, mask = folder / f"case_{number:05d}", blob_label(number, values)
        tiny_sources.write_nifti(case / "imaging.nii.gz", image_of(mask, number, -50.0), SLICE_FIRST)
        tiny_sources.write_nifti(case / f"{label}.nii.gz", mask, SLICE_FIRST)
        tiny_sources.write_nifti(case / "instances" / "kidney_instance-1_annotation-1.nii.gz", mask, SLICE_FIRST)
    return folder


def write_brats(
    folder: Path, names: Sequence[str], suffixes: Sequence[str] = OLD_CHANNELS, values: Sequence[int] = (2, 1, 4), ending: str = ".nii.gz"
) -> Path:
    """``folder/NAME/NAME_t1.nii.gz`` and so on; the last suffix is the label's."""
    for seed, name in enumerate(names):
        mask = blob_label(seed, values)
        for channel, suffix in enumerate(suffixes[:-1]):
            tiny_sources.write_nifti(folder / name / f"{name}{suffix}{ending}", image_of(mask, 10 * seed + channel), ISOTROPIC)
        tiny_sources.write_nifti(folder / name / f"{name}{suffixes[-1]}{ending}", mask, ISOTROPIC)
    return folder


def write_rows(path: Path, header: str, rows: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_workbook(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> Path:
    import openpyxl

    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(list(row))
    book.save(path)
    return path


@dataclass(frozen=True)
class Challenge:
    """How one data set is written, and what its conversion must hold.

    Attributes:
        write: writes the source and returns it with the further arguments of ``adpfl convert``.
        units, sites, unit: of the cohort.
        values: of the challenge's labels.
        flat: two dimensions.
    """

    write: Callable[[Path], tuple[Path, tuple[str, ...]]]
    values: frozenset[int]
    units: int = 10
    sites: int = 2
    unit: str = "patient"
    flat: bool = False


def _halves(names: Sequence[str]) -> list[str]:
    return [f"{name},{'north' if index % 2 else 'south'}" for index, name in enumerate(names)]


def _ham(folder: Path) -> tuple[Path, tuple[str, ...]]:
    from nnunet_adpfl.dataset_conversion.synthetic import ham10000

    ham10000.generate(folder / "ham", units=10, sites=2, size=(40, 48))
    return folder / "ham", ()


def _isic(folder: Path) -> tuple[Path, tuple[str, ...]]:
    source = write_isic(folder / "isic")
    names = [*(f"ISIC_{index:07d}" for index in range(10)), "ISIC_0012255", "ISIC_0012256"]
    return source, ("--sites", str(write_rows(folder / "sites.csv", "image,site", _halves(names))))


def _kits(values: Sequence[int], label: str = "segmentation") -> Callable[[Path], tuple[Path, tuple[str, ...]]]:
    def write(folder: Path) -> tuple[Path, tuple[str, ...]]:
        source = write_kits(folder / "kits" / "data", label=label, values=values)
        names = [f"case_{number:05d}" for number in range(10)]
        return source.parent, ("--sites", str(write_rows(folder / "sites.csv", "case,site_id", _halves(names))))

    return write


def _brats2020(folder: Path) -> tuple[Path, tuple[str, ...]]:
    names = [f"BraTS20_Training_{number:03d}" for number in range(350, 360)]
    source = write_brats(folder / "b20" / "MICCAI_BraTS2020_TrainingData", names, ending=".nii")
    odd = source / "BraTS20_Training_355"
    (odd / "BraTS20_Training_355_seg.nii").rename(odd / "W39_1998.09.19_Segm.nii")
    header = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID"
    rows = [f"HGG,NA,NA,NA,BraTS19_{'CBICA' if index % 2 else 'TMC'}_AAB_1,{name}" for index, name in enumerate(names)]
    write_rows(source / "name_mapping.csv", header, rows)
    write_brats(folder / "b20" / "MICCAI_BraTS2020_ValidationData", ["BraTS20_Validation_001"], OLD_CHANNELS, ending=".nii")
    (folder / "b20/MICCAI_BraTS2020_ValidationData/BraTS20_Validation_001/BraTS20_Validation_001_seg.nii").unlink()
    return folder / "b20", ()


def _brats2021(folder: Path) -> tuple[Path, tuple[str, ...]]:
    names = [f"BraTS2021_{number:05d}" for number in range(10)]
    source = write_brats(folder / "b21", names)
    rows = [f"{index % 2 + 1},FeTS2022_{name[-5:]}" for index, name in enumerate(names)]
    return source, ("--sites", str(write_rows(folder / "partitioning_1.csv", "Partition_ID,Subject_ID", rows)))


def _brats2023(folder: Path) -> tuple[Path, tuple[str, ...]]:
    names = [f"BraTS-GLI-{number:05d}-000" for number in range(10)]
    source = write_brats(folder / "b23" / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", names, NEW_CHANNELS, (2, 1, 3))
    header = ["BraTS2023", "BraTS2021", "Cohort Name (if publicly available)", "Site No (represents the originating institution)"]
    rows = [[name, f"BraTS2021_{name[10:15]}", "x", index % 2 + 1] for index, name in enumerate(names)]
    write_workbook(folder / "b23" / "BraTS2023_2017_GLI_Mapping.xlsx", header, rows)
    return source.parent, ()


def _brats2024(folder: Path) -> tuple[Path, tuple[str, ...]]:
    names = [f"BraTS-GLI-{number:05d}-{visit}" for number in range(10) for visit in ((100, 101) if number % 3 == 0 else (100,))]
    source = write_brats(folder / "b24" / "training_data1_v2", names, NEW_CHANNELS, (2, 1, 3, 4))
    header = ["BraTS Subject ID", "Site", "Site Subject ID", "Train/Test/Validation ", "Glioma type "]
    rows: list[Sequence[object]] = [[name, "UCSF" if int(name[10:15]) % 2 else "Duke", None, "Train", "GBM"] for name in names]
    write_workbook(folder / "b24" / XLSX, header, [*rows, ["BraTS-GLI-09999-100", "UCSD", 7, "Validation", "GBM"]])
    return source.parent, ()


def _fets2022(folder: Path) -> tuple[Path, tuple[str, ...]]:
    names = [f"FeTS2022_{number:05d}" for number in range(10)]
    source = write_brats(folder / "fets" / "MICCAI_FeTS2022_TrainingData", names)
    rows = [f"{name},{index % 2 + 1:02d}" for index, name in enumerate(names)]
    write_rows(source / "partitioning_1.csv", "Subject_ID,Partition_ID", rows)
    return source.parent, ()


def _msd(folder: Path) -> tuple[Path, tuple[str, ...]]:
    from nnunet_adpfl import json_files

    cases = [f"brain_{number:02d}" for number in range(10)]
    source = tiny_sources.write_msd(folder / "Task77_Brain", cases)
    for seed, case in enumerate(cases):
        label = blob_label(seed, (1, 2))
        tiny_sources.write_nifti(source / "labelsTr" / f"{case}.nii.gz", label)
        tiny_sources.write_nifti(source / "imagesTr" / f"{case}.nii.gz", image_of(label, seed))
    assert json_files.load(source / "dataset.json")["labels"]
    return source, ("--sites", str(write_rows(folder / "sites.csv", "case,site", _halves(cases))))


CHALLENGES: Mapping[str, Challenge] = {
    "ham10000": Challenge(_ham, frozenset({0, 255}), unit="lesion", flat=True),
    "isic2018": Challenge(_isic, frozenset({0, 255}), units=12, unit="case", flat=True),
    "kits19": Challenge(_kits((1, 2)), frozenset({0, 1, 2})),
    "kits23": Challenge(_kits((1, 3, 2)), frozenset({0, 1, 2, 3})),
    "kits21": Challenge(_kits((1, 3, 2), "aggregated_MAJ_seg"), frozenset({0, 1, 2, 3})),
    "brats2020": Challenge(_brats2020, frozenset({0, 1, 2, 4})),
    "brats2021": Challenge(_brats2021, frozenset({0, 1, 2, 4})),
    "brats2023": Challenge(_brats2023, frozenset({0, 1, 2, 3})),
    "brats2024": Challenge(_brats2024, frozenset({0, 1, 2, 3, 4})),
    "fets2022": Challenge(_fets2022, frozenset({0, 1, 2, 4})),
    "msd": Challenge(_msd, frozenset({0, 1, 2}), unit="case"),
}
