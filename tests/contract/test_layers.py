"""The order of the rooms: base, the journey of the data, the joins, the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import effcompress

ROOT = Path(effcompress.__file__).parent
BASE = [
    "kept_layers",
    "types",
    "errors",
    "algebra",
    "fault",
    "stopping",
    "launcher",
    "processes",
    "injectable",
    "distributed",
    "recompute",
    "isolation",
    "precision",
    "registry",
    "spec",
    "record",
    "answer",
]
"""In import order: each may import those before it."""
JOURNEY = {
    *("recipe", "model", "data", "groups", "measure", "saliency", "selection", "removal"),
    *("sparsity", "train", "checkpoint", "evaluation", "report", "track"),
}
"""Rooms in the order in which data passes through them. None imports another."""
JOINS = ["network", "estimate", "export", "runner", "in_memory", "compare", "commands"]
"""Rooms that put those of the journey together; each may import those before it."""
APART = {("estimate", "export"), ("commands", "compare")}
APART |= {("compare", "in_memory"), ("commands", "in_memory")}
"""Joins of one level."""
TOP = {"cli", "__init__", "__main__"}


def allowed(room: str) -> set[str]:
    """The rooms that ``room`` may import."""
    if room in BASE:
        return {room, *BASE[: BASE.index(room)]}
    if room in JOURNEY:
        return {room, *BASE}
    before = {
        other for other in JOINS[: JOINS.index(room)] if tuple(sorted((room, other))) not in APART
    }
    return {room, *BASE, *JOURNEY, *before, "__version__"}


def imported_rooms(file: Path) -> set[str]:
    """First-level modules of effcompress that a file imports, wherever the import stands."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "effcompress":
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "effcompress" and len(parts) > 1:
                    rooms.add(parts[1])
    return rooms


def test_rooms_import_only_what_lies_below_them() -> None:
    for file in sorted(ROOT.rglob("*.py")):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in TOP:
            continue
        extra = imported_rooms(file) - allowed(room)
        assert not extra, f"{file.relative_to(ROOT)} imports {sorted(extra)}"


def test_every_room_has_a_level() -> None:
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name[0] != "_"}
    assert rooms - {"py.typed"} == {*BASE, *JOURNEY, *JOINS, "cli"}


def test_the_check_sees_a_sideways_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from effcompress.removal.mask import mask\n")
    assert imported_rooms(file) == {"removal"}


def test_the_story_of_a_run_can_be_held_in_mind() -> None:
    files = sorted((ROOT / "runner").glob("**/*.py"))
    assert len(files) <= 22, f"{len(files)} files: which of them has a job of another room?"


def test_no_room_without_a_noun() -> None:
    banned = {"utils", "helpers", "common", "misc", "base", "core"}
    assert not [f for f in ROOT.rglob("*") if f.stem in banned]


def test_architecture_vocabulary_stays_in_model() -> None:
    words = ("q_proj", "k_proj", "down_proj", "embed_tokens", "o_proj")
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] != "model":
            found = [w for w in words if w in file.read_text()]
            assert not found, f"{file.relative_to(ROOT)} says {found}"
