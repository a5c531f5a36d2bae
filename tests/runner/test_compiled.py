"""Layers as compiled code: the same run but for rounding, and few graphs whatever is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from effcompress import load_recipe, run, train
from effcompress.errors import RecipeError, RunError
from effcompress.runner import step as runner_compiled
from effcompress.runner.preflight import preflight
from effcompress.train import compiled
from tests.runner.toys import events, plans, recipe

# torch's own, of its older compiler
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

CASES = {
    "A": [],
    "per layer, recomputed": [
        "train.recompute=true",
        "train.micro_batch_size=2",
        "prune.space=[{name: ffn, scope: per_layer}, {name: attention, scope: global}]",
        "prune.target={keep: 80%}",
    ],
}

# One number of heads in all tests: what one of them has compiled, the others find.
EVERY = "{name: continuous, every: 2}"
LITTLE = ["prune.target={keep: 90%}"]
SOON = "{name: continuous, every: 1, groups: 4}"


@pytest.fixture(autouse=True)
def inductor_cache(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES)
def test_the_same_run_with_few_graphs(tmp_path: Path, case: str) -> None:
    path = recipe(tmp_path, tokens=7680, schedule=EVERY, kv=4)
    for name, sets in {"plain": [], "code": ["train.compile=true"]}.items():
        run(load_recipe(path, [*CASES[case], *sets]), output=tmp_path / name)
    plain, code = tmp_path / "plain", tmp_path / "code"
    losses = [[e["loss"] for e in events(folder, "step")] for folder in (plain, code)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    commits = events(code, "commit")
    assert len(commits) >= 5
    assert plans(code) == plans(plain)
    assert not events(plain, "compiled")
    assert [e["graphs"] for e in events(code, "compiled")] == [1]


def test_whoever_listens_is_heard(tmp_path: Path) -> None:
    """Layers are compiled once pruning is over and nobody listens any more."""
    sets = ["prune.repair=[obs_update]", "train.tokens=null", *LITTLE]
    sets += ["train.stages={pruning: 1024, continued: 512}"]
    path = recipe(tmp_path, schedule=SOON, kv=4)
    for name, more in {"plain": [], "code": ["train.compile=true"]}.items():
        run(load_recipe(path, [*sets, *more]), output=tmp_path / name)
    plain, code = tmp_path / "plain", tmp_path / "code"
    assert plans(code) == plans(plain)
    (made,) = events(code, "compiled")
    assert made["step"] == events(code, "cut")[-1]["step"] + 1
    losses = [[e["loss"] for e in events(folder, "step")] for folder in (plain, code)]
    assert losses[0][: made["step"] - 1] == losses[1][: made["step"] - 1]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_run_may_go_on_without(tmp_path: Path) -> None:
    path = recipe(tmp_path, tokens=1024, schedule=SOON, kv=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "update", _fails_at(5))
        with pytest.raises(RuntimeError, match="on purpose"):
            run(load_recipe(path, [*LITTLE, "train.compile=true"]), output=tmp_path / "run")
    run(load_recipe(path, LITTLE), output=tmp_path / "run", resume=True)
    run(load_recipe(path, LITTLE), output=tmp_path / "plain")
    losses = [[e["loss"] for e in events(tmp_path / f, "step")] for f in ("plain", "run")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def _fails_at(step: int) -> Any:
    real, calls = train.update, [0]

    def update(*args: Any, **kwargs: Any) -> float:
        calls[0] += 1
        if calls[0] == step + 1:
            raise RuntimeError("on purpose")
        return real(*args, **kwargs)

    return update


def test_one_graph_too_many_runs_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "GRAPHS", 0)
    monkeypatch.setattr(runner_compiled, "GRAPHS", 0)
    path = recipe(tmp_path, tokens=256, schedule=SOON)
    run(load_recipe(path, [*LITTLE, "train.compile=true"]), output=tmp_path / "run")
    (said,) = [e["text"] for e in events(tmp_path / "run", "warning")]
    assert said == "0 graphs are compiled; layers that fit none of them run uncompiled"


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    loaded = load_recipe(recipe(tmp_path), [*LITTLE, "train.compile=true"])
    with pytest.raises(RecipeError, match=r"train\.compile needs a C\+\+ compiler") as caught:
        preflight(loaded, offline=True)
    assert "train.compile: false" in str(caught.value)


def test_what_cannot_be_compiled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no such instruction")

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda _: broken)
    with pytest.raises(RunError, match=r"layers cannot be compiled: .*no such") as caught:
        run(load_recipe(recipe(tmp_path), [*LITTLE, "train.compile=true"]), output=tmp_path / "run")
    assert "--resume" in str(caught.value)
