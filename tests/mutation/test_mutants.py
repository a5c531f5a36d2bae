"""The list of mutants cannot rot: each applies once, to Python that compiles, and names tests that
exist. Whether they are noticed is for `python -m tests.mutation.run`, by hand and nightly.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
ROOMS = {p.name for p in (ROOT / "effcompress").iterdir() if (p / "__init__.py").is_file()}
WITHOUT = {"spec"}
"""Rooms that hold declarations alone."""


@cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def ids(mutant: Mutant) -> str:
    return f"{mutant.file}-{mutant.why[:40]}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=ids)
def test_it_applies_once_and_names_tests_that_exist(mutant: Mutant) -> None:
    assert text_of(mutant.file).count(mutant.old) == 1, "its old text does not stand there once"
    assert mutant.new != mutant.old
    ast.parse(text_of(mutant.file).replace(mutant.old, mutant.new))
    assert mutant.tests
    for test in mutant.tests:
        file, *names = test.split("::")
        for name in names[:1]:
            called = re.escape(name.partition("[")[0])
            assert re.search(rf"^def {called}\(", text_of(file), re.MULTILINE), test
        assert (ROOT / file).exists(), test


def test_there_are_many_in_every_room() -> None:
    assert len(MUTANTS) >= 150
    rooms = Counter(mutant.room for mutant in MUTANTS)
    assert rooms.keys() >= (ROOMS | {"base"}) - WITHOUT
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
