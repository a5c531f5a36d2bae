"""Which rate, and which text, a step of a run learns with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from effcompress import load_recipe, run, train
from effcompress.runner import recovery
from tests.runner.toys import events, plans, recipe


def test_every_step_has_the_rate_of_its_own_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 steps of 128 tokens: two warm up, then half a wave towards a tenth, read where each step
    begins. What is recorded is what the optimizer is given.
    """
    given: list[tuple[float, set[float]]] = []
    update = train.update

    def noted(module: Any, optimizer: Any, spec: Any, rate: float, *more: Any) -> float:
        norm = update(module, optimizer, spec, rate, *more)
        given.append((rate, {group["lr"] for group in optimizer.param_groups}))
        return norm

    monkeypatch.setattr(train, "update", noted)
    rate = "{peak: 1e-2, warmup: 0.2, schedule: cosine, floor: 0.1}"
    sets = ["train.tokens=1280", "prune.schedule={name: once, at: 256}"]
    run(
        load_recipe(recipe(tmp_path), [*sets, f"train.learning_rate={rate}"]), output=tmp_path / "o"
    )
    wave = [1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    expected = [0.5e-2, 1e-2, *wave]
    assert [e["learning_rate"] for e in events(tmp_path / "o", "step")] == pytest.approx(expected)
    assert [rate for rate, _ in given] == pytest.approx(expected)
    assert all(groups == {rate} for rate, groups in given)


def test_a_student_is_compared_with_the_layers_and_channels_that_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], list[int]]] = []

    class Noted(recovery.Distillation):
        def __init__(self, teacher: Any, spec: Any, layers: Any, channels: Any) -> None:
            seen.append((layers, channels.tolist()))
            super().__init__(teacher, spec, layers, channels)

    monkeypatch.setattr(recovery, "Distillation", Noted)
    sets = [
        "model.shape.num_hidden_layers=5",
        "train=null",
        "recover={tokens: 256, batch_size: 4, method: distill, distill: {hidden_weight: 1.0}}",
        "prune.measure={source: calibration, sequences: 3}",
        "prune.schedule={name: once, at: 0}",
        "prune.space=[layer, hidden]",
        "prune.target={shape: {layer: 3, hidden: 28}}",
    ]
    run(load_recipe(recipe(tmp_path, criterion="magnitude"), sets), output=tmp_path / "out")
    gone: dict[str, list[int]] = {}
    for line in plans(tmp_path / "out"):
        for name, units in line["plan"].items():
            gone.setdefault(name, []).extend(units)
    kept = tuple(i for i in range(5) if f"layer.{i}" not in gone)
    assert len(kept) == 3 and kept != (0, 1, 2), "the toy should lose a layer in front of another"
    assert seen == [(kept, [c for c in range(32) if c not in gone["hidden"]])]
