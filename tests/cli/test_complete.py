"""What shells complete: commands, options, kinds and names of plugins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from effcompress.cli.complete import complete_kind, complete_plugin


def completed(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    line = {"COMP_WORDS": " ".join(["effcompress", *words]), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, **line, "_EFFCOMPRESS_COMPLETE": "complete_bash"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = "from effcompress.cli import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("pl",), {"plan", "plugins"}),
        (("plugins", "show", "taylor_s"), {"taylor_second"}),
        (("new", "st"), {"statistic"}),
        (("run", "--res"), {"--resume"}),
    ],
)
def test_bash_is_offered(words: tuple[str, ...], offered: set[str]) -> None:
    assert {*completed(*words)} == offered


def test_names_that_kinds_share_come_with_their_kind() -> None:
    offered = [name for name, _ in complete_plugin("")]
    assert len(offered) == len({*offered}) > 60
    assert {"criterion/magnitude", "sparsifier/magnitude"} <= {*offered} and "taylor" in offered
    assert dict(complete_plugin("criterion/taylor_s")).keys() == {"criterion/taylor_second"}
    assert all(said for _, said in complete_plugin("taylor"))
    assert complete_kind("re") == ["reduction", "refit", "repair"]
