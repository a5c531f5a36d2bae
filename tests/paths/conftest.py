"""An empty home, and a command line that fails where a command does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from effcompress.cli import main
from tests.runner.toys import recipe

ROOT = Path(__file__).parents[2]
TINY = {"bench": ["--prompt", "8", "--new", "4", "--repeats", "1"], "eval": []}
"""What a toy needs beside the words of a page: it is over before it is measured."""


def lines(page: str, *verbs: str) -> list[str]:
    """The commands of a page that begin with `effcompress VERB`, without comments."""
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    found = [shlex.join(shlex.split(line, comments=True)) for line in joined.splitlines()]
    return [line for line in found if line.startswith(tuple(f"effcompress {v} " for v in verbs))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; home and cache are empty, and no hub is asked."""
    for name in ("HOME", "XDG_CACHE_HOME", "EFFCOMPRESS_CACHE", "HF_HOME"):
        (tmp_path / "home" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def type_in(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types a command line; returns what it prints, in at most 80 columns."""

    def typed(line: str, code: int = 0) -> str:
        words = shlex.split(line)[1:]
        with pytest.raises(SystemExit) as ended:
            main([*words, *TINY.get(words[0], [])])
        said = capsys.readouterr()
        assert ended.value.code == code, f"{line}: {said.err}"
        return said.out + said.err

    return typed


@pytest.fixture
def quickstart(home: Path, type_in: Callable[..., str]) -> str:
    """`runs/quickstart`, as far as pages read it: the toy recipe under that name. Returns what the
    run printed.
    """
    (home / "recipes").mkdir()
    text = recipe(home / "recipes").read_text().replace("name: toy", "name: quickstart")
    text = re.sub(r"space: .*", "space: [{name: ffn, scope: lockstep}]", text)
    text = text.replace("keep: 70%", "keep: 90%").replace("groups: 1", "groups: 4")
    (home / "recipes" / "quickstart.yaml").write_text(text)
    return type_in("effcompress run recipes/quickstart.yaml")
