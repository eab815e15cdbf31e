"""The made-up dermoscopy cohort: layout, repeated lesions, the same files again, sites as different as asked for."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_sources
from PIL import Image

from nnunet_adpfl.dataset_conversion import converters
from nnunet_adpfl.dataset_conversion.synthetic import generated_set, ham10000
from nnunet_adpfl.dataset_conversion.synthetic.dermoscopy import draw_case
from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for, smooth_field
from nnunet_adpfl.dataset_conversion.synthetic.skin_lesion import draw_lesion, levels_in_view
from nnunet_adpfl.dataset_conversion.synthetic.skin_site import PROFILES, SkinSite, skin_sites
from nnunet_adpfl.errors import InputError

SIZE = (48, 64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    ham10000.generate(out, units=60, heterogeneity=1.0, seed=5, size=SIZE)
    return out


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "HAM10000_metadata").open(newline="") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.glob("HAM10000_images_part_*/*.jpg"))}


def masks(folder: Path) -> dict[str, np.ndarray]:
    paths = sorted((folder / "HAM10000_segmentations_lesion_tschandl").iterdir())
    return {path.name.removesuffix("_segmentation.png"): np.asarray(Image.open(path)) for path in paths}


def test_layout(cohort: Path) -> None:
    assert sorted(path.name for path in cohort.iterdir()) == [
        "HAM10000_images_part_1",
        "HAM10000_images_part_2",
        "HAM10000_metadata",
        "HAM10000_segmentations_lesion_tschandl",
        "SYNTHETIC.txt",
    ]
    table, found_images, found_masks = rows(cohort), images(cohort), masks(cohort)
    assert list(table[0]) == ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    assert sorted(row["image_id"] for row in table) == sorted(found_images) == sorted(found_masks)
    assert all(picture.shape == (*SIZE, 3) for picture in found_images.values())
    for mask in found_masks.values():
        assert (mask.shape, mask.dtype) == (SIZE, np.uint8)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.01 < (mask > 0).mean() < 0.6
    parts = [len(list((cohort / f"HAM10000_images_part_{part}").iterdir())) for part in (1, 2)]
    assert abs(parts[0] - parts[1]) <= 1
    assert [row["dx"] for row in table] == sorted(row["dx"] for row in table), "ordered by diagnosis, as the real one"


def test_lesions_repeat_as_often_as_in_the_real_set(cohort: Path) -> None:
    table = rows(cohort)
    images_of = Counter(row["lesion_id"] for row in table)
    assert Counter(images_of.values()) == {1: 44, 2: 12, 3: 4}  # of 60: 44.3, 11.4, 3.9
    assert len({(row["lesion_id"], row["dataset"], row["dx"], row["age"]) for row in table}) == 60
    repeated = next(lesion for lesion, number in images_of.items() if number > 1)
    first, second = [masks(cohort)[row["image_id"]] for row in table if row["lesion_id"] == repeated][:2]
    assert (first != second).any(), "another view of the lesion, not a copy"


def test_sites_have_different_sizes_and_none_is_tiny() -> None:
    for heterogeneity, lesions in ((0.0, 400), (1.0, 400), (1.0, 20)):
        looks = skin_sites(4, heterogeneity, 0)
        weights = {name: site.quantity[0] for name, site in looks.items()}
        sizes = Counter(generated_set.deal_units([str(index) for index in range(lesions)], weights, 0).values())
        assert sizes.total() == lesions
        assert min(sizes.values()) >= max(5, 0.08 * lesions)
        if heterogeneity == 0.0:
            assert set(sizes.values()) == {100}
        elif lesions == 400:
            assert sizes.most_common(1)[0][0] == "vidir_molemax"
            assert max(sizes.values()) > 4 * min(sizes.values())


def test_the_same_arguments_give_the_same_files(cohort: Path, tmp_path: Path) -> None:
    ham10000.generate(tmp_path / "again", units=60, heterogeneity=1.0, seed=5, size=SIZE)
    assert tiny_sources.content(tmp_path / "again") == tiny_sources.content(cohort)
    ham10000.generate(tmp_path / "other", units=60, heterogeneity=1.0, seed=6, size=SIZE)
    first, other = images(cohort), images(tmp_path / "other")
    assert all((picture != other[case]).any() for case, picture in first.items())


def test_a_case_depends_on_its_name_alone() -> None:
    def draws(*names: str) -> list[float]:
        return generator_for(3, *names).random(4).tolist()

    assert draws("case", "a") == draws("case", "a")
    assert len({tuple(draws(*names)) for names in (("case", "a"), ("case", "b"), ("lesion", "a"), ("casea",))}) == 4


def site_colours(heterogeneity: float) -> np.ndarray:
    """Mean colour of 24 pictures of each site (site x RGB), every site showing the same cases."""
    means = []
    for site in skin_sites(4, heterogeneity, 1).values():
        pictures = []
        for index in range(24):
            lesion = draw_lesion(site, generator_for(1, "lesion", index))
            pictures.append(draw_case(lesion, site, SIZE, generator_for(1, "case", index))[0])
        means.append(np.mean(pictures, axis=(0, 1, 2)))
    return np.array(means)


def test_heterogeneity_sets_the_sites_apart() -> None:
    spread = {value: float(site_colours(value).std(axis=0).max()) for value in (0.0, 0.5, 1.0)}
    assert spread[0.0] == 0, "the same cases drawn at sites that are alike"
    assert spread[0.0] + 5 < spread[0.5] < spread[1.0] - 5


def test_sites_parameters() -> None:
    alike = skin_sites(6, 0.0, 9)
    assert list(alike)[:4] == list(PROFILES)
    assert list(alike)[4:] == ["clinic_5", "clinic_6"]
    assert set(alike.values()) == {SkinSite()} | {site for site in alike.values() if site.quantity == (1.0,)}
    assert len(set(alike.values())) == 1
    different = skin_sites(6, 1.0, 9)
    assert len(set(different.values())) == 6
    assert all(sum(site.diagnoses) == pytest.approx(1) for site in different.values())
    assert skin_sites(4, 1.0, 9) == {name: different[name] for name in PROFILES}, "more sites change none of the others"


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def test_neither_one_mask_nor_one_threshold_finds_the_lesions(cohort: Path) -> None:
    found = {case: mask > 0 for case, mask in masks(cohort).items()}
    often = np.mean(list(found.values()), axis=0)
    constant = max(np.mean([dice(often > share, mask) for mask in found.values()]) for share in (0.1, 0.2, 0.3, 0.4))
    assert constant < 0.55
    greys = {case: picture.mean(axis=2) for case, picture in images(cohort).items()}
    by_threshold = max(
        np.mean([dice(greys[case] < level, mask) for case, mask in found.items()]) for level in range(60, 200, 10)
    )
    assert by_threshold < 0.75
    contrast = [greys[case][mask].mean() < greys[case][~mask].mean() for case, mask in found.items()]
    assert np.mean(contrast) > 0.7, "there is something to learn: most lesions are darker than their surroundings"


def test_the_mask_is_traced_with_a_human_hand() -> None:
    site = SkinSite()
    agreement = []
    for index in range(30):
        lesion = draw_lesion(site, generator_for(1, "lesion", index))
        traced, seen = levels_in_view(lesion, site, SIZE, generator_for(1, "case", index))
        agreement.append(dice(traced < 1, seen < 1))
    assert min(agreement) > 0.8
    assert 0.93 < np.mean(agreement) < 0.97


def test_fields_are_normalised_and_smooth() -> None:
    field = smooth_field((60, 80), 12, np.random.default_rng(0))
    assert (field.shape, round(float(field.mean()), 3), round(float(field.std()), 3)) == ((60, 80), 0, 1)
    assert np.abs(np.diff(field, axis=0)).max() < 0.6


def test_the_converter_takes_it(cohort: Path, raw: Path) -> None:
    written = converters.convert("ham10000", cohort, 120, name="SyntheticHAM")
    assert written.cohort is not None
    assert (written.cases, len(written.cohort.units()), written.cohort.unit_kind) == (len(rows(cohort)), 60, "lesion")
    assert written.cohort.sites == sorted(PROFILES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 19}, "--cases 19 lesions are too few for 4 sites: give 20 or more"),
        ({"sites": 0}, "--sites 0"),
        ({"heterogeneity": 1.5}, "--heterogeneity 1.5 is out of range"),
        ({"heterogeneity": float("nan")}, "--heterogeneity nan is out of range"),
        ({"seed": -1}, "--seed -1"),
        ({"size": (8, 64)}, "--size 8x64: all sides must be 32 to 4096"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        ham10000.generate(tmp_path / "out", **{"units": 20, **arguments})  # type: ignore[arg-type]
    assert message in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ham10000.generate(out, units=5, sites=1, size=(32, 32))  # an empty folder is fine
    before = tiny_sources.content(tmp_path)
    with pytest.raises(InputError, match="is not empty: give a new folder"):
        ham10000.generate(out, units=5, sites=1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        ham10000.generate(tmp_path / "file", units=5, sites=1)
    assert tiny_sources.content(tmp_path) == {**before, "file": b""}


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        ham10000.generate(tmp_path / "out", units=5, sites=1)
    assert list(tmp_path.iterdir()) == []


def test_a_converted_made_up_set_does_not_claim_the_real_ones_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    ham10000.generate(tmp_path / "source", units=20, size=(32, 40))
    written = converters.convert("ham10000", tmp_path / "source", 7)
    description = json.loads((written.folder / "dataset.json").read_text())
    assert "licence" not in description
    assert "Made-up" in description["description"]
