from __future__ import annotations

from collections.abc import Callable

import pytest

from effcompress.cli import main
from effcompress.registry import REGISTRY
from tests.recipe.toys import registry

Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""


@pytest.fixture
def toys(monkeypatch):
    """The toy plugins in place of the built-in ones."""
    monkeypatch.setattr(REGISTRY, "_plugins", registry()._plugins)
    monkeypatch.setattr(REGISTRY, "_loaded", {"builtins"})


@pytest.fixture
def effcompress(toys, capsys, tmp_path, monkeypatch) -> Callable[..., Said]:
    """Run the real entry point in this process, from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Said:
        with pytest.raises(SystemExit) as exited:
            main(list(words))
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out, err

    return call
