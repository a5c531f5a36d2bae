"""Two tasks of ``srun``, known by SLURM's variables alone, are one run over gloo."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.distributed.world import _gpu
from effcompress.errors import RecipeError
from effcompress.launcher import _PORTS, Place
from tests import warm
from tests.runner.toys import events, plans, recipe

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def free_job() -> int:
    """The number of a job whose port is free on this machine."""
    for job in range(len(_PORTS)):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", _PORTS[job])):
                return job
    raise AssertionError("all ports are taken")


def srun(
    *words: str, folder: Path, tasks: int = 2, **variables: str
) -> tuple[list[int], list[str], list[str]]:
    """(exit codes, standard outputs, standard errors) of the tasks of a step."""
    shared = {
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NTASKS": str(tasks),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }
    files = [(folder / f"out-{k}", folder / f"err-{k}") for k in range(tasks)]
    for file in (file for pair in files for file in pair):
        file.unlink(missing_ok=True)
    started = []
    for k, (out, err) in enumerate(files):
        own = {"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}
        environment = {**shared, **own, **variables}
        started.append(warm.start(warm.command, words, out=out, err=err, environment=environment))
    codes = [warm.wait(process) for process in started]
    said, errors = zip(*((o.read_text(), e.read_text()) for o, e in files), strict=True)
    return codes, list(said), list(errors)


def test_tasks_of_srun_are_one_run(tmp_path: Path) -> None:
    """Stopped as by a preemption, started again by the same words, and once more."""
    path, one, two = recipe(tmp_path), tmp_path / "one", tmp_path / "two"
    run(load_recipe(path), output=one)
    words = ("run", str(path), "--output", str(two), "--resume=auto")
    codes, _, errors = srun(*words, folder=tmp_path, EFFCOMPRESS_FAULT="step:6:terminate")
    assert codes == [75, 75], errors
    assert "stopped: by SIGTERM behind step 6, with a checkpoint" in errors[0]
    codes, said, errors = srun(*words, folder=tmp_path)
    assert codes == [0, 0], errors
    assert "report" in said[0] and "perplexity" not in said[1], "rank 0 prints the result"
    assert plans(two) == plans(one)
    assert events(two, "run")[0]["processes"] == 2
    losses = [[e["loss"] for e in events(folder, "step")] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    before = (two / "metrics.jsonl").read_bytes()
    codes, said, _ = srun(*words, folder=tmp_path)
    assert codes == [0, 0] and said[0].startswith("finished") and not said[1]
    assert (two / "metrics.jsonl").read_bytes() == before


def test_contradicting_launchers_end_at_once(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    words = ("run", str(path), "--output", str(tmp_path / "out"))
    codes, _, errors = srun(*words, folder=tmp_path, RANK="2", WORLD_SIZE="3")
    assert codes == [2, 2] and not (tmp_path / "out").exists()
    for said in errors:
        assert "error: $WORLD_SIZE is 3, but srun started 2 tasks" in said
        assert "unset RANK WORLD_SIZE" in said and len(said.splitlines()) <= 3


def test_the_gpu_of_a_process() -> None:
    slurm = Place(3, 4, 1, "tcp://a:1")
    assert _gpu(slurm, 4) == 1
    assert _gpu(slurm, 1) == 0, "--gpus-per-task=1 shows each task its own, as number 0"
    with pytest.raises(RecipeError, match=r"process 1 of this machine .* sees 1"):
        _gpu(Place(1, 2, 1), 1)
    with pytest.raises(RecipeError, match="process 4 of this machine"):
        _gpu(Place(4, 8, 4, "tcp://a:1"), 2)
