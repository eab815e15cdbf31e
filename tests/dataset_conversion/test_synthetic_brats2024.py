"""The made-up BraTS 2024 cohort: layout, workbook, follow-ups, the same files again, sites as different as asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import openpyxl
import pytest
import tiny_sources

from nnunet_adpfl.dataset_conversion.synthetic import brats2024, generated_set
from nnunet_adpfl.dataset_conversion.synthetic.brain import Brain, BrainGrid, draw_brain
from nnunet_adpfl.dataset_conversion.synthetic.brain_mri import Scanner, draw_channels
from nnunet_adpfl.dataset_conversion.synthetic.glioma import RC, depths_at, draw_glioma, traced
from nnunet_adpfl.dataset_conversion.synthetic.mri_site import CHANNELS, PROFILES, MriSite, mri_sites
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for
from nnunet_adpfl.errors import InputError

SIZE = (32, 40, 32)
TABLE = "BraTS-PTG supplementary demographic information and metadata.xlsx"
COLUMNS = (
    "BraTS Subject ID", "Site", "Site Subject ID", "Annotator 1", "Approver 1", "Train/Test/Validation ",
    "Magnetic Field Strength", "Manufacturer", "Patient's Age", "Patient's Sex", "Glioma type ",
)  # fmt: skip
FILES = [*CHANNELS, "seg"]

pytestmark = pytest.mark.slow  # statistics over many volumes


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    brats2024.generate(out, units=40, heterogeneity=1.0, seed=5, size=SIZE)
    return out


@pytest.fixture(scope="module")
def scans(cohort: Path) -> dict[str, dict[str, np.ndarray]]:
    """Scan -> channel or seg -> volume."""
    return {folder.name: read(folder) for folder in sorted((cohort / "training_data1_v2").iterdir())}


def read(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(nibabel.load(folder / f"{folder.name}-{name}.nii.gz").dataobj)  # type: ignore[attr-defined]
        for name in FILES
    }


def table(folder: Path) -> list[dict[str, Any]]:
    header, *rows = openpyxl.load_workbook(folder / TABLE).worksheets[0].iter_rows(values_only=True)
    assert header == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def patient_of(scan: str) -> str:
    return scan.rsplit("-", 1)[0]


def test_layout(cohort: Path, scans: dict[str, dict[str, np.ndarray]]) -> None:
    assert sorted(path.name for path in cohort.iterdir()) == [TABLE, "SYNTHETIC.txt", "training_data1_v2"]
    assert min(scans) == "BraTS-GLI-00005-100"
    for scan, volumes in scans.items():
        folder = cohort / "training_data1_v2" / scan
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{scan}-{name}.nii.gz" for name in FILES)
        brain = volumes["t1n"] > 0
        assert 0.2 < brain.mean() < 0.32, "1.4 to 2.3 l of the template's 7.2"
        for channel in CHANNELS:
            assert (volumes[channel].dtype, volumes[channel].shape) == (np.float32, SIZE)
            assert (volumes[channel] >= 0).all()
            np.testing.assert_array_equal(volumes[channel] > 0, brain, "the same mask in all channels, 0 outside")
        assert (volumes["seg"].dtype, volumes["seg"].shape) == (np.uint8, SIZE)
        assert set(np.unique(volumes["seg"])) <= {0, 1, 2, 3, 4}
        assert (volumes["seg"] == 2).any()
        assert not volumes["seg"][~brain].any()


def test_the_volumes_lie_in_the_space_of_the_template(cohort: Path) -> None:
    path = cohort / "training_data1_v2" / "BraTS-GLI-00005-100" / "BraTS-GLI-00005-100-t1c.nii.gz"
    image: Any = nibabel.load(path)
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    np.testing.assert_allclose(np.array(image.header.get_zooms()) * SIZE, (182, 218, 182), rtol=1e-6)
    expected = [[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]]  # MNI152 at 1 mm
    np.testing.assert_allclose(BrainGrid((182, 218, 182)).affine, expected)


def test_the_workbook_has_a_row_for_every_scan_and_some_more(
    cohort: Path, scans: dict[str, dict[str, np.ndarray]]
) -> None:
    rows = table(cohort)
    parts = {row["BraTS Subject ID"]: row["Train/Test/Validation "] for row in rows}
    assert len(parts) == len(rows)
    assert sorted(scan for scan, part in parts.items() if part == "Train") == sorted(scans)
    assert Counter(part for part in parts.values() if part != "Train") == {"Validation": 2, "Train-additional": 2}
    assert {row["Site"] for row in rows} == {"Duke", "Indiana", "Missouri", "UCSD"}
    assert {row["Manufacturer"] for row in rows} <= {"GE", "Siemens", "Philips"}
    assert {row["Magnetic Field Strength"] for row in rows} == {1.5, 3}
    for column in ("Site", "Patient's Age", "Patient's Sex", "Glioma type "):
        assert len({(patient_of(row["BraTS Subject ID"]), row[column]) for row in rows}) == 40 + 4, (
            "the patient's, not the scan's"
        )


def test_timepoints(cohort: Path, scans: dict[str, dict[str, np.ndarray]]) -> None:
    of_patient = Counter(map(patient_of, scans))
    assert Counter(of_patient.values()) == {1: 9, 2: 22, 3: 4, 4: 2, 5: 3}  # of 40: 9.4, 22.3, 3.6, 2.0, 2.8
    overlap = []
    for patient, number in of_patient.items():
        of_this = [scans[f"{patient}-{100 + timepoint}"] for timepoint in range(number)]
        for later in of_this[1:]:
            np.testing.assert_array_equal(later["t1n"] > 0, of_this[0]["t1n"] > 0, "the same head")
            assert (later["t1n"] != of_this[0]["t1n"]).any()
            assert (later["seg"] != of_this[0]["seg"]).any(), "another scan, not a copy"
            overlap.append(dice(later["seg"] > 0, of_this[0]["seg"] > 0))
            assert (later["seg"] == RC).any() or not (of_this[0]["seg"] == RC).any(), "what was cut out stays out"
    assert min(overlap) > 0.2, "the same tumour, though it may have grown or shrunk a lot"
    assert np.mean(overlap) > 0.65
    site = {row["BraTS Subject ID"]: row["Site"] for row in table(cohort)}
    scans_a_patient = {
        name: np.mean([number for patient, number in of_patient.items() if site[f"{patient}-100"] == name])
        for name in ("Missouri", "Indiana")
    }
    assert scans_a_patient["Missouri"] > scans_a_patient["Indiana"] + 0.5


def test_the_same_arguments_give_the_same_files(cohort: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"units": 10, "sites": 2, "size": SIZE}
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        brats2024.generate(tmp_path / name, seed=seed, **arguments)
    assert tiny_sources.content(tmp_path / "first") == tiny_sources.content(tmp_path / "again")
    for name in FILES:
        paths = sorted((tmp_path / "first").rglob(f"*-100-{name}.nii.gz"))
        assert len(paths) == 10
        for path in paths:
            assert path.read_bytes() != (tmp_path / "other" / path.relative_to(tmp_path / "first")).read_bytes()


def test_a_case_depends_on_its_name_and_site_alone(tmp_path: Path) -> None:
    for name, units in (("few", 5), ("many", 7)):
        brats2024.generate(tmp_path / name, units=units, sites=1, seed=2, size=SIZE)
    few, many = (tmp_path / name / "training_data1_v2" for name in ("few", "many"))
    both = sorted({path.name for path in few.iterdir()} & {path.name for path in many.iterdir()})
    assert {f"BraTS-GLI-{number:05d}-100" for number in range(5, 10)} <= set(both)
    assert all(tiny_sources.content(few / scan) == tiny_sources.content(many / scan) for scan in both)


def head(name: object = 0) -> tuple[BrainGrid, Brain]:
    grid = BrainGrid(SIZE)
    return grid, draw_brain(grid, 0.4, generator_for(1, "patient", name))


def drawn(site: MriSite, name: object, grid: BrainGrid, brain: Brain) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = generator_for(1, "scan", name)
    depths = depths_at(draw_glioma(brain, grid, site, generator), brain, grid, site, 0, generator)
    labels = traced(depths, brain, grid, site, generator)
    return draw_channels(brain, depths, 55.0, Scanner("GE", 3.0), site, grid, generator), labels


def site_features(heterogeneity: float) -> np.ndarray:
    """Of each site, showing the same cases: logarithm of the mean and spread of each channel, size of the mask."""
    grid, brain = head()
    features = []
    for site in mri_sites(5, heterogeneity, 1).values():
        of_site = []
        for index in range(4):
            channels, labels = drawn(site, index, grid, brain)
            values = [channels[channel][brain.mask] for channel in CHANNELS]
            of_site.append(
                [*(np.log(v.mean()) for v in values), *(v.std() / v.mean() for v in values), np.log((labels > 0).sum())]
            )
        features.append(np.mean(of_site, axis=0))
    return np.array(features)


def test_heterogeneity_sets_the_sites_apart() -> None:
    apart = {value: site_features(value).std(axis=0) for value in (0.0, 0.5, 1.0)}
    assert apart[0.0].max() == 0, "the same cases drawn at sites that are alike"
    assert (apart[0.5][:4] > 0.3).all(), "gains"
    assert (apart[1.0][:4] > 1.6 * apart[0.5][:4]).all()
    assert (apart[1.0][4:] > 1.2 * apart[0.5][4:]).all(), "contrast, noise and shading; how much is labelled"


def test_sites_parameters() -> None:
    alike = mri_sites(7, 0.0, 9)
    assert list(alike) == ["Duke", "Indiana", "Missouri", "UCSD", "UCSF", "Site 6", "Site 7"]
    assert set(alike.values()) == {MriSite()}
    different = mri_sites(7, 1.0, 9)
    assert len(set(different.values())) == 7
    assert all(sum(site.manufacturers) == pytest.approx(1) for site in different.values())
    assert mri_sites(5, 1.0, 9) == {name: different[name] for name in PROFILES}, "more sites change none of the others"
    assert mri_sites(5, 1.0, 8) != mri_sites(5, 1.0, 9)


@pytest.mark.parametrize("heterogeneity", [0.0, 1.0])
def test_sites_have_different_sizes_and_none_is_tiny(heterogeneity: float) -> None:
    weights = {name: site.quantity[0] for name, site in mri_sites(5, heterogeneity, 0).items()}
    sizes = Counter(generated_set.deal_units([str(index) for index in range(400)], weights, 0).values())
    assert sizes.total() == 400
    if heterogeneity == 0:
        assert set(sizes.values()) == {80}
    else:
        assert sizes.most_common(1)[0][0] == "UCSF"
        assert 3 * min(sizes.values()) < max(sizes.values())
        assert min(sizes.values()) >= 30


def test_parts_of_the_tumour_are_as_frequent_as_in_the_real_set() -> None:
    grid, brain = head()
    site = MriSite()
    found: Counter[int] = Counter()
    for index in range(150):
        generator = generator_for(1, "scan", index)
        depths = depths_at(draw_glioma(brain, grid, site, generator), brain, grid, site, index % 2, generator)
        labels = traced(depths, brain, grid, site, generator)
        found.update(np.unique(labels).tolist())
        assert set(np.unique(labels).tolist()) == {0} | depths.parts, "each part that the patient has, has a voxel"
    assert found[2] == 150
    assert [found[part] / 150 for part in (1, 3, 4)] == pytest.approx([0.5, 0.83, 0.83], abs=0.1)


def test_the_mask_is_traced_with_a_human_hand() -> None:
    grid = BrainGrid((64, 80, 64))
    brain = draw_brain(grid, 0.4, generator_for(1, "patient", 0))
    agreement, bias = [], []
    for index in range(12):
        sizes = []
        for off_mm in (0.0, 1.1, -0.8):
            site = MriSite(tracing_mm=(off_mm,))
            generator = generator_for(1, "scan", index)
            depths = depths_at(draw_glioma(brain, grid, site, generator), brain, grid, site, 0, generator)
            labels = traced(depths, brain, grid, site, generator)
            sizes.append((labels > 0).sum())
            if off_mm == 0:
                agreement.append(dice(labels > 0, depths.labels(brain.mask) > 0))
        bias.append(sizes[1] > sizes[0] > sizes[2])
    assert min(agreement) > 0.8
    assert 0.9 < np.mean(agreement) < 0.98
    assert all(bias)


def test_contrast_follows_the_tissue() -> None:
    """Without noise and shading: what a radiologist expects of each channel."""
    grid = BrainGrid((64, 80, 64))
    brain = draw_brain(grid, 0.4, generator_for(1, "patient", 0))
    site = MriSite(noise=(0.0,), bias=(0.0,), missing=(0.0,), flair_slices_mm=(0.0,) * 3, other_slices_mm=(0.0,) * 3)
    channels, labels = drawn(site, 0, grid, brain)
    away = (labels == 0) & brain.mask
    mean = {
        channel: [volume[away & (share > 0.95)].mean() for share in (brain.white, brain.grey, brain.fluid)]
        for channel, volume in channels.items()
    }
    assert mean["t1n"][0] > mean["t1n"][1] > mean["t1n"][2]
    assert mean["t2w"][0] < mean["t2w"][1] < mean["t2w"][2]
    assert mean["t2f"][2] < mean["t2f"][0] < mean["t2f"][1]
    assert channels["t2f"][labels == 2].mean() > 1.2 * mean["t2f"][1]
    assert channels["t1n"][labels == 2].mean() < mean["t1n"][0]
    assert 0.4 < brain.white[brain.mask].mean() < 0.65
    assert brain.white + brain.grey + brain.fluid == pytest.approx(brain.mask.astype(float), abs=1e-5)


def test_a_missing_channel_is_a_copy_of_its_relative() -> None:
    grid, brain = head()
    copies: Counter[bool] = Counter()
    for missing in (0.0, 1.0):
        channels, _ = drawn(MriSite(missing=(missing,)), 0, grid, brain)
        same = [(a, b) for a in CHANNELS for b in CHANNELS if a < b and (channels[a] == channels[b]).all()]
        copies[bool(same)] += 1
        assert same in ([], [("t1c", "t1n")], [("t2f", "t2w")])
        assert bool(same) == (missing == 1.0)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / max(1.0, float(first.sum() + second.sum()))


def test_neither_one_mask_nor_one_threshold_finds_the_tumours(scans: dict[str, dict[str, np.ndarray]]) -> None:
    tumours = {scan: np.isin(volumes["seg"], (1, 2, 3)) for scan, volumes in scans.items()}
    often = np.mean(list(tumours.values()), axis=0)
    constant = max(
        np.mean([dice(often > share, tumour) for tumour in tumours.values()]) for share in (0.02, 0.05, 0.1, 0.2, 0.3)
    )
    assert constant < 0.45
    best = {
        channel: max(
            np.mean(
                [max(dice(z > level, tumours[scan]), dice(z < -level, tumours[scan])) for scan, z in scores.items()]
            )
            for level in np.arange(0.5, 3.5, 0.25)
        )
        for channel, scores in ((name, z_scores(scans, name)) for name in CHANNELS)
    }
    assert max(best.values()) < 0.7
    assert max(best, key=best.__getitem__) == "t2f"
    assert best["t2f"] > 0.3, "there is something to learn: most oedema is bright in FLAIR"


def z_scores(scans: dict[str, dict[str, np.ndarray]], channel: str) -> dict[str, np.ndarray]:
    scores = {}
    for scan, volumes in scans.items():
        volume = volumes[channel]
        inside = volume[volume > 0]
        scores[scan] = np.where(volume > 0, (volume - inside.mean()) / inside.std(), 0)
    return scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 19}, "--cases 19 patients are too few for 4 sites: give 20 or more"),
        ({"sites": 0}, "--sites 0"),
        ({"heterogeneity": 1.5}, "--heterogeneity 1.5 is out of range"),
        ({"heterogeneity": float("nan")}, "--heterogeneity nan is out of range"),
        ({"seed": -1}, "--seed -1"),
        ({"size": (64, 64)}, "--size 64x64: give 3 lengths"),
        ({"size": (8, 64, 64)}, "--size 8x64x64: all sides must be 32 to 256"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        brats2024.generate(tmp_path / "out", **{"units": 20, **arguments})  # type: ignore[arg-type]
    assert message in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = brats2024.generate(out, units=5, sites=1, size=(32, 32, 32))  # an empty folder is fine
    assert (made.unit_kind, made.units, made.images) == ("patient", {"Duke": 5}, {"Duke": 10})
    before = tiny_sources.content(tmp_path)
    with pytest.raises(InputError, match="is not empty: give a new folder"):
        brats2024.generate(out, units=5, sites=1)
    assert tiny_sources.content(tmp_path) == before


@pytest.mark.parametrize("broken", ["write_nifti", "write_workbook"])
def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(brats2024, broken, full)
    with pytest.raises(OSError, match="No space left"):
        brats2024.generate(tmp_path / "out", units=5, sites=1, size=(32, 32, 32))
    assert list(tmp_path.iterdir()) == []
