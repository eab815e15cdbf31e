"""Who imports whom, read from the package's source text; nothing is executed."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "nnunet_adpfl"


@dataclass(frozen=True)
class Import:
    """One imported module (or name of a module) and the file that asks for it.

    Attributes:
        file: relative to the package.
        module: dotted name; ``package.name`` where a name is imported from a package.
        name: the imported name; empty for ``import module``.
    """

    file: Path
    module: str
    name: str


def files() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def folder_of(file: Path) -> str:
    """First folder of a file inside the package; empty for modules at its root."""
    return file.parts[0] if len(file.parts) > 1 else ""


def imports(file: Path) -> Iterator[Import]:
    """All imports of a file, those inside functions too, those for type checkers alone left out."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (Import(file, str(node.module), alias.name) for alias in node.names)


def own(found: Import) -> Path | None:
    """The file of this package that an import asks for; None for other packages."""
    for dotted in (f"{found.module}.{found.name}", found.module):
        first, _, rest = dotted.partition(".")
        if first != PACKAGE.name:
            return None
        base = PACKAGE / Path(*rest.split(".")) if rest else PACKAGE
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path.relative_to(PACKAGE)
    return None


@functools.cache
def graph() -> dict[Path, set[Path]]:
    """File -> files of the package that it imports; importing from a package runs its __init__, which is left out."""
    return {file: {path for found in imports(file) if (path := own(found)) and path.name != "__init__.py"} for file in files()}
