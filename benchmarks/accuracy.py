"""The accuracy experiments of docs/results.md, each with the commands that a user would type.

    python benchmarks/accuracy.py skin WORK [--jobs 2] [--seeds 10] [--table methods|ablation|epsilon] [--print]
    python benchmarks/accuracy.py hippocampus WORK --source Task04_Hippocampus --sites sites.csv

WORK gets cohorts, plans, public starts and runs; what is done is kept, so an interrupted experiment goes on when it is called again.
``--print`` shows the commands and runs nothing. Sizes are for two CPU cores, a few minutes a run. For a GPU: edit the table
EXPERIMENTS (width, steps, patches), or take the printed commands and change their options.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

Command = list[str]
METHODS = "local,central,np-fl,dp-fl,adp-fl,paper,paper-dp"
PROJECTION = "projection.dimensions=50;projection.public_gradients=100;projection.refresh_steps=20"
ADAM = "adp-fl:optimizer.name=adam;optimizer.learning_rate=0.003;rounds.optimizer_state=kept"
ABLATION = {
    "percentile": "adp-fl:clipping.method=percentile",
    "auto-s": "adp-fl:clipping.method=auto_s",
    "fixed": "adp-fl:clipping.method=fixed",
    "noise-decay": "adp-fl:noise_decay.plateaus=4;noise_decay.final_ratio=0.5",
    "data-driven": "adp-fl:adaptation.kind=data_driven",
    "k1": "adp-fl:patches_per_unit=1",
    "k4": "adp-fl:patches_per_unit=4",
    "no-average": "adp-fl:optimizer.ema_decay=0",
    "tail-average": "adp-fl:optimizer.tail_share=0.5",
    "sparse-update": "adp-fl:optimizer.keep_fraction=0.1",
    "random-mask": "adp-fl:trainable.random_mask=0.25",
    "decoder-first": 'adp-fl:trainable.phases=[{"until": 0.5, "freeze_patterns": ["encoder.*"]}]',
    "encoder-frozen": 'adp-fl:trainable.freeze_patterns=["encoder.*"]',
    "adam": ADAM,
    "adam-uncorrected": f"{ADAM};optimizer.adam_correction=false",
    "fedprox": "adp-fl:rounds.strategy=fedprox",
    "fedavgm": "adp-fl:rounds.strategy=fedavgm;rounds.server_momentum=0.5;rounds.server_learning_rate=0.5",
    "fedadam": "adp-fl:rounds.strategy=fedadam;rounds.server_learning_rate=0.01",
    "fedbn": "adp-fl:rounds.strategy=fedbn",
    "projection": f"adp-fl:{PROJECTION}",
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A cohort to report on, another one to tune on, and how both are planned.

    Attributes:
        numbers: data set numbers of both.
        plan: options of `adpfl plan` for both.
        epsilon_tuning: of the tuning cohort, whose patients are made up or treated as public: about the noise per weight,
            z / (q N), that the reported cohort has at epsilon 8.
        pretraining_steps: of the public start.
    """

    configuration: str
    numbers: tuple[int, int]
    plan: tuple[str, ...]
    epsilon_tuning: float
    pretraining_steps: int
    base_features: int = 8

    @property
    def plans(self) -> str:
        return f"nnUNetPlans_f{self.base_features}"


EXPERIMENTS = {
    "skin": Experiment("2d", (50, 51), ("--steps", "40", "--sampling-rate", "0.25", "--patches-per-patient", "2"), 8.0, 3000),
    "hippocampus": Experiment(
        "3d_fullres", (40, 41), ("--steps", "100", "--sampling-rate", "0.25", "--patches-per-patient", "2"), 46.0, 2000
    ),
    "ct": Experiment("3d_fullres", (52, 53), ("--steps", "60", "--sampling-rate", "0.25", "--patches-per-patient", "2"), 8.0, 1500),
    "brain": Experiment("3d_fullres", (54, 55), ("--steps", "60", "--sampling-rate", "0.25", "--patches-per-patient", "2"), 8.0, 1500),
}
MADE_UP = {"skin": ("ham10000", "ham10000", 240), "ct": ("kits23", "kits23", 120), "brain": ("brats2024", "brats2024", 120)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--source", type=Path, help="hippocampus: folder of Task04")
    parser.add_argument("--sites", type=Path, help="hippocampus: its table of sites")
    parser.add_argument("--table", choices=("methods", "ablation", "epsilon"), default="methods")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--print", dest="only_print", action="store_true")
    arguments = parser.parse_args()
    chosen = EXPERIMENTS[arguments.experiment]
    work = arguments.work.resolve()
    commands = [
        *_cohorts(arguments.experiment, chosen, work, arguments.source, arguments.sites),
        *_plans(chosen),
        _public_start(chosen, work),
        _comparison(chosen, work, arguments.table, arguments.seeds, arguments.jobs),
    ]
    environment = _environment(work)
    for done, command in commands:
        print(shlex.join(command), "  # done already" if done.exists() else "", flush=True)
        if not (arguments.only_print or done.exists()):
            subprocess.run(command, env=environment, check=True)


def _cohorts(name: str, chosen: Experiment, work: Path, source: Path | None, sites: Path | None) -> list[tuple[Path, Command]]:
    commands = []
    folders = [work / "raw" / f"Dataset{number:03d}_{title}" for number, title in zip(chosen.numbers, ("Reported", "Tuning"), strict=True)]
    if name in MADE_UP:
        generator, converter, cases = MADE_UP[name]
        for seed, number, folder in zip((0, 1000), chosen.numbers, folders, strict=True):
            made = work / f"{name}_{seed}"
            size = ["--cases", str(cases), "--heterogeneity", "0.5", "--seed", str(seed)]
            commands.append((made, ["adpfl", "synth", generator, str(made), *size]))
            title = folder.name.split("_", 1)[1]
            commands.append((folder / "cohort.json", ["adpfl", "convert", converter, str(made), str(number), "--name", title]))
        return commands
    if source is None or sites is None:
        sys.exit("hippocampus needs --source Task04_Hippocampus and --sites sites.csv")
    script = Path(__file__).with_name("hippocampus_cohorts.py")
    commands.append((work / "hippocampus", [sys.executable, str(script), str(source), str(sites), str(work / "hippocampus")]))
    for part, number, folder in zip(("reported", "tuning"), chosen.numbers, folders, strict=True):
        task = work / "hippocampus" / part
        title = folder.name.split("_", 1)[1]
        commands.append((folder / "dataset.json", ["adpfl", "convert", "msd", str(task / source.name), str(number), "--name", title]))
        table = ["--sites", str(task / "sites.csv"), "--unit", "patient", "--overwrite"]
        commands.append((work / f".cohort_{number}", ["adpfl", "cohort", str(number), *table]))
    return commands


def _plans(chosen: Experiment) -> list[tuple[Path, Command]]:
    never = Path("/nonexistent")  # planning again is quick, and keeps what is unchanged
    common = ["-c", chosen.configuration, "--base-features", str(chosen.base_features), "--delta", "1e-4", *chosen.plan]
    epsilons = (8.0, chosen.epsilon_tuning)
    return [
        (never, ["adpfl", "plan", str(number), *common, "--epsilon", str(epsilon)])
        for number, epsilon in zip(chosen.numbers, epsilons, strict=True)
    ]


def _public_start(chosen: Experiment, work: Path) -> tuple[Path, Command]:
    start = work / f"start_{chosen.numbers[0]}.pth"
    command = ["adpfl", "pretrain", str(chosen.numbers[0]), chosen.configuration, str(start), "-p", chosen.plans]
    return start, [*command, "--steps", str(chosen.pretraining_steps)]


def _comparison(chosen: Experiment, work: Path, table: str, seeds: int, jobs: int) -> tuple[Path, Command]:
    reported, tuning = map(str, chosen.numbers)
    command = ["adpfl", "compare", reported, chosen.configuration, "0", "-p", chosen.plans, "--name", table, "--seeds", str(seeds)]
    command += ["--jobs", str(jobs), "--init", str(work / f"start_{chosen.numbers[0]}.pth"), "--curve-cases", "6"]
    if table == "methods":
        command += ["--tune-on", tuning, "--methods", METHODS, "--variant", f"adp-fl-projected=adp-fl:{PROJECTION}"]
        return Path("/nonexistent"), command
    methods_table = work / "results" / f"Dataset{chosen.numbers[0]:03d}_Reported" / "adpfl_compare" / "methods"
    command += ["--tuning", str(methods_table / "tuning.json"), "--methods", "np-fl,dp-fl,adp-fl"]
    return Path("/nonexistent"), command + _variants(table)


def _variants(table: str) -> Command:
    rows: dict[str, str] = ABLATION if table == "ablation" else {}
    if table == "epsilon":
        bases = ("dp-fl", "adp-fl")
        rows = {f"{base}-eps{epsilon}": f"{base}:epsilon={epsilon}" for epsilon in (1, 3) for base in bases}
    return [part for name, setting in rows.items() for part in ("--variant", f"{name}={setting}")]


def _environment(work: Path) -> dict[str, str]:
    found: dict[str, str] = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    for kind in ("raw", "preprocessed", "results"):
        (work / kind).mkdir(parents=True, exist_ok=True)
        found[f"nnUNet_{kind}"] = str(work / kind)
    return found




if __name__ == "__main__":
    main()
