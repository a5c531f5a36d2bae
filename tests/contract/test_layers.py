"""Rooms never import each other: only runner/ (and cli/, which talks to people) may join them."""

from __future__ import annotations

import ast
from pathlib import Path

import effcompress

ROOT = Path(effcompress.__file__).parent
BASE = [
    "architecture",
    "types",
    "errors",
    "fault",
    "inputs",
    "distributed",
    "recompute",
    "registry",
    "spec",
    "kinds",
    "story",
    "now",
    "pulse",
    "live",
    "log",
]  # in import order
TOP = {"runner", "cli", "__init__", "__main__"}


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


def test_rooms_do_not_know_each_other() -> None:
    for file in sorted(ROOT.rglob("*.py")):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in TOP:
            continue
        allowed = {room, *(BASE[: BASE.index(room)] if room in BASE else BASE)}
        extra = imported_rooms(file) - allowed
        name = file.relative_to(ROOT)
        assert not extra, f"{name} imports {sorted(extra)}; only runner/ may join rooms"


def test_the_check_sees_a_sideways_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from effcompress.removal.mask import mask\n")
    assert imported_rooms(file) == {"removal"}


def test_no_room_without_a_noun() -> None:
    banned = {"utils", "helpers", "common", "misc", "base", "core"}
    assert not [f for f in ROOT.rglob("*") if f.stem in banned]


def test_architecture_vocabulary_stays_in_model() -> None:
    words = ("q_proj", "k_proj", "down_proj", "embed_tokens", "o_proj")
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] != "model":
            found = [w for w in words if w in file.read_text()]
            assert not found, f"{file.relative_to(ROOT)} says {found}"
