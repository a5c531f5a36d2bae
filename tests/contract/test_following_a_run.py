"""The files that `docs/architecture.md` names from the command line to a cut are there, and each is
called from where the page says.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import effcompress

ROOT = Path(effcompress.__file__).parent
PAGE = ROOT.parent / "docs/architecture.md"
MOST = 14
"""Files that a newcomer should have to read."""
ROW = re.compile(r"^\| (\d+) \| `(\S+)` \| `(\w+)` \| (\d*) ?\|", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """A file of the way, what to read in it, and the number of the row whose file calls that."""

    number: int
    file: str
    name: str
    caller: int | None


def rows() -> list[Row]:
    section = PAGE.read_text().split("## Following a run\n")[1].split("\n## ")[0]
    found = [
        Row(int(number), file, name, int(caller) if caller else None)
        for number, file, name, caller in ROW.findall(section)
    ]
    assert len(found) == section.count("\n| ") - 1, "a row that is not read"  # without the head
    return found


def imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Name in a file -> the module that it is imported from, and its name there."""
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def defined_in(module: str, name: str) -> str:
    """The file, relative to the package, that defines what a module of it offers; one re-export is
    followed.
    """
    path = ROOT / "/".join(module.split(".")[1:])
    if path.is_dir():
        again = imported(ast.parse((path / "__init__.py").read_text()))
        return defined_in(*again[name])
    return str(path.relative_to(ROOT)) + ".py"


def calls(file: str) -> set[tuple[str, str]]:
    """(file, name) of the functions and classes of the package that a file imports and calls."""
    tree = ast.parse((ROOT / file).read_text())
    names = imported(tree)
    called = {
        names[node.func.id]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    }
    return {
        (defined_in(module, name), name)
        for module, name in called
        if module.startswith("effcompress.")
    }


def test_the_way_is_short() -> None:
    found = rows()
    assert [row.number for row in found] == [*range(1, len(found) + 1)]
    assert len({row.file for row in found}) == len(found) <= MOST
    assert found[0].file.startswith("cli/") and found[-1].file == "removal/commit.py"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.file)
def test_each_file_is_called_from_one_before(row: Row) -> None:
    body = ast.parse((ROOT / row.file).read_text()).body
    assert row.name in {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    if row.number == 1:
        assert row.caller is None
        return
    assert row.caller is not None and row.caller < row.number
    assert (row.file, row.name) in calls(rows()[row.caller - 1].file)


def test_another_caller_is_noticed() -> None:
    assert ("selection/choose.py", "choose") not in calls("runner/run.py")
