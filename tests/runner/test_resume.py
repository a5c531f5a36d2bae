"""``kill -9`` at any moment, then ``--resume``: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runner.toys import recipe, repeatable


def start(path: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "effcompress", "run", str(path), "--output", str(out), *more]
    # One thread for all: the order of sums must not depend on how busy the machine is.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def record(out: Path) -> list[dict]:
    """The record without what a clock or the system measured."""
    return repeatable(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))


@pytest.mark.timeout(600)
def test_kill_and_resume_is_bit_for_bit(tmp_path: Path) -> None:
    path, whole, killed = recipe(tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert start(path, whole).wait() == 0, whole.with_suffix(".log").read_text()
    rng, kills = random.Random(os.environ.get("EFFCOMPRESS_KILL_SEED", "7")), 0
    for _ in range(8):
        process = start(path, killed, *(["--resume"] if killed.exists() else []))
        metrics, wanted = killed / "metrics.jsonl", rng.randrange(2, 19)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            steps = metrics.read_text().count('"grad_norm"') if metrics.exists() else 0
            if steps >= wanted:
                time.sleep(rng.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        if process.wait() == 0:
            break
    if not (killed / "config.json").exists():
        assert start(path, killed, "--resume").wait() == 0, killed.with_suffix(".log").read_text()
    assert kills >= 2
    for name in ("model.safetensors", "plans.jsonl", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert record(whole) == record(killed)
    leftovers = [
        f.name for f in killed.rglob(".*") if f.name.startswith((".writing", ".exporting"))
    ]
    assert leftovers == []
