"""Classes, tables, means, the site matrix and the constant mask, on hand-made figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_run import TinyRun

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.evaluation import scoring, site_matrix
from nnunet_adpfl.evaluation.classes import scored_classes
from nnunet_adpfl.evaluation.constant_mask import best_constant_mask_dice
from nnunet_adpfl.evaluation.overlays import typical_cases
from nnunet_adpfl.evaluation.scoring import CaseScore


def score(case: str, site: str, label: str, dice: float, hd95: float = 4.0) -> CaseScore:
    return CaseScore(case, site, label, dice, hd95, hd95 / 2, dice / 2, 1.0, 10, 12)


SCORES = [
    score("a1", "a", "ball", 0.8), score("a1", "a", "core", 0.4),
    score("a2", "a", "ball", 0.6), score("a2", "a", "core", 0.2),
    score("b1", "b", "ball", 1.0, 1.0), score("b1", "b", "core", 0.0, 7.0),
]  # fmt: skip


def test_means_over_cases_per_site_per_class_and_in_all() -> None:
    summary = scoring.summarise(SCORES)
    assert summary["cases"] == 3
    assert summary["mean"]["dice"] == pytest.approx((0.6 + 0.4 + 0.5) / 3)
    assert summary["sites"]["a"]["dice"] == pytest.approx(0.5)
    assert summary["sites"]["a"]["cases"] == 2
    assert summary["sites"]["a"]["classes"]["core"]["dice"] == pytest.approx(0.3)
    assert summary["sites"]["b"]["hd95_mm"] == pytest.approx(4.0)
    assert summary["classes"]["ball"]["dice"] == pytest.approx(0.8)
    assert scoring.case_dice_by_site(SCORES) == {"a": pytest.approx([0.6, 0.4]), "b": [0.5]}


def test_no_case_has_no_mean() -> None:
    with pytest.raises(InputError, match="no scored case"):
        scoring.summarise([])


def test_the_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    scoring.write_table(SCORES, path)
    assert scoring.read_table(path) == SCORES


@pytest.mark.parametrize("text", ["case,site\nx,y\n", "case,site,label,dice\na,b,c,high\n"])
def test_a_damaged_table_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="damaged"):
        scoring.read_table(path)


def test_typical_case_is_the_median_one() -> None:
    more = [*SCORES, score("a3", "a", "ball", 0.9), score("a3", "a", "core", 0.9)]
    assert typical_cases(more) == {"a": ("a1", pytest.approx(0.6)), "b": ("b1", 0.5)}


def test_labels_regions_and_ignore() -> None:
    plain = scored_classes({"labels": {"background": 0, "ball": 1, "core": 2, "ignore": 3}})
    assert plain.members == {"ball": (1,), "core": (2,)}
    truth, labels = np.array([[0, 1, 2, 3]]), np.array([[1, 1, 2, 2]])
    assert {name: mask.tolist() for name, mask in plain.masks(truth, labels).items()} == {
        "ball": [[True, True, False, False]],
        "core": [[False, False, True, False]],
    }
    regions = scored_classes({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]})
    assert regions.masks(truth, labels)["whole"].tolist() == [[True, True, True, True]]


@pytest.mark.parametrize("content", [{}, {"labels": {"background": 0}}, {"labels": {"background": 0, "ignore": 1}}])
def test_a_data_set_without_classes_is_refused(content: dict) -> None:
    with pytest.raises(InputError):
        scored_classes(content)


def test_site_matrix_has_a_row_per_model_and_a_column_per_site(tmp_path: Path) -> None:
    better = [dataclasses.replace(s, dice=1.0) for s in SCORES]
    matrix = site_matrix.site_matrix({"first": SCORES, "second": better})
    assert matrix["sites"] == ["a", "b"]
    assert matrix["models"]["first"] == {"sites": {"a": pytest.approx(0.5), "b": 0.5}, "mean": pytest.approx(0.5)}
    assert matrix["models"]["second"] == {"sites": {"a": 1.0, "b": 1.0}, "mean": 1.0}
    assert matrix["cases"] == 3
    site_matrix.write(matrix, tmp_path)
    assert (tmp_path / "site_matrix.csv").read_text().splitlines()[0] == "model,a,b,mean"


@pytest.mark.parametrize(
    "other",
    [
        SCORES[:4],
        [dataclasses.replace(s, tolerance_mm=2.0) for s in SCORES],
        [dataclasses.replace(s, case="x") for s in SCORES],
    ],
)
def test_models_scored_on_other_cases_are_not_compared(other: list[CaseScore]) -> None:
    with pytest.raises(InputError, match="second was not scored on the cases"):
        site_matrix.site_matrix({"first": SCORES, "second": other})


def test_unknown_metric_and_empty_matrix_are_refused() -> None:
    with pytest.raises(InputError, match="'iou' is unknown"):
        site_matrix.site_matrix({"first": SCORES}, "iou")
    with pytest.raises(InputError, match="at least one model"):
        site_matrix.site_matrix({})


class FixedReader:
    """Stands in for the label reader: label maps by case name."""

    def __init__(self, maps: dict[str, np.ndarray]) -> None:
        self._maps = maps

    def labels(self, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
        return self._maps[path.name.removesuffix(".png")], (1.0, 1.0, 1.0)


def constant_dice(maps: dict[str, np.ndarray], training: list[str], evaluated: list[str]) -> dict:
    classes = scored_classes({"labels": {"background": 0, "ball": 1}})
    return best_constant_mask_dice(
        Path(),
        training,
        evaluated,
        classes=classes,
        reader=FixedReader(maps),
        file_ending=".png",  # type: ignore[arg-type]
    )


def test_constant_mask_is_perfect_where_all_masks_are_alike_whatever_their_size() -> None:
    small = np.zeros((1, 8, 8), np.uint8)
    small[:, 2:6, 2:6] = 1
    large = np.kron(small, np.ones((1, 3, 3), np.uint8))
    assert constant_dice({"a": small, "b": small, "c": large}, ["a", "b"], ["c"])["mean"] == 1.0


def test_constant_mask_fails_where_masks_do_not_overlap() -> None:
    left, right = np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8)
    left[:, :, :4], right[:, :, 4:] = 1, 1
    assert constant_dice({"a": left, "b": right}, ["a"], ["b"])["mean"] == 0.0
    # knowing both halves, the best is to fill everything: Dice 2 * 32 / (64 + 32)
    assert constant_dice({"a": left, "b": right}, ["a", "b"], ["a", "b"])["mean"] == pytest.approx(2 / 3)


def test_runs_of_other_folds_are_not_compared(volume_run: TinyRun, photo_run: TinyRun) -> None:
    with pytest.raises(InputError, match="did not train on"):
        site_matrix.check_comparable([volume_run.run, photo_run.run])
