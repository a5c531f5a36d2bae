"""``torchrun --max-restarts``: one is killed, all start again, and the run goes on by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.test_two_processes import together
from tests.runner.toys import events, recipe, repeatable, weight_files

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

DYING = Path(__file__).with_name("dying.py")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def restarted(path: Path, output: Path, mode: str, processes: int, deaths: str) -> tuple[int, str]:
    """(exit code, what was printed) of ``torchrun``, which starts again as often as one dies."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    again = ["--max-restarts", str(deaths.count(",") + 1), str(DYING), deaths]
    words = ["run", str(path), "--output", str(output), "--resume=auto"]
    done = subprocess.run(
        [sys.executable, *launch, *again, *words, "--set", f"distributed.mode={mode}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=850,
    )
    return done.returncode, done.stdout


def test_four_replicas_add_up_as_before(tmp_path: Path) -> None:
    """Resumed bit for bit: sums of more than two depend on the order of the addends."""
    path, whole, again = recipe(tmp_path), tmp_path / "whole", tmp_path / "again"
    sets = ["save={every: 4, keep: 50, keep_after: 50}"]
    job = {"recipe": path, "set": sets, "bare": True}
    code, said = together([{**job, "output": whole}], tmp_path, 4)
    assert code == 0, said
    again.mkdir()
    for file in ("recipe.yaml", "recipe.resolved.yaml", "metrics.jsonl", "plans.jsonl"):
        shutil.copy(whole / file, again / file)
    shutil.copytree(whole / "checkpoints/step-00000004", again / "checkpoints/step-00000004")
    code, said = together([{**job, "output": again, "resume": True}], tmp_path, 4)
    assert code == 0, said
    for file in ("checkpoints/step-00000020/tensors.safetensors", "plans.jsonl"):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file


@pytest.mark.parametrize(
    ("mode", "processes", "deaths"),
    [("shard", 2, "1:6"), ("replicate", 4, "0:6")],
    ids=["one of two", "the main one of four"],
)
def test_a_killed_process_is_made_up_for(
    tmp_path: Path, mode: str, processes: int, deaths: str
) -> None:
    path, whole, hurt = recipe(tmp_path), tmp_path / "whole", tmp_path / "hurt"
    job = {"recipe": path, "output": whole, "set": [f"distributed.mode={mode}"]}
    code, said = together([job], tmp_path, processes)
    assert code == 0, said
    code, said = restarted(path, hurt, mode, processes, deaths)
    assert code == 0, said
    assert said.count("continuing at step 4,") == 1  # it died behind the sixth
    assert "exitcode: -9" in said
    for file in (*weight_files(whole), "config.json", "plans.jsonl"):
        assert (whole / file).read_bytes() == (hurt / file).read_bytes(), file
    for kind in ("step", "cut", "commit", "evaluation"):
        assert repeatable(events(whole, kind)) == repeatable(events(hurt, kind)), kind
    assert [e["status"] for e in events(hurt, "end")] == ["success"]
