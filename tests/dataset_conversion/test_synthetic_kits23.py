"""The made-up kidney CT: KiTS23's layout, plausible anatomy, the same files again, sites as different as asked for."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_sources
from scipy import ndimage

from nnunet_adpfl.dataset_conversion.synthetic import generated_set, kits23
from nnunet_adpfl.dataset_conversion.synthetic.abdomen_ct import draw_scan
from nnunet_adpfl.dataset_conversion.synthetic.ct_site import PROFILES, CtSite, ct_sites, grid_of
from nnunet_adpfl.dataset_conversion.synthetic.kidney import LABELS, draw_anatomy, majority, trace
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for
from nnunet_adpfl.dataset_conversion.synthetic.volumes import smooth_field_3d, write_nifti
from nnunet_adpfl.errors import InputError

SIZE = (24, 40, 40)
CASES = 24
KIDNEY, TUMOUR, CYST = 1, 2, 3

pytestmark = pytest.mark.slow  # statistics over many volumes


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    kits23.generate(out, units=CASES, heterogeneity=1.0, seed=5, size=SIZE)
    return out


@pytest.fixture(scope="module")
def real_masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segmentations of finer voxels and other layouts: KiTS21's, and KiTS19's with its axes turned."""
    folder = tmp_path_factory.mktemp("real")
    labels = np.zeros((90, 128, 128), dtype=np.uint8)
    down, back, left = np.ogrid[:90, :128, :128]
    for middle in (32, 96):
        labels[((down - 45) / 26) ** 2 + ((back - 80) / 12) ** 2 + ((left - middle) / 12) ** 2 < 1] = KIDNEY
    labels[(down - 40) ** 2 + (back - 70) ** 2 + (left - 100) ** 2 < 8**2] = TUMOUR
    affine = grid_of(CtSite(slices=(2.0,)), (90, 128, 128)).affine
    affine[:3, :3] *= np.array([2.0, 2.2, 2.2]) / np.abs(affine[:3, :3]).sum(axis=0)
    cyst = labels.copy()
    cyst[60, 80, 25:27] = CYST  # falls between the voxels of the coarse grid
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels.astype(np.uint16), affine))
    path = folder / "data" / "case_00007" / "segmentation.nii.gz"
    tiny_sources.write_nifti(path, np.asarray(turned.dataobj), turned.affine)
    tiny_sources.write_nifti(folder / "kits21" / "case_00003" / "aggregated_MAJ_seg.nii.gz", cyst, affine)
    return folder


def site_of(folder: Path) -> dict[str, str]:
    with (folder / "kits23_sites.csv").open(newline="") as file:
        return {row["case"]: row["site_id"] for row in csv.DictReader(file)}


def volume(folder: Path, case: str, name: str = "segmentation") -> tuple[np.ndarray, np.ndarray]:
    """Voxels and spacing (mm)."""
    image = nib.load(folder / "kits23" / "dataset" / case / f"{name}.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("I", "P", "L")
    return np.asanyarray(image.dataobj), np.array(image.header.get_zooms())


def test_layout(cohort: Path) -> None:
    assert sorted(path.name for path in cohort.iterdir()) == ["SYNTHETIC.txt", "kits23", "kits23_sites.csv"]
    dataset = cohort / "kits23" / "dataset"
    cases = [f"case_{number:05d}" for number in range(CASES)]
    assert sorted(path.name for path in dataset.iterdir()) == [*cases, "kits23.json"]
    facts = json.loads((dataset / "kits23.json").read_text())
    assert [entry["case_id"] for entry in facts] == sorted(site_of(cohort)) == cases
    assert {"gender", "age_at_nephrectomy", "radiographic_size", "tumor_histologic_subtype"} < set(facts[0])
    for case in cases:
        image, spacing = volume(cohort, case, "imaging")
        labels, same = volume(cohort, case)
        assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
        assert image.shape == labels.shape
        assert (spacing == same).all()
        assert 14 <= image.shape[0] <= 38
        assert image.shape[1:] == SIZE[1:]
        assert {0, KIDNEY, TUMOUR} <= set(np.unique(labels)) <= {0, KIDNEY, TUMOUR, CYST}
        assert -1024 <= image.min() < -900
        assert 120 < image.max() <= 3071


def test_instances_are_the_labels_as_three_readers_drew_them(cohort: Path) -> None:
    for case in ("case_00000", "case_00001", "case_00002"):
        labels, _ = volume(cohort, case)
        files = sorted((cohort / "kits23" / "dataset" / case / "instances").iterdir())
        names = {path.name.split("_instance")[0] for path in files}
        assert {"kidney", "tumor"} <= names <= set(LABELS)
        assert len(files) == 3 * len({path.name.rsplit("_", 1)[0] for path in files})
        for kind in names:
            drawn = [path for path in files if path.name.startswith(kind)]
            votes = np.sum([np.asanyarray(nib.load(path).dataobj) for path in drawn], axis=0)
            assert ((votes >= 2) == (labels == LABELS[kind])).mean() > 0.9999
        assert ((votes > 0) & (votes < 3)).any(), "they do not agree everywhere"


def test_numbers_go_on_from_400(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kits23, "FIRST_PART", 3)
    kits23.generate(tmp_path / "out", units=5, sites=1, size=(24, 24, 24))
    assert sorted(site_of(tmp_path / "out"))[2:] == ["case_00002", "case_00103", "case_00104"]


def test_the_same_arguments_give_the_same_files(cohort: Path, tmp_path: Path) -> None:
    kits23.generate(tmp_path / "again", units=CASES, heterogeneity=1.0, seed=5, size=SIZE)
    assert tiny_sources.content(tmp_path / "again") == tiny_sources.content(cohort)
    kits23.generate(tmp_path / "other", units=CASES, heterogeneity=1.0, seed=6, size=SIZE)
    for case in site_of(cohort):
        first, other = volume(cohort, case)[0], volume(tmp_path / "other", case)[0]
        assert first.shape != other.shape or (first != other).any()


def test_a_case_depends_on_its_name_and_site_alone(cohort: Path, tmp_path: Path) -> None:
    kits23.generate(tmp_path / "more", units=CASES + 6, heterogeneity=1.0, seed=5, size=SIZE)
    before, after = site_of(cohort), site_of(tmp_path / "more")
    stayed = [case for case, site in before.items() if after[case] == site]
    assert len(stayed) >= 3
    for case in stayed:
        folders = (folder / "kits23" / "dataset" / case for folder in (cohort, tmp_path / "more"))
        first, second = (tiny_sources.content(folder) for folder in folders)
        assert first == second


def test_volumes_are_plausible() -> None:
    """Fine voxels: each kidney 60 to 350 ml, with a sinus, tumours attached to them."""
    site = CtSite()
    grid = grid_of(site, (64, 96, 96))
    ml = np.prod(grid.spacing_mm) / 1000
    sides, tumours = [], []
    for index in range(12):
        anatomy = draw_anatomy(site, grid, generator_for(3, index))
        sizes = np.bincount(anatomy.instances.ravel())[1:] * ml
        sides += [size for size, kind in zip(sizes, anatomy.kinds, strict=True) if kind == "kidney"]
        tumours += [size for size, kind in zip(sizes, anatomy.kinds, strict=True) if kind == "tumor"]
        assert anatomy.kinds[:2] == ("kidney", "kidney")
        kidneys = anatomy.instances > 0
        assert ndimage.label(kidneys, np.ones((3, 3, 3)))[1] == 2, "masses hang on a kidney"
        first = np.argwhere(anatomy.instances == 1)
        hull = np.prod(np.ptp(first, axis=0) + 1)
        assert len(first) / hull < 0.5, "less than an upright ellipsoid fills its box (0.52): a bean without its sinus"
    assert min(sides) > 60
    assert max(sides) < 350
    assert 120 < np.median(sides) < 240
    assert max(tumours) <= 550
    assert 10 < np.median(tumours) < 90


def test_cysts_are_as_frequent_as_the_site_says() -> None:
    grid = grid_of(CtSite(), SIZE)

    def share(cysts: float) -> float:
        drawn = [draw_anatomy(CtSite(cysts=(cysts,)), grid, generator_for(1, index)) for index in range(30)]
        return float(np.mean(["cyst" in anatomy.kinds for anatomy in drawn]))

    assert share(0.0) == 0
    assert 0.25 < share(0.5) < 0.75
    assert share(1.0) > 0.9


def test_tissues_have_the_density_that_they_should(cohort: Path) -> None:
    site = CtSite(noise=(0.0, 1.0), kernel=(0.3, 0.0))
    grid = grid_of(site, (48, 96, 96))
    found = []
    for index in range(4):
        generator = generator_for(8, index)
        anatomy = draw_anatomy(site, grid, generator)
        image = draw_scan(anatomy, site, generator)
        assert (image == np.rint(image)).all()
        kidney = anatomy.labels(anatomy.instances) == KIDNEY
        inner = ndimage.binary_erosion(kidney, iterations=3)
        round_it = ndimage.binary_dilation(anatomy.instances > 0, iterations=3) & (anatomy.instances == 0)
        found.append((image[kidney & ~inner].mean(), image[inner].mean(), np.median(image[round_it])))
    cortex, medulla, fat = np.mean(found, axis=0)
    assert fat < -50
    assert 80 < medulla < cortex - 5 < 160


def appearance(heterogeneity: float) -> np.ndarray:
    """Of 8 patients of each site: mean HU in the body and in the kidney, noise, spacing (site x figure); the same draws."""
    rows = []
    for site in ct_sites(4, heterogeneity, 1).values():
        grid, figures = grid_of(site, SIZE), []
        for index in range(8):
            generator = generator_for(1, index)
            anatomy = draw_anatomy(site, grid, generator)
            image = draw_scan(anatomy, site, generator)
            grain = np.abs(np.diff(image, axis=0))[np.abs(image[1:] - 60) < 80]
            kidney = image[anatomy.instances == 1]
            figures.append([image[image > -500].mean(), kidney.mean(), grain.mean(), 10 * grid.spacing_mm[0]])
        rows.append(np.mean(figures, axis=0))
    return np.array(rows)


def test_heterogeneity_sets_the_sites_apart() -> None:
    spread = {value: appearance(value).std(axis=0) for value in (0.0, 0.5, 1.0)}
    assert (spread[0.0] == 0).all(), "the same patients scanned at sites that are alike"
    assert (spread[0.5] > (3, 8, 1, 3)).all()
    assert (spread[1.0] > 1.3 * spread[0.5]).all()


def test_sites_parameters() -> None:
    alike = ct_sites(8, 0.0, 9)
    assert list(alike) == ["67", "57", "13", "14", "55", "7", "101", "102"]
    assert set(alike.values()) == {CtSite()}
    different = ct_sites(8, 1.0, 9)
    assert len(set(different.values())) == 8
    assert ct_sites(6, 1.0, 9) == {name: different[name] for name in PROFILES}, "more sites change none of the others"
    weights = {name: site.quantity[0] for name, site in different.items()}
    sizes = Counter(generated_set.deal_units([str(index) for index in range(300)], weights, 0).values())
    assert sizes.most_common(1)[0][0] == "67"


def test_the_number_of_slices_follows_their_thickness() -> None:
    def shape(slice_mm: float) -> tuple[int, int, int]:
        return grid_of(CtSite(slices=(slice_mm,)), (40, 64, 48)).shape

    assert [shape(value) for value in (0.5, 2.5, 3.0, 5.0)] == [(64, 64, 48), (48, 64, 48), (40, 64, 48), (24, 64, 48)]
    for slice_mm in (0.5, 3.0, 5.0):
        grid = grid_of(CtSite(slices=(slice_mm,)), (40, 64, 48))
        assert grid.shape[0] * grid.spacing_mm[0] == pytest.approx(150)
    as_in_kits = grid_of(CtSite(), (104, 512, 512))
    assert as_in_kits.spacing_mm == pytest.approx((3.0, 0.78, 0.78), rel=0.01)


def test_sites_trace_wide_or_tight() -> None:
    grid = grid_of(CtSite(), (32, 64, 64))
    anatomy = draw_anatomy(CtSite(), grid, generator_for(2, "patient"))
    seen = anatomy.instances > 0
    drawn = {habit: majority(trace(anatomy, habit, generator_for(2, "hand"))) > 0 for habit in (-1.0, 0.0, 1.0)}
    assert drawn[-1.0].sum() < 0.8 * seen.sum()
    assert 1.25 * seen.sum() < drawn[1.0].sum()
    assert 0.95 < dice(drawn[0.0], seen) < 1
    reach = ndimage.binary_dilation(seen, ndimage.generate_binary_structure(3, 1))
    assert not (drawn[1.0] & ~reach).any(), "by one voxel at most"


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def test_neither_one_mask_nor_one_window_finds_the_kidneys(cohort: Path) -> None:
    pairs = [(volume(cohort, case, "imaging")[0], volume(cohort, case)[0]) for case in site_of(cohort)]
    windows = [(low, low + width) for low in range(0, 200, 20) for width in (30, 60, 100, 200, 400)]
    best_of_each = [
        max(dice((image > low) & (image < high), labels > 0) for low, high in windows) for image, labels in pairs
    ]
    assert np.mean(best_of_each) < 0.55, "even with a window chosen for each patient"
    masks = [ndimage.zoom(labels > 0, np.array(SIZE) / labels.shape, order=0) for _, labels in pairs]
    often = np.mean(masks, axis=0)
    # With so few cases, each is a good part of the mean: the others alone must predict it.
    rest = [(often * len(masks) - mask) / (len(masks) - 1) for mask in masks]
    constant = max(
        np.mean([dice(other > share, mask) for other, mask in zip(rest, masks, strict=True)])
        for share in (0.2, 0.3, 0.4, 0.5)
    )
    assert constant < 0.5
    contrast = [image[labels == KIDNEY].mean() > image[image > -500].mean() + 40 for image, labels in pairs]
    assert np.mean(contrast) > 0.9, "there is something to learn"


def test_masks_of_real_patients_are_drawn_over(real_masks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kits23.generate(out, units=6, sites=1, seed=2, size=(40, 64, 64), masks=real_masks)
    assert "licence of those files" in (out / "SYNTHETIC.txt").read_text()
    kidneys, cysts = [], 0
    for case in site_of(out):
        labels, spacing = volume(out, case)
        image, _ = volume(out, case, "imaging")
        assert image.shape == labels.shape
        kidneys.append((labels == KIDNEY).sum() * np.prod(spacing) / 1000)
        cysts += (labels == CYST).any()
        assert (labels == TUMOUR).any()
        lengths = [np.ptp(axis) * step for axis, step in zip(np.nonzero(labels), spacing, strict=True)]
        assert lengths == pytest.approx([104, 56, 195], rel=0.2), "upright as in the file, whichever way its axes ran"
        assert all(
            55 < size * step - length < 95 for size, step, length in zip(image.shape, spacing, lengths, strict=True)
        )
        assert image[labels == KIDNEY].mean() > image[labels == 0].mean() + 40
        assert np.median(image[ndimage.binary_dilation(labels > 0, iterations=2) & (labels == 0)]) < 60
    assert 2 * 110 < np.mean(kidneys) < 2 * 210
    assert len(set(kidneys)) == 6, "a mask that serves twice is scaled"
    assert cysts == 3, "a cyst of two voxels is not lost"
    kits23.generate(tmp_path / "again", units=6, sites=1, seed=2, size=(40, 64, 64), masks=real_masks)
    assert tiny_sources.content(tmp_path / "again") == tiny_sources.content(out)


def broken_masks(folder: Path, fault: str) -> None:
    path = folder / "case_00001" / "segmentation.nii.gz"
    labels = np.zeros((8, 9, 10), dtype=np.uint8)
    if fault == "absent":
        folder.mkdir()
    elif fault == "file":
        folder.touch()
    elif fault == "truncated":
        labels[2:5] = KIDNEY
        tiny_sources.write_nifti(path, labels)
        path.write_bytes(path.read_bytes()[:-20])
    elif fault == "no gzip":
        path.parent.mkdir(parents=True)
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    else:
        labels[2:5] = {"other labels": 7, "no kidney": TUMOUR}.get(fault, KIDNEY)
        tiny_sources.write_nifti(path, labels if fault != "4D" else labels[..., None].repeat(2, axis=3))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("absent", "holds no case_00000/segmentation.nii.gz"),
        ("file", "is no folder"),
        ("truncated", "case_00001/segmentation.nii.gz: label cannot be read"),
        ("no gzip", "case_00001/segmentation.nii.gz: label cannot be read"),
        ("other labels", "case_00001/segmentation.nii.gz: label holds the value 7"),
        ("no kidney", "case_00001/segmentation.nii.gz has no voxel of label 1"),
        ("4D", "case_00001/segmentation.nii.gz: label has 4 axes"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path: Path, fault: str, message: str) -> None:
    broken_masks(tmp_path / "masks", fault)
    with pytest.raises(InputError) as refusal:
        kits23.generate(tmp_path / "out", units=5, sites=1, masks=tmp_path / "masks")
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("--masks")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 19}, "--cases 19 patients are too few for 4 sites: give 20 or more"),
        ({"sites": 0}, "--sites 0"),
        ({"heterogeneity": 1.5}, "--heterogeneity 1.5 is out of range"),
        ({"seed": -1}, "--seed -1"),
        ({"size": (64, 64)}, "--size 64x64: give 3 lengths"),
        ({"size": (8, 64, 64)}, "--size 8x64x64: all sides must be 24 to 1024"),
        ({"size": (1024, 1024, 1024)}, "--size 1024x1024x1024 has more than 134,217,728 voxels"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        kits23.generate(tmp_path / "out", **{"units": 20, **arguments})  # type: ignore[arg-type]
    assert message in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_refused_and_kept(cohort: Path) -> None:
    before = tiny_sources.content(cohort)
    with pytest.raises(InputError, match="is not empty: give a new folder"):
        kits23.generate(cohort, units=5, sites=1)
    assert tiny_sources.content(cohort) == before


def test_an_error_leaves_nothing_and_stops_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(path: Path, *_: object) -> None:
        calls.append(path)
        raise OSError("No space left on device")

    monkeypatch.setattr(kits23, "write_nifti", full)
    with pytest.raises(OSError, match="No space left"):
        kits23.generate(tmp_path / "out", units=200, sites=1, size=SIZE)
    assert list(tmp_path.iterdir()) == []
    assert len(calls) < 100


def test_the_command(tmp_path: Path, real_masks: Path, adpfl: Callable[..., tuple[int, str, str]]) -> None:
    arguments = ("--cases", 5, "--sites", 1, "--size", "24x24x24", "--masks", real_masks)
    code, said, _ = adpfl("synth", "kits23", tmp_path / "out", *arguments)
    assert code == 0
    assert "5 patients, 5 images, 1 sites" in said
    assert (tmp_path / "out" / "kits23" / "dataset" / "case_00004" / "imaging.nii.gz").is_file()
    for other in ("ham10000", "brats2024"):
        code, _, error = adpfl("synth", other, tmp_path / "no", *arguments)
        assert code != 0
        assert f"--masks is for kits23 alone: leave it out for {other}" in error
        assert not (tmp_path / "no").exists()


def test_fields_are_normalised_smooth_and_may_differ_by_axis() -> None:
    field = smooth_field_3d((30, 40, 50), (1.0, 8.0, 20.0), np.random.default_rng(0))
    assert (field.shape, field.dtype) == ((30, 40, 50), np.float32)
    assert (round(float(field.mean()), 3), round(float(field.std()), 2)) == (0, 1)
    steps = [float(np.abs(np.diff(field, axis=axis)).mean()) for axis in range(3)]
    assert steps[0] > 3 * steps[1] > 6 * steps[2]
    assert np.isfinite(smooth_field_3d((1, 1, 2), 5.0, np.random.default_rng(0))).all()


def test_written_files_hold_neither_time_nor_name(tmp_path: Path) -> None:
    data, affine = np.arange(24, dtype=np.float32).reshape(2, 3, 4), grid_of(CtSite(), SIZE).affine
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, data, affine)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[3:8] == bytes(5), "no name, no time"
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert (np.asanyarray(image.dataobj) == data).all()
    assert np.allclose(image.affine, affine)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_the_converter_takes_it(cohort: Path, raw: Path, adpfl: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = adpfl("convert", "kits23", cohort, 223, "--name", "Made", "--sites", cohort / "kits23_sites.csv")
    assert code == 0, error
    assert len(list((raw / "Dataset223_Made" / "imagesTr").iterdir())) == CASES
