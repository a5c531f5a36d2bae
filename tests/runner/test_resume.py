"""``kill -9`` at any moment, then ``--resume``: the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import warm
from tests.runner.toys import recipe, repeatable

INSIDE = [
    "cut:2",
    "save.tensors:1",
    "commit:1",
    "save.rename:1",
    "save.renamed:1",
    "export:2",
]
"""Where a kill is most likely to leave something half done; with the time it comes there."""
LEASH = "save.tensors:2:hang"
"""Where a run waits that is to be killed at random: on a busy machine the kill may come late, and
the run would have passed what is to be met later."""


def start(path: Path, out: Path, *more: str, fault: str = "") -> BaseProcess:
    """`effcompress run`, from a warm process. What it leaves in its TMPDIR is looked at later."""
    temporary = out.with_suffix(".tmp")
    temporary.mkdir(exist_ok=True)
    environment = {"TMPDIR": str(temporary)}
    if fault:
        environment["EFFCOMPRESS_FAULT"] = fault if fault == LEASH else f"{fault}:kill"
    words = ["run", str(path), "--output", str(out), *more]
    return warm.start(warm.command, words, out=log(out), environment=environment)


def typed(path: Path, out: Path, *more: str) -> int:
    """The same as a user types it, on one thread; its exit code."""
    # The order of sums must not depend on how busy the machine is.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(out.with_suffix(".tmp"))}
    command = [sys.executable, "-m", "effcompress", "run", str(path), "--output", str(out), *more]
    with log(out).open("ab") as file:
        return subprocess.run(command, stdout=file, stderr=file, env=environment).returncode


def log(out: Path) -> Path:
    return out.with_suffix(".log")


def record(out: Path) -> list[dict]:
    """The record without what a clock or the system measured."""
    return repeatable(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))


def shared_memory() -> set[str]:
    place = Path("/dev/shm")
    return {p.name for p in place.iterdir()} if place.is_dir() else set()


def kill_at_random(process: BaseProcess, out: Path, rng: random.Random) -> None:
    """Some time within the next steps."""
    metrics = out / "metrics.jsonl"
    wanted = rng.randrange(1, 5) + (metrics.read_text().count('"grad_norm"') if out.exists() else 0)
    deadline = time.monotonic() + 120
    while process.exitcode is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count('"grad_norm"') >= wanted:
            time.sleep(rng.random() * 0.05)
            break
        time.sleep(0.005)
    process.kill()


@pytest.mark.timeout(900)
def test_kill_and_resume_is_bit_for_bit(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=5120)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    before = shared_memory()
    assert warm.wait(start(path, whole)) == 0, log(whole).read_text()
    seed = os.environ.get("EFFCOMPRESS_KILL_SEED", "7")
    rng = random.Random(seed)
    cut, save, commit, *later = INSIDE
    faults = ["", cut, "", commit, save, "", "", *later]
    for fault in faults:
        more = ["--resume"] if killed.exists() else []
        process = start(path, killed, *more, fault=fault or LEASH)
        if not fault:
            kill_at_random(process, killed, rng)
        code = warm.wait(process)
        assert code in (0, -signal.SIGKILL), log(killed).read_text()
        assert code == -signal.SIGKILL, f"{fault or LEASH} was not reached"
    assert typed(path, killed, "--resume") == 0, log(killed).read_text()
    for name in ("model.safetensors", "plans.jsonl", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert record(whole) == record(killed)
    leftovers = [
        f.name for f in killed.rglob(".*") if f.name.startswith((".writing", ".exporting"))
    ]
    assert leftovers == []
    assert shared_memory() <= before
    left = [p.name for p in killed.with_suffix(".tmp").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")]  # torch's cache


@pytest.mark.timeout(600)
def test_in_the_background_it_is_the_same_run(tmp_path: Path) -> None:
    """Weights are written while training changes them, and while a run is killed."""
    path, whole, killed = recipe(tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert warm.wait(start(path, whole)) == 0, log(whole).read_text()
    more = ["--set", "save.background=true"]
    for fault in ["save.tensors:1", "save.tensors:2", "save.rename:1", "save.renamed:1"]:
        again = ["--resume"] if killed.exists() else []
        process = start(path, killed, *more, *again, fault=fault)
        assert warm.wait(process) == -signal.SIGKILL, f"{fault} was not reached"
    assert warm.wait(start(path, killed, *more, "--resume")) == 0, log(killed).read_text()
    for name in ("model.safetensors", "plans.jsonl", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    # When a checkpoint is there depends on how fast the disk is.
    kept = [[e for e in record(out) if e["event"] != "checkpoint"] for out in (whole, killed)]
    assert kept[0] == kept[1]
    assert not [*(killed / "checkpoints").glob(".writing-*")]
    steps = [sorted(p.name for p in (out / "checkpoints").iterdir()) for out in (whole, killed)]
    assert steps[0] == steps[1]
