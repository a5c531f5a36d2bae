"""Parameters shared out over two processes (FSDP2): the same run as one process makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.errors import RecipeError
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.forecast import Launch, plan
from tests.distributed.test_two_processes import (
    OBS,
    ONCE,
    assert_same_run,
    losses,
    together,
    weights_of,
)
from tests.runner.toys import events, plans, recipe

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

SHARD = ["distributed.mode=shard"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


def test_sixty_steps_with_cuts_of_all_kinds(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=7680, schedule="{name: continuous, every: 2}")
    adam = ["prune.criterion=taylor_second", "prune.hessian=adam"]
    cases = {
        "a": [],
        "b": OBS,
        "accumulated": [*adam, "train.micro_batch_size=1", "train.recompute=true"],
    }
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
        assert_same_run(one, two)
        for before, after in zip(events(one, "evaluation"), events(two, "evaluation"), strict=True):
            for domain, found in before["domains"].items():
                other = after["domains"][domain]
                assert other["loss"] == pytest.approx(found["loss"], abs=1e-4)
                assert other["tokens"] == found["tokens"]
        norms = [[e["grad_norm"] for e in events(f, "step")] for f in (one, two)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_layers(tmp_path: Path) -> None:
    """Replicated and sharded, with commits in between. Graphs are made as ever, but run without the
    C++ compiler, which takes most of a minute in each process (`tests/runner/test_compiled.py` has
    it).
    """
    path = recipe(tmp_path, tokens=1280, schedule="{name: continuous, every: 1, groups: 2}")
    sets = ["prune.target={keep: 90%}", "prune.commit_every=4"]
    run(load_recipe(path, sets), output=tmp_path / "one")
    code = [*sets, "train.compile=true"]
    cases = {"replicas": code, "shares": [*code, *SHARD, "train.recompute=true"]}
    backends = {"replicas": "eager", "shares": "aot_eager"}
    jobs = [
        {"recipe": path, "output": tmp_path / n, "set": s, "backend": backends[n]}
        for n, s in cases.items()
    ]
    status, said = together(jobs, tmp_path)
    assert status == 0, said
    for name in cases:
        assert plans(tmp_path / name) == plans(tmp_path / "one"), name
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-4), name
        assert len(events(tmp_path / name, "commit")) > 1
        assert events(tmp_path / name, "compiled")[-1]["graphs"] <= 2, name


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([*ONCE, "prune.search={}"], "shard: prune.search needs the whole model"),
        (
            [*ONCE, "prune.allocation=dynamic_program", "prune.selector=null"],
            "shard: prune.allocation needs",
        ),
    ],
)
def test_what_needs_the_whole_model_is_refused(tmp_path: Path, sets: list[str], says: str) -> None:
    path = recipe(tmp_path)
    load_recipe(path, [*SHARD])
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(path, [*sets, *SHARD])
    assert caught.value.fix


def test_zeros_are_those_of_one_process(tmp_path: Path) -> None:
    """By every method; held in the training behind them, by a resumed run, too."""
    sets = ["prune=null", "train.tokens=1024", "save.every=2"]
    path = recipe(tmp_path)
    cases = {
        "magnitude": "{method: magnitude, sparsity: 50%, skip_layers: [0]}",
        "wanda": "{method: wanda, pattern: 2:4, sequences: 3}",
        "sparsegpt": "{method: sparsegpt, sparsity: 50%, sequences: 5, true_sequential: true}",
    }
    every = {name: [*sets, f"sparsify={text}"] for name, text in cases.items()}
    for name, each in every.items():
        run(load_recipe(path, each), output=tmp_path / f"one_{name}")
    jobs = [
        {"recipe": path, "output": tmp_path / n, "set": [*s, *SHARD], "bare": True}
        for n, s in every.items()
    ]
    stopped = {**jobs[0], "output": tmp_path / "stopped"}
    jobs += [{**stopped, "asked": 3}, {**stopped, "resume": True}]
    _, said = together(jobs, tmp_path)
    for rank in (0, 1):
        assert f"process {rank}: by SIGTERM behind step 3, with a checkpoint" in said, said
    for name in (*every, "stopped"):
        one = tmp_path / f"one_{'magnitude' if name == 'stopped' else name}"
        (alone,), (shared,) = events(one, "sparsify"), events(tmp_path / name, "sparsify")
        assert shared["layers"] == alone["layers"] and shared["zeroed"] == alone["zeroed"] > 0
        assert len(losses(tmp_path / name)) == 8
        assert losses(tmp_path / name) == pytest.approx(losses(one), abs=1e-4), name
        (end,) = [e for e in events(tmp_path / name, "end") if e["status"] == "success"]
        assert end["zeroed"] == alone["zeroed"]
        found, expected = weights_of(tmp_path / name), weights_of(one)
        for param, weight in expected.items():
            assert torch.equal(found[param] == 0, weight == 0), (name, param)
            torch.testing.assert_close(found[param], weight, atol=1e-4, rtol=0, msg=param)


def test_calibration_in_bf16_is_that_of_one_process(tmp_path: Path) -> None:
    """Gradients, and both models' layers for a refit."""
    sets = [*ONCE, "prune.criterion=taylor", "prune.refit={name: least_squares, damp: 0.1}"]
    sets += ["prune.measure.refit_sequences=4", "prune.measure.precision=bf16", "train=null"]
    path = recipe(tmp_path)
    run(load_recipe(path, sets), output=tmp_path / "one")
    jobs = [
        {"recipe": path, "output": tmp_path / "replicated", "set": sets},
        {"recipe": path, "output": tmp_path / "sharded", "set": [*sets, *SHARD]},
    ]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    expected = weights_of(tmp_path / "one")
    for name in ("replicated", "sharded"):
        assert plans(tmp_path / name) == plans(tmp_path / "one")
        assert [e["precision"] for e in events(tmp_path / name, "calibration")] == ["bf16"] * 2
        for param, weight in weights_of(tmp_path / name).items():
            # A sum in another order may turn one of the roundings to bf16 in later layers.
            torch.testing.assert_close(weight, expected[param], atol=1e-3, rtol=0, msg=param)


def test_plan_of_shares(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=7680)
    whole = plan(load_recipe(path, SHARD), Launch(1)).data
    both, each = (plan(load_recipe(path, s), Launch(2)).data for s in ([], SHARD))
    assert whole["memory_bytes"] == plan(load_recipe(path), Launch(1)).data["memory_bytes"]
    for phase in ("update", "cut"):
        for part in ("weights", "moments", "gradients"):
            half = both["memory_bytes"][phase][part] / 2
            assert each["memory_bytes"][phase][part] == half, (phase, part)
        assert each["memory_bytes"][phase]["buckets"] == 0
    passes = each["memory_bytes"]["backward"]
    layers_and_more = 4 * each["params"]  # a toy of two layers is whole at a time
    assert passes["gathered"] in (layers_and_more, 2 * layers_and_more)
    assert each["memory_bytes"]["checkpoint"]["gathered"] == 0
    loading, export = each["memory_bytes"]["loading"], each["memory_bytes"]["export"]
    assert loading["weights"] == whole["memory_bytes"]["loading"]["weights"] / 2
    assert export["weights"] == both["memory_bytes"]["export"]["weights"] / 2
    # 258 tokens of 32 channels are the largest parameter; cut models' are smaller.
    assert loading["gathered"] == 4 * 258 * 32
    assert 0 < export["gathered"] <= passes["gathered"]
    file = plan(load_recipe(path, [*SHARD, "export.gguf=F32"]), Launch(2)).data["memory_bytes"]
    assert file["export"]["gathered"] == 2 * file["export"]["weights"]
    said = each["communicated_bytes"]
    assert said["step"]["gradients"] == said["step"]["weights"] >= 4 * each["params"]
    assert "checkpoint" not in said


def test_plan_of_a_sharded_teacher(tmp_path: Path) -> None:
    """Its rows and those of the updates are divided; its layers are gathered for its forward."""
    sets = ["train=null", "prune.measure={source: training}", "prune.criterion=magnitude"]
    sets += ["prune.schedule={name: once, at: 0}", "prune.repair=[]", "save.background=true"]
    both = "recover={tokens: 512, batch_size: 4, method: lora, lora: {rank: 2}, distill: {}}"
    path = recipe(tmp_path)
    found = sized_model(load_recipe(path, [*sets, both]))
    assert found is not None
    whole, each = (plan(load_recipe(path, [*sets, both, *s]), Launch(2)).data for s in ([], SHARD))
    for phase in ("backward", "update", "checkpoint"):
        assert whole["memory_bytes"][phase]["teacher"] == 2 * found.start  # in bf16
        assert each["memory_bytes"][phase]["teacher"] == found.start
        for part in ("moments", "gradients"):
            half = whole["memory_bytes"][phase][part] / 2
            assert each["memory_bytes"][phase][part] == half, (phase, part)
    for phase in ("cut", "evaluation", "export"):
        assert whole["memory_bytes"][phase]["teacher"] == 0, "loaded behind the cut, then gone"
    # What is written, read back and copied aside are weights, updates and moments.
    held = whole["memory_bytes"]["checkpoint"]
    aside = held["weights"] + held["moments"] + held["saliency"]
    assert held["saving"] == held["working"] == aside
    step = each["communicated_bytes"]["step"]
    # [258, 32] and the layers in bf16, once a micro-batch; rows of all parameters halve evenly.
    assert step["teacher's weights"] == found.start
    assert step["gradients"] < step["weights"] / 2
