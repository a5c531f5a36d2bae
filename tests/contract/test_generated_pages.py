"""The committed pages are the ones that the code generates, and they are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import effcompress
from effcompress.injectable import COMPANION_INPUTS, INPUTS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "option"),
    [("reference.md", "--markdown"), ("injected.md", "--injected"), ("api.md", "--api")],
)
def test_page_is_current(page: str, option: str) -> None:
    # In a process of its own: other tests register plugins of theirs.
    command = [sys.executable, "-m", "effcompress", "schema", option]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (DOCS / page).read_text(encoding="utf-8") == done.stdout, (
        f"run: effcompress schema {option} > docs/{page}"
    )


def test_everything_that_is_injected_is_on_the_page() -> None:
    text = (DOCS / "injected.md").read_text("utf-8")
    parts = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    for kind, names in INPUTS.items():
        rows = re.findall(r"^\| `(\w+)` \|", parts[f"@{kind}"], flags=re.M)
        assert rows == [*names], kind
    for kind, names in COMPANION_INPUTS.items():
        first, second = kind.split(".")
        rows = re.findall(r"^\| `(\w+)` \|", parts[f"{second} of @{first}"], flags=re.M)
        assert rows == [*names], kind
    assert len(parts) == len(INPUTS) + len(COMPANION_INPUTS) + 1


def test_every_kind_is_on_the_page_of_plugins() -> None:
    text = (DOCS / "plugins.md").read_text("utf-8")
    assert {kind for kind in INPUTS if f"`@{kind}`" not in text} == set()
    shown = {kind for kind in INPUTS if re.search(rf"^@{kind}\(", text, flags=re.M)}
    assert set(INPUTS) - shown <= {"hessian", "space", "repair"}, "kinds without an example"


def test_every_public_name_is_on_the_page_with_words() -> None:
    text = (DOCS / "api.md").read_text("utf-8")
    parts = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", text, flags=re.M | re.S))
    assert set(parts) == {n for n in effcompress.__all__ if not n.startswith("_")}
    assert not [name for name, said in parts.items() if len(said.split()) < 3]
    assert " at 0x" not in text and "<" not in re.sub(
        r"```.*?```|`[^`]*`|&lt;", "", text, flags=re.S
    )
