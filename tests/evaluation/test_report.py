"""The report, the spending curve, and the commands, on fake runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from tiny_run import TinyRun

from nnunet_adpfl.errors import InputError, PrivacyRefusedError
from nnunet_adpfl.evaluation import figures, spending
from nnunet_adpfl.evaluation.report import write_report
from nnunet_adpfl.evaluation.run_evaluation import evaluate_run
from nnunet_adpfl.privacy import accounting
from nnunet_adpfl.privacy.accounting import poisson_gaussian

_KNOWN: dict[tuple, float | None] = {}


@pytest.fixture(autouse=True)
def cross_check_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PRV cross-check takes most of a report's time, and the fake sites all spend alike."""
    original = accounting.epsilon_prv

    def remembered(events: list[dict], delta: float) -> float | None:
        key = (delta, *((e["sampling_rate"], e["noise_multiplier"], e["steps"]) for e in events))
        if key not in _KNOWN:
            _KNOWN[key] = original(events, delta)
        return _KNOWN[key]

    monkeypatch.setattr(accounting, "epsilon_prv", remembered)


class Page(HTMLParser):
    """Text, pictures and links of a page; refuses tags that are closed in the wrong order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.pictures: dict[str, str] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"tags left open: {self._open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "img":
            self.pictures[str(dict(attrs)["alt"])] = str(dict(attrs)["src"])
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_report_of_a_private_run_shows_everything_and_must_not_leave(volume_run: TinyRun) -> None:
    summary = evaluate_run(volume_run.run, mirroring=False)
    page = page_of(write_report(volume_run.run))
    assert "Not for release" in page.text
    assert "declares private" in page.text
    assert "exact losses of training patients" in page.text
    assert f"{summary['mean']['dice']:.3f}" in page.text
    assert f"{summary['sites']['south']['hd95_mm']:.2f}" in page.text
    assert set(page.pictures) == {
        "Dice per site", "north", "south", "Local loss over rounds", "Epsilon spent over rounds", "Clip norm over rounds",
    }  # fmt: skip
    epsilon = accounting.epsilon([poisson_gaussian(0.5, 2.0, 3 * tiny_run.STEPS)], 0.01)
    assert f"ε = {epsilon:.4f}" in page.text
    assert "δ = 0.01" in page.text
    for statement in ("zero_out", "Poisson over units, rate q = 0.5", "noise multiplier 2", "Not covered:", "case_4"):
        assert statement in page.text


def test_report_is_self_contained(volume_run: TinyRun) -> None:
    evaluate_run(volume_run.run, mirroring=False)
    path = write_report(volume_run.run)
    page = page_of(path)
    sources = [value for name, value in page.attributes if name in ("src", "href") and value]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in page.text
    assert path.read_bytes() == write_report(volume_run.run).read_bytes()


def test_release_of_a_private_run_holds_neither_scores_nor_losses_nor_cases(volume_run: TinyRun) -> None:
    evaluate_run(volume_run.run, mirroring=False)
    path = write_report(volume_run.run, for_release=True)
    assert path.name == "report_for_release.html"
    page = page_of(path)
    assert "Not for release" not in page.text
    assert "case_" not in path.read_text()
    assert set(page.pictures) == {"Epsilon spent over rounds", "Clip norm over rounds"}
    assert "mean Dice" not in page.text


def test_release_with_public_validation_keeps_scores_without_losses_and_case_names(photo_run: TinyRun) -> None:
    evaluate_run(photo_run.run, mirroring=False)
    path = write_report(photo_run.run, for_release=True)
    page = page_of(path)
    assert "case_" not in path.read_text()
    assert "Dice per site" in page.pictures
    assert "north" in page.pictures
    assert "Local loss over rounds" not in page.pictures


def test_unevaluated_non_private_and_fold_all_runs_say_so(volume_run: TinyRun) -> None:
    tiny = tiny_run.make(volume_run.base, trainer="nnUNetTrainerNP")
    page = page_of(write_report(tiny.run))
    assert "No privacy guarantee" in page.text
    assert "Not evaluated yet" in page.text
    assert "Epsilon spent over rounds" not in page.pictures
    manifest = json.loads((tiny.run / "run.json").read_text())
    (tiny.run / "run.json").write_text(json.dumps({**manifest, "fold": "all"}))
    assert "No case is held out" in page_of(write_report(tiny.run)).text


def test_scores_of_an_earlier_checkpoint_are_called_old(volume_run: TinyRun) -> None:
    evaluate_run(volume_run.run, mirroring=False)
    assert "Old scores" not in page_of(write_report(volume_run.run)).text
    checkpoint = torch.load(volume_run.run / "checkpoint_final.pth", weights_only=True)
    torch.save({**checkpoint, "current_epoch": 4}, volume_run.run / "checkpoint_final.pth")
    assert "Old scores" in page_of(write_report(volume_run.run)).text


def test_names_are_escaped(volume_run: TinyRun) -> None:
    manifest = json.loads((volume_run.run / "run.json").read_text())
    (volume_run.run / "run.json").write_text(json.dumps({**manifest, "plans": "<script>alert(1)</script>"}))
    assert "<script>" not in write_report(volume_run.run).read_text()


def test_report_works_without_the_raw_images(volume_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_run(volume_run.run, mirroring=False)
    monkeypatch.delenv("nnUNet_raw")
    assert "north" in page_of(write_report(volume_run.run)).pictures


def test_a_damaged_ledger_is_not_reported_over(volume_run: TinyRun) -> None:
    ledger = volume_run.run / "sites" / "north" / "privacy_ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"steps": 2', '"steps": 1'))
    with pytest.raises(PrivacyRefusedError):
        write_report(volume_run.run)
    assert not (volume_run.run / "report.html").exists()


def test_spending_grows_with_rounds_and_ends_at_the_total(volume_run: TinyRun) -> None:
    curves = spending.epsilon_over_rounds(volume_run.run)
    assert set(curves) == {"north", "south"}
    rounds, epsilons = zip(*curves["north"], strict=True)
    assert rounds == (0, 1, 2)
    expected = [accounting.epsilon([poisson_gaussian(0.5, 2.0, tiny_run.STEPS * n)], 0.01) for n in (1, 2, 3)]
    assert epsilons == pytest.approx(expected)
    few = spending.epsilon_over_rounds(volume_run.run, max_points=2)
    assert [number for number, _ in few["north"]] == [0, 2]


def test_overlay_draws_truth_and_prediction() -> None:
    image, mask = np.zeros((20, 20)), np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    nothing = figures.overlay(image, [], [], (1, 1))
    assert len({nothing, figures.overlay(image, [mask], [], (1, 1)), figures.overlay(image, [], [mask], (1, 1))}) == 3
    assert figures.overlay(image, [np.ones((20, 20), bool)], [], (1, 1)) == nothing  # a full mask has no contour inside


def test_commands_print_json_alone_and_the_matrix(
    volume_run: TinyRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_run.make(volume_run.base, trainer="nnUNetTrainerNP", seed=1)
    status, out, _ = command(
        monkeypatch,
        capsys,
        "evaluate",
        volume_run.run,
        "--no-mirroring",
        "--device",
        "cpu",
        "--matrix-with",
        other.run,
        "--json",
    )
    assert status == 0
    result = json.loads(out)
    assert result["cases"] == 2
    assert [name.split("__")[0] for name in result["matrix"]["models"]] == ["nnUNetTrainerADP", "nnUNetTrainerNP"]
    assert (other.run / "metrics.csv").is_file()
    status, out, _ = command(monkeypatch, capsys, "report", volume_run.run, "--json")
    assert "Every model at every site" in page_of(Path(json.loads(out)["report"])).text
    status, out, _ = command(monkeypatch, capsys, "evaluate", volume_run.run, "--no-mirroring", "--device", "cpu")
    assert status == 0
    for word in ("site north", "class core", "mean", "NSD (1.0 mm)"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "RUN/nowhere"], "run.json"),
        (["evaluate", "RUN", "--device", "tpu"], "--device 'tpu'"),
        (["evaluate", "RUN", "--tolerance-mm", "-1"], "tolerance_mm"),
        (["evaluate", "RUN", "--checkpoint", "none.pth"], "none.pth is missing"),
        (["evaluate", "RUN", "--matrix-with", "RUN"], "a run twice"),
        (["evaluate", "RUN", "--matrix-metric", "iou"], "'iou' is unknown"),
        (["report", "RUN/nowhere"], "run.json"),
    ],
)
def test_bad_input_is_one_line(
    volume_run: TinyRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    before = sorted(volume_run.run.rglob("*"))
    given = [text.replace("RUN", str(volume_run.run)) for text in arguments]
    status, out, error = command(monkeypatch, capsys, *given)
    assert status == 2
    assert out == ""
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(volume_run.run.rglob("*")) == before


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    from nnunet_adpfl.cli.main import main

    monkeypatch.setattr("sys.argv", ["adpfl", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_records_refuse_an_incomplete_manifest(volume_run: TinyRun) -> None:
    (volume_run.run / "run.json").write_text('{"kind": "federated"}')
    with pytest.raises(InputError, match="no dataset"):
        write_report(volume_run.run)
