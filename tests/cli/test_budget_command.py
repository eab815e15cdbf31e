"""``adpfl budget``: figures without data, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workspace import remember_epsilons

from nnunet_adpfl.cli import main
from nnunet_adpfl.experiments import budget as experiment
from nnunet_adpfl.privacy import accounting


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small table; its figures are computed as those of the large one."""
    remember_epsilons()
    monkeypatch.setattr(experiment, "RATES", (0.5,))
    monkeypatch.setattr(experiment, "STEPS", (60, 120))
    monkeypatch.setattr(experiment, "EPSILONS", (8.0,))
    monkeypatch.setattr(experiment, "CURVE_STEPS", (10, 100))
    monkeypatch.setattr(experiment, "CURVE_NOISE", (1.0, 2.0))


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["adpfl", "budget", *options])
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def test_json_has_the_noise_that_keeps_epsilon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--patients", "48", "--sites", "4", "--epsilon", "8", "--epsilon", "3", "--parameters", "10000", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["units"], found["delta"], found["effective_units"]) == ([48] * 4, 1e-4, pytest.approx(96))
    assert [row["epsilon"] for row in found["epsilons"]] == [3.0, 8.0]
    assert sum(row["chosen"] for row in found["table"]) == 1
    for row in found["table"]:
        steps = row["steps"] + max(-(-row["steps"] // 10), 10)
        event = accounting.poisson_gaussian(row["sampling_rate"], row["noise_multiplier"], steps)
        assert 7.95 < accounting.epsilon([event], found["delta"]) <= 8
        expected = row["sampling_rate"] * 96 * row["steps"] ** 0.5 / row["noise_multiplier"]
        assert row["accumulated_signal"] == pytest.approx(expected)
        assert row["signal_to_noise"]["10000"] == pytest.approx(expected / 100)
        assert 0 < row["share_of_best"] <= 1
    assert set(found["choices"]["steps"]) == {"value", "why", "given"}
    assert not {"mirroring", "oversample_foreground"} & set(found["choices"]), "nothing is known of the images"


def test_sites_that_differ_are_counted_as_they_are_weighed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--patients", "56", "--patients", "17", "--patients", "13", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choices"]["rounds.weights"]["value"] == "precision"
    assert found["effective_units"] == pytest.approx((56**2 + 17**2 + 13**2) ** 0.5)
    chosen = next(row for row in found["table"] if row["chosen"])
    a = chosen["sampling_rate"] * found["effective_units"] * chosen["steps"] ** 0.5 / chosen["noise_multiplier"]
    assert chosen["accumulated_signal"] == pytest.approx(a)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_text_and_figure(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"budget.{ending}"
    assert call(monkeypatch, "--patients", "96", "--patients", "30", "--plot", str(path)) == 0
    said = capsys.readouterr().out
    assert "96 + 30 training patients, epsilon 8" in said
    assert said.count("*") >= 2
    assert path.read_bytes()[:4] == (b"\x89PNG" if ending == "png" else b"<?xm")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--patients", "1"], "--patients 1"),
        (["--patients", "100", "--epsilon", "0"], "--epsilon 0"),
        (["--patients", "100", "--epsilon", "nan"], "--epsilon"),
        (["--patients", "100", "--delta", "0.01"], "below 1/N = 1/100"),
        (["--patients", "100", "--delta", "0"], "--delta 0"),
        (["--patients", "100", "--compute", "0"], "--compute 0"),
        (["--patients", "100", "--compute", "10"], "--compute 10"),
        (["--patients", "100", "--parameters", "0"], "--parameters 0"),
        (["--patients", "100", "--patients", "50", "--sites", "2"], "--sites 2"),
        (["--patients", "100", "--sites", "0"], "--sites 0"),
        (["--patients", "100", "--plot", "figure.gif"], ".png or .svg"),
        (["--epsilon", "8"], "--patients"),
    ],
    ids=" ".join,
)
def test_refusals(
    options: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err
    assert len(captured.err.strip().splitlines()) == 1
