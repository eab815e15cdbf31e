"""The accuracy experiments of docs/results.md, each with the commands that a user would type.

    python benchmarks/accuracy.py skin WORK [--jobs 2] [--seeds 10] [--table methods|ablation|epsilon|sizes|sites] [--print]
        [--starts both|public] [--methods NAME,...]
    python benchmarks/accuracy.py hippocampus WORK --source Task04_Hippocampus --sites sites.csv

WORK gets cohorts, plans, public starts and runs; what is done is kept, so an interrupted experiment goes on when it is called again.
Other tables take the settings that ``methods`` tuned, so it comes first. ``--print`` shows the commands and runs nothing. Sizes are
for two CPU cores, a few minutes a run. For a GPU: edit accuracy_experiments.py (width, steps, patches), or take the printed
commands and change their options.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from accuracy_experiments import ABLATION, BASE, EPSILONS, EXPERIMENTS, WIDTHS, Cohort, Experiment, sizes


@dataclass(frozen=True)
class Step:
    """A command, and the file or folder that shows that it is done; None: it finds out itself what there is to do."""

    command: list[str]
    done: Path | None = None


@dataclass(frozen=True)
class Asked:
    """What of an experiment is wanted."""

    table: str
    starts: str
    seeds: int
    jobs: int

    @property
    def start(self) -> str:
        """What follows a method's name where only the public start is wanted."""
        return "@public" if self.starts == "public" else ""

    def methods(self, names: str) -> str:
        return ",".join(name + self.start for name in names.split(","))

    def variants(self, rows: dict[str, str]) -> list[str]:
        """Options for rows given as name -> ``BASE:settings``."""
        parted = {name: setting.partition(":") for name, setting in rows.items()}
        return [
            part
            for name, (base, colon, settings) in parted.items()
            for part in ("--variant", f"{name}={base}{self.start}{colon}{settings}")
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--source", type=Path, help="hippocampus: folder of Task04")
    parser.add_argument("--sites", type=Path, help="hippocampus: its table of sites")
    parser.add_argument("--table", choices=("methods", "ablation", "epsilon", "sizes", "sites"), default="methods")
    parser.add_argument("--starts", choices=("both", "public"), default="both", help="random and public weights, or public ones alone")
    parser.add_argument("--methods", help="rows of the methods table, instead of the experiment's")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--print", dest="only_print", action="store_true")
    arguments = parser.parse_args()
    chosen, work = EXPERIMENTS[arguments.experiment], arguments.work.resolve()
    if arguments.methods:
        chosen = replace(chosen, methods=arguments.methods, variants={})
    steps = _steps(chosen, work, arguments)
    environment = _environment(work)
    for step in steps:
        is_done = step.done is not None and step.done.exists()
        print(shlex.join(step.command), "  # done already" if is_done else "", flush=True)
        if not (arguments.only_print or is_done):
            subprocess.run(step.command, env=environment, check=True)


def _steps(chosen: Experiment, work: Path, arguments: argparse.Namespace) -> list[Step]:
    asked = Asked(arguments.table, arguments.starts, arguments.seeds, arguments.jobs)
    if asked.table == "sizes":
        return _sizes(chosen, work, asked)
    made = _hippocampus(chosen, work, arguments.source, arguments.sites) if chosen.generator is None else _made_up(chosen, work)
    if asked.table == "sites":
        return [*made, *_leave_one_site_out(chosen, work, asked, arguments)]
    return [*made, *_plans(chosen), _public_start(chosen, chosen.reported, work), Step(_comparison(chosen, work, asked))]


def _made_up(chosen: Experiment, work: Path) -> list[Step]:
    return [step for cohort in (chosen.reported, chosen.tuning) for step in _made_up_cohort(chosen, cohort, work)]


def _made_up_cohort(chosen: Experiment, cohort: Cohort, work: Path) -> list[Step]:
    made = work / cohort.title
    options = ["--cases", str(cohort.cases), "--sites", str(cohort.sites), "--seed", str(cohort.seed), *chosen.generator_options]
    table = ["--sites", str(made / chosen.table_of_sites)] if chosen.table_of_sites else []
    return [
        Step(["adpfl", "synth", str(chosen.generator), str(made), *options], made),
        Step(
            ["adpfl", "convert", str(chosen.generator), str(made), str(cohort.number), "--name", cohort.title, *table],
            work / "raw" / cohort.folder / "cohort.json",
        ),
    ]


def _hippocampus(chosen: Experiment, work: Path, source: Path | None, sites: Path | None) -> list[Step]:
    if source is None or sites is None:
        sys.exit("hippocampus needs --source Task04_Hippocampus and --sites sites.csv")
    script = Path(__file__).with_name("hippocampus_cohorts.py")
    steps = [Step([sys.executable, str(script), str(source), str(sites), str(work / "hippocampus")], work / "hippocampus")]
    for part, cohort in (("reported", chosen.reported), ("tuning", chosen.tuning)):
        steps += _converted_hippocampus(part, cohort, work, source)
    return steps


def _converted_hippocampus(part: str, cohort: Cohort, work: Path, source: Path) -> list[Step]:
    task, number = work / "hippocampus" / part, str(cohort.number)
    converted = work / "raw" / cohort.folder
    table = ["--sites", str(task / "sites.csv"), "--unit", "patient", "--overwrite"]
    return [
        Step(["adpfl", "convert", "msd", str(task / source.name), number, "--name", cohort.title], converted / "dataset.json"),
        Step(["adpfl", "cohort", number, *table]),
    ]


def _plans(chosen: Experiment) -> list[Step]:
    return [
        Step(_plan(chosen, chosen.reported, epsilon=8.0)),
        Step(_plan(chosen, chosen.tuning, epsilon=chosen.epsilon_tuning)),
    ]


def _plan(chosen: Experiment, cohort: Cohort, epsilon: float) -> list[str]:
    width = ["--base-features", str(chosen.base_features)]
    promise = ["--epsilon", str(epsilon), "--delta", "1e-4"]
    return ["adpfl", "plan", str(cohort.number), "-c", chosen.configuration, *width, *promise, *chosen.plan]


def _public_start(chosen: Experiment, cohort: Cohort, work: Path) -> Step:
    """One for all cohorts of the experiment: their plans have the same network and the same patches."""
    start = _start_file(chosen, work)
    command = ["adpfl", "pretrain", str(cohort.number), chosen.configuration, str(start), "-p", chosen.plans]
    return Step([*command, "--steps", str(chosen.pretraining_steps)], start)


def _start_file(chosen: Experiment, work: Path) -> Path:
    return work / f"start_{chosen.reported.number}_f{chosen.base_features}.pth"


def _comparison(chosen: Experiment, work: Path, asked: Asked) -> list[str]:
    command = _compare(chosen, chosen.reported, work, asked.table, asked)
    if asked.table == "methods":
        command += ["--tune-on", str(chosen.tuning.number), "--methods", asked.methods(chosen.methods)]
        return command + asked.variants(chosen.variants)
    return command + _as_tuned(chosen, work, asked) + asked.variants(ABLATION if asked.table == "ablation" else EPSILONS)


def _compare(chosen: Experiment, cohort: Cohort, work: Path, name: str, asked: Asked, fold: int = 0) -> list[str]:
    command = ["adpfl", "compare", str(cohort.number), chosen.configuration, str(fold), "-p", chosen.plans, "--name", name]
    command += ["--seeds", str(asked.seeds), "--jobs", str(asked.jobs)]
    return [*command, "--init", str(_start_file(chosen, work)), "--curve-cases", "6"]


def _as_tuned(chosen: Experiment, work: Path, asked: Asked) -> list[str]:
    """The rows of another table, with the settings that its methods table found."""
    tuned = work / "results" / chosen.reported.folder / "adpfl_compare" / "methods" / "tuning.json"
    return ["--tuning", str(tuned), "--methods", asked.methods(BASE[asked.table])]


def _sizes(chosen: Experiment, work: Path, asked: Asked) -> list[Step]:
    """Cohorts of other sizes and networks of other widths, with the settings that were tuned for the reported one."""
    if chosen.generator is None:
        sys.exit("cohorts of other sizes are made up: choose skin, ct or brain")
    others = [(chosen, cohort) for cohort in sizes(chosen.reported)]
    others += [(replace(chosen, base_features=width), chosen.reported) for width in WIDTHS]
    steps = []
    for experiment, cohort in others:
        steps += [*_made_up_cohort(chosen, cohort, work), *_plans(replace(experiment, reported=cohort))]
        steps.append(_public_start(experiment, cohort, work))
        compared = _compare(experiment, cohort, work, f"sizes_f{experiment.base_features}", asked)
        steps.append(Step(compared + _as_tuned(chosen, work, asked)))
    return steps


def _leave_one_site_out(chosen: Experiment, work: Path, asked: Asked, arguments: argparse.Namespace) -> list[Step]:
    """Hippocampus once more, as a data set whose folds leave out a site in turn; settings as tuned for the methods table."""
    if chosen.generator is not None:
        sys.exit("sites are left out of hippocampus alone")
    cohort = replace(chosen.reported, number=chosen.reported.number + 3, title=f"{chosen.reported.title}Sites")
    steps = [*_converted_hippocampus("reported", cohort, work, arguments.source), Step([*_plan(chosen, cohort, 8.0), "--folds", "sites"])]
    steps.append(_public_start(chosen, cohort, work))
    with arguments.sites.open(newline="") as file:
        number = len({row["site"] for row in csv.DictReader(file)})
    for fold in range(number):
        compared = _compare(chosen, cohort, work, f"sites_{fold}", asked, fold)
        steps.append(Step(compared + _as_tuned(chosen, work, asked)))
    return steps


def _environment(work: Path) -> dict[str, str]:
    found: dict[str, str] = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    for kind in ("raw", "preprocessed", "results"):
        (work / kind).mkdir(parents=True, exist_ok=True)
        found[f"nnUNet_{kind}"] = str(work / kind)
    return found


if __name__ == "__main__":
    main()
