"""Adapt-Pruner between shards of training (Adapt-Accel): every cut against an independent one in
fp64, from the weights that training had left then.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from effcompress import fault, load_recipe, run
from effcompress.errors import RecipeError, RunError
from effcompress.estimate.check import check
from effcompress.runner import prune as prune_module
from tests.runner.test_baselines import FFN, KV, LAYERS, influences, taylor, write_model
from tests.runner.toys import events, texts

RECIPE = """\
name: toy
model: {{folder: model, tokenizer: bytes}}
data:
  sequence_length: 24
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{params: {target}}}
  space: [{{name: attention, scope: per_layer}}, {{name: ffn, scope: per_layer}}]
  criterion: taylor
  selector: {{name: adaptive, amplitude: {amplitude}}}
  measure: {{source: calibration, sequences: 5}}
  schedule: {{name: interleaved, stages: 4, rounds: 2, restart: {restart}}}
  repair: []
  commit_every: 1
train: {{tokens: 960, batch_size: 2, learning_rate: {{peak: 1e-2}}}}
evaluate: {{sequences: 2, new_tokens: 4}}
save: {{every: {every}}}
export: {{form: exact}}
"""
TARGET, AMPLITUDE = 15_000, 0.5
SIZES, PRICES = {"attention": KV, "ffn": FFN}, {"attention": 576, "ffn": 72}
STAGES = 4
SHARDS = [0, 96, 288, 576]
"""960 tokens in shards of 1, 2, 3 and 4 tenths: those behind when stages begin."""


@dataclass
class Seen:
    """What a run measured on: a copy of the model before every cut, and its calibration text."""

    models: list[Any] = field(default_factory=list[Any])
    ids: list[Tensor] = field(default_factory=list[Tensor])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Filled while a run of this process measures."""
    found, measured = Seen(), prune_module.measured

    def listening(state: Any, prune: Any, log: Any) -> Any:
        found.models.append(copy.deepcopy(state.module).double())
        found.ids.append(state.corpus.calibration(prune.measure.sequences, state.recipe.seed))
        return measured(state, prune, log)

    monkeypatch.setattr(prune_module, "measured", listening)
    return found


def write(folder: Path, **changes: Any) -> Path:
    texts(folder)
    write_model(folder)
    path = folder / "toy.yaml"
    values = {"target": TARGET, "amplitude": AMPLITUDE, "restart": "false", "every": 100}
    path.write_text(RECIPE.format(**{**values, **changes}))
    return path


def plans(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "plans.jsonl").read_text().splitlines()]


def adaptive(
    begun: dict[str, int], left: dict[str, int], rates: list[float], params: int, goal: int
) -> dict[str, int]:
    """How many go from where: one after another, the unit whose share of what there was is the
    smallest next to its layer's rate, down to ``goal``.
    """
    left, gone = dict(left), dict.fromkeys(left, 0)
    while params > goal:
        fit = []
        for name in left:
            kind, _, layer = name.partition(".")
            after = params - PRICES[kind]
            if left[name] > 1 and after >= TARGET * 0.995:
                share = (begun[name] - left[name] + 1) / begun[name]
                fit.append((share / rates[int(layer)], name))
        if not fit:
            break
        name = min(fit, key=lambda f: f[0])[1]
        left[name] -= 1
        gone[name] += 1
        params -= PRICES[name.partition(".")[0]]
    return {name: n for name, n in gone.items() if n}


@pytest.mark.parametrize("restart", ["false", "true"])
def test_every_cut_is_that_of_an_independent_computation(
    restart: str, seen: Seen, tmp_path: Path
) -> None:
    run(load_recipe(write(tmp_path, restart=restart)), output=tmp_path / "run")
    made = plans(tmp_path / "run")
    start = events(tmp_path / "run", "run")[0]["params"]
    assert [cut["tokens"] for cut in made] == [t for t in SHARDS for _ in range(2)]
    alive = {f"{kind}.{i}": list(range(n)) for kind, n in SIZES.items() for i in range(LAYERS)}
    begun = {name: len(units) for name, units in alive.items()}
    params, heard = start, []
    for number, (cut, model, ids) in enumerate(zip(made, seen.models, seen.ids, strict=True)):
        stage, turn = divmod(number, 2)
        if restart == "true" and turn == 0:
            begun, heard = {name: len(units) for name, units in alive.items()}, []
        heard.append(influences(model, ids))
        mean = torch.stack(heard).mean(0)
        n = (mean - mean.mean()) / (mean - mean.mean()).abs().max()
        first = start - (start - TARGET) * stage // STAGES
        last = start - (start - TARGET) * (stage + 1) // STAGES
        goal = last if turn else round(first - (first - last) / 2)
        left = {name: len(units) for name, units in alive.items()}
        counts = adaptive(begun, left, (1 - AMPLITUDE * n).tolist(), params, goal)
        scores = taylor(model, ids)
        wanted = {
            name: sorted(alive[name][j] for j in scores[name].argsort()[:count].tolist())
            for name, count in counts.items()
        }
        assert cut["plan"] == wanted, f"cut {number}"
        for name, units in wanted.items():
            alive[name] = [unit for unit in alive[name] if unit not in units]
        params = cut["params"]
    assert abs(params - TARGET) <= 0.005 * TARGET
    assert len({len(alive[f"ffn.{i}"]) for i in range(LAYERS)}) > 1, "all rates were alike"


def test_the_plan_knows_when_it_is_cut(tmp_path: Path) -> None:
    """`plan` follows the same stages: their tokens, and the sizes between them."""
    path = write(tmp_path)
    run(load_recipe(path), output=tmp_path / "run")
    made = plans(tmp_path / "run")
    timeline = check(load_recipe(path)).timeline
    assert timeline is not None
    _, *points, _ = timeline.points
    assert [point.tokens for point in points] == SHARDS
    for point, cut in zip(points, made[1::2], strict=True):
        assert abs(point.params - cut["params"]) <= max(PRICES.values())


@pytest.mark.parametrize("restart", ["false", "true"])
def test_resumed_between_two_cuts_it_is_the_same_run(
    restart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two rounds, it begins the stage again from the newest checkpoint."""
    path = write(tmp_path, restart=restart, every=1)
    run(load_recipe(path), output=tmp_path / "whole")
    monkeypatch.setattr(fault, "_seen", Counter())
    monkeypatch.setenv("EFFCOMPRESS_FAULT", "cut:6:out_of_memory")
    with pytest.raises(RunError):
        run(load_recipe(path), output=tmp_path / "again")
    monkeypatch.delenv("EFFCOMPRESS_FAULT")
    run(load_recipe(path), output=tmp_path / "again", resume=True)
    for name in ("plans.jsonl", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rounds_that_fall_on_the_end_of_the_stage_are_the_schedules(tmp_path: Path) -> None:
    """They are no remainder to be cut at once, with a warning."""
    stages = "train={stages: {pruning: 144, continued: 96}, batch_size: 2}"
    late = ["prune.schedule={name: once, at: 144, rounds: 3}", stages]
    loaded = load_recipe(write(tmp_path), late)
    timeline = check(loaded).timeline
    assert timeline is not None and timeline.reached and timeline.rest == 0
    assert timeline.cuts == 3
    run(loaded, output=tmp_path / "run")
    assert len(plans(tmp_path / "run")) == 3
    assert not events(tmp_path / "run", "warning")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["train=null"], "cuts between shards of training, but there is none"),
        (["prune.schedule.stages=60"], "the last of 60 shards has 31 tokens, an optimizer step 48"),
        (["prune.schedule={name: interleaved, stages: 21, shards: equal}"], "45 tokens"),
        (["train={stages: {warmup: 900, pruning: 96}, batch_size: 2}"], "38 tokens"),
    ],
)
def test_without_training_behind_the_last_cut(more: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(write(tmp_path), more)
    assert caught.value.where
