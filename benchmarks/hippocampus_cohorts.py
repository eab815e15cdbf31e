"""Part the Hippocampus set (Medical Segmentation Decathlon, Task04) by person into a cohort to report on and one to tune on.

    python benchmarks/hippocampus_cohorts.py Task04_Hippocampus sites.csv OUT
    adpfl convert msd OUT/reported/Task04_Hippocampus 40 && adpfl cohort 40 --sites OUT/reported/sites.csv --unit patient
    adpfl convert msd OUT/tuning/Task04_Hippocampus 41 && adpfl cohort 41 --sites OUT/tuning/sites.csv --unit patient

Cases 2k-1 and 2k are almost surely the two sides of one person (docs/explorations.md), so they stay together. One person in four of
every site goes to the tuning cohort.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

TUNING_SHARE = 0.25
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("sites", type=Path, help="CSV with the columns case and site")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with arguments.sites.open(newline="") as file:
        site_of = {row["case"]: row["site"] for row in csv.DictReader(file)}
    tuning = _tuning_persons(site_of)
    for name, wanted in (("reported", False), ("tuning", True)):
        cases = {case: site for case, site in site_of.items() if (_person(case) in tuning) == wanted}
        _write(arguments.source, arguments.out / name, cases)
        print(f"{name}: {len(cases)} cases of {len({_person(case) for case in cases})} persons")


def _person(case: str) -> str:
    return f"person_{(int(case.rsplit('_', 1)[1]) + 1) // 2:03d}"


def _tuning_persons(site_of: dict[str, str]) -> set[str]:
    persons: dict[str, set[str]] = defaultdict(set)
    for case, site in site_of.items():
        persons[site].add(_person(case))
    draw = random.Random(SEED)
    return {person for site in sorted(persons) for person in draw.sample(sorted(persons[site]), round(TUNING_SHARE * len(persons[site])))}


def _write(source: Path, folder: Path, cases: dict[str, str]) -> None:
    task = folder / source.name
    for part in ("imagesTr", "labelsTr"):
        (task / part).mkdir(parents=True, exist_ok=True)
        for case in cases:
            shutil.copyfile(source / part / f"{case}.nii.gz", task / part / f"{case}.nii.gz")
    description = json.loads((source / "dataset.json").read_text())
    description["training"] = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in sorted(cases)
    ]
    description["numTraining"] = len(cases)
    (task / "dataset.json").write_text(json.dumps(description, indent=2))
    with (folder / "sites.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "site", "patient"])
        writer.writerows([case, site, _person(case)] for case, site in sorted(cases.items()))


if __name__ == "__main__":
    main()
