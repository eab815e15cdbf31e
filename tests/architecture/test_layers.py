"""Imports go down only (design, section 4), so that the privacy core can be read, and audited, without the rest."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from source_imports import PACKAGE, files, folder_of, graph, imports, own

FLOORS = {
    "": 0,  # modules at the root: errors, files, folders, cohort, folds, progress
    "privacy": 1,
    "nnunet_compat": 2,
    "procedural": 2,
    "trainers": 2,
    "dataset_conversion": 2,
    "evaluation": 2,
    "federation": 3,
    "pretraining": 3,
    "experiments": 4,
    "cli": 5,
}
FEET_OF_FLOOR_2 = ("nnunet_compat", "procedural")  # nnU-Net's names, then generated images: what the rest of the floor needs
LEAVES_OF_PRIVACY = {"sampling", "clipping", "noise", "accounting"}
JOIN_OF_PRIVACY = "mechanism"
EDGES = [(file, target) for file, targets in graph().items() for target in sorted(targets)]


def test_every_folder_has_a_floor() -> None:
    assert {folder_of(file) for file in files()} == set(FLOORS)


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_imports_go_down_only(folder: str) -> None:
    wrong = []
    for file, target in EDGES:
        source, aim = folder_of(file), folder_of(target)
        if source != folder or aim == source:
            continue
        feet = FEET_OF_FLOOR_2[: FEET_OF_FLOOR_2.index(source)] if source in FEET_OF_FLOOR_2 else FEET_OF_FLOOR_2
        if FLOORS[aim] >= FLOORS[source] and not (FLOORS[aim] == FLOORS[source] and aim in feet):
            wrong.append(f"{file} imports {target}")
    assert not wrong


def test_no_import_goes_in_a_circle() -> None:
    """Also those inside functions: a circle that is hidden there is one all the same."""
    known, finished = graph(), set()

    def visit(file: Path, path: tuple[Path, ...]) -> None:
        assert file not in path, " -> ".join(map(str, (*path[path.index(file) :], file)))
        if file not in finished:
            for target in sorted(known[file]):
                visit(target, (*path, file))
            finished.add(file)

    for file in sorted(known):
        visit(file, ())


def test_rule_07_privacy_knows_no_nnunet_and_no_federation() -> None:
    allowed = {Path(name) for name in ("errors.py", "atomic_files.py", "json_files.py", "tensor_files.py")}
    for file in files():
        if folder_of(file) != "privacy":
            continue
        for found in imports(file):
            assert found.module.split(".")[0] not in ("nnunetv2", "batchgenerators", "batchgeneratorsv2", "flwr"), file
            target = own(found)
            assert target is None or folder_of(target) == "privacy" or target in allowed, f"{file} imports {target}"


def test_rule_09_sampling_clipping_noise_and_accounting_meet_in_the_mechanism_alone() -> None:
    def names(file: Path) -> set[str]:
        return {target.stem for target in graph()[file] if folder_of(target) == "privacy"} & LEAVES_OF_PRIVACY

    for leaf in LEAVES_OF_PRIVACY:
        assert not names(Path("privacy") / f"{leaf}.py"), leaf
    joins = {file for file in files() if folder_of(file) == "privacy" and {"sampling", "noise"} <= names(file)}
    assert joins == {Path("privacy") / f"{JOIN_OF_PRIVACY}.py"}
    assert names(Path("privacy") / f"{JOIN_OF_PRIVACY}.py") == LEAVES_OF_PRIVACY


@pytest.mark.parametrize("leaf", ["sampling", "noise"])
def test_rule_02_nobody_draws_or_adds_noise_around_the_mechanism(leaf: str) -> None:
    """Randomness itself (`SecretRandomness`) is handed in from outside; the functions that use it are not."""
    functions = {"sampling": "poisson_draw", "noise": "add_gaussian_"}
    users = {found.file for file in files() for found in imports(file) if found.name == functions[leaf]}
    assert users == {Path("privacy") / f"{JOIN_OF_PRIVACY}.py"}


def test_rule_15_tensors_are_read_from_files_in_one_place() -> None:
    """And there without executing anything: one loader to look at, no fallback anywhere."""
    loaders = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "torch.load(" in path.read_text(encoding="utf-8")}
    assert loaders == {"tensor_files.py"}
    text = (PACKAGE / "tensor_files.py").read_text(encoding="utf-8")
    assert text.count("torch.load(") == text.count("weights_only=True)") == 1


def test_pretraining_knows_no_data_set_and_no_made_up_cohort() -> None:
    """Its images must owe nothing to a patient, nor to the cohorts that results are shown on."""
    own_files = [file for file in files() if folder_of(file) in ("pretraining", "procedural")]
    waiting, reached = list(own_files), set()
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += graph()[file]
    assert not [str(file) for file in reached if folder_of(file) == "dataset_conversion"]
    direct = {str(target) for file in own_files for target in graph()[file]}
    assert not direct & {"cohort.py", "folds.py", "nnunet_compat/patches.py", "trainers/patient_loader.py"}


def test_only_the_compatibility_folder_and_the_trainers_touch_nnunet() -> None:
    users = {found.file for file in files() for found in imports(file) if found.module.split(".")[0] == "nnunetv2"}
    assert {str(user) for user in users} == {
        "nnunet_compat/patch_format.py",
        "nnunet_compat/patches.py",
        "nnunet_compat/planning.py",
        "nnunet_compat/prediction.py",
        "nnunet_compat/training.py",
        "trainers/nnUNetTrainerADP.py",
    }


def test_the_folder_that_nnunet_scans_only_re_exports() -> None:
    """Every file in it is imported by nnU-Net until a trainer is found, and then forgotten: no code may live there."""
    found = [file for file in files() if file.parts[:2] == ("trainers", "discovery")]
    assert len(found) == 1
    body = ast.parse((PACKAGE / found[0]).read_text()).body
    assert isinstance(body[0], ast.Expr)
    assert all(isinstance(node, ast.ImportFrom) for node in body[1:-1])
    assert isinstance(body[-1], ast.Assign)
    assert ast.unparse(body[-1].targets[0]) == "__all__"


def test_engines_carry_messages_and_nothing_else() -> None:
    """`rounds` works with any of them."""
    assert not any("engines/in_process" in str(target) for target in graph()[Path("federation/rounds.py")])
    assert not any("rounds" in str(target) for file in files() if "engines" in file.parts for target in graph()[file])


def test_importing_the_package_and_its_command_loads_nothing_heavy() -> None:
    code = "import sys, nnunet_adpfl, nnunet_adpfl.cli.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "nnunetv2", "numpy", "scipy", "pandas", "matplotlib", "opacus", "dp_accounting"} & set(loaded)


def test_tests_name_no_path_of_a_machine() -> None:
    for path in PACKAGE.parent.joinpath("tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(f'"{place}/' in text for place in ("/work", "/home", "/root", "/Users", "/tmp")), path
