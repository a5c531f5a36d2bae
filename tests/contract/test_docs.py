"""Docs cannot rot: plugin examples are executed, links lead somewhere, recipes in them check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUGINS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    if "@" in block
]


def test_there_are_examples() -> None:
    assert len(PLUGINS) >= 3


@pytest.mark.parametrize(("page", "block"), PLUGINS)
def test_plugin_examples_register(page: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(block)
    code = (
        "from pathlib import Path\n"
        "from effcompress.registry import REGISTRY\n"
        "before = len(REGISTRY.all())\n"
        "REGISTRY.load_file(Path('example.py'))\n"
        "assert len(REGISTRY.all()) > before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pages_name_commands_that_exist() -> None:
    from typer.main import get_command

    from effcompress.cli import app

    known = set(get_command(app).commands)
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for word in re.findall(r"\beffcompress ([a-z]+)", "\n".join(blocks)):
            assert word in known, f"{page.name}: effcompress {word}"
