"""Two processes, each on its own device, against one: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from effcompress import load_recipe, run
from tests.distributed.test_two_processes import launched, losses, together
from tests.gpu.conftest import SHORT, require_gpus
from tests.runner.toys import events, plans, recipe

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this


def test_two_processes_are_one(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicated and sharded; layers gathered in bf16, which rounds what autocast would not."""
    if device == "cuda":
        require_gpus(2)
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    path = recipe(tmp_path)
    common = [*SHORT, f"device={device}"]
    half = ["train.precision=bf16", "distributed={mode: shard, gather: bf16}"]
    cases = {"replicate": ["distributed.mode=replicate"], "shard": ["distributed.mode=shard"]}
    cases["half"] = half
    for name, sets in {"one": common, "one_half": [*common, *half]}.items():
        run(load_recipe(path, sets), output=tmp_path / name)
    jobs = [
        {"recipe": path, "output": tmp_path / name, "set": [*common, *sets]}
        for name, sets in cases.items()
    ]
    code, said = (launched if device == "cuda" else together)(jobs, tmp_path)
    assert code == 0, said
    for name in ("replicate", "shard"):
        assert plans(tmp_path / name)[0] == plans(tmp_path / "one")[0], name
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-3), name
        assert events(tmp_path / name, "run")[0]["processes"] == 2
        (proof,) = events(tmp_path / name, "proof")
        assert proof["tokens_equal"], name
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "one_half"), abs=0.02)
