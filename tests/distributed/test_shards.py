"""Parameters shared out over two processes (FSDP2): the same run as one process makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from tests.distributed.test_two_processes import OBS, logits, losses, plans, together
from tests.runner.toys import events, recipe

SHARD = ["distributed.mode=shard"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


def test_sixty_steps_with_cuts_of_all_kinds(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=7680, schedule="{name: continuous, every: 2}")
    adam = ["prune.criterion=taylor_second", "prune.hessian=adam"]
    cases = {"a": [], "b": OBS, "accumulated": [*adam, "train.micro_batch_size=1"]}
    for name, sets in cases.items():
        run(load_recipe(path, [*sets, *SHARD]), output=tmp_path / f"one_{name}")
    jobs = [
        {"recipe": path, "output": tmp_path / f"two_{n}", "set": [*s, *SHARD]}
        for n, s in cases.items()
    ]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    for name in cases:
        one, two = tmp_path / f"one_{name}", tmp_path / f"two_{name}"
        assert len(losses(two)) == 60
        assert plans(one) == plans(two), name
        kinds = {key.split(".")[0] for line in plans(two) for key in line["plan"]}
        assert kinds == {"attention", "ffn", "hidden"}
        assert losses(two) == pytest.approx(losses(one), abs=1e-4), name
        torch.testing.assert_close(logits(one), logits(two), atol=1e-3, rtol=0)
        for kind in ("evaluation", "commit", "end"):
            assert len(events(one, kind)) == len(events(two, kind))
        for before, after in zip(events(one, "evaluation"), events(two, "evaluation"), strict=True):
            for domain, found in before["domains"].items():
                other = after["domains"][domain]
                assert other["loss"] == pytest.approx(found["loss"], abs=1e-4)
                assert other["tokens"] == found["tokens"]
        norms = [[e["grad_norm"] for e in events(f, "step")] for f in (one, two)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
