"""The table of times: every width is timed, in turns, and drift and outliers do not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.estimate.allocation import widths_by_kind
from effcompress.evaluation import speed
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.runner import latency
from effcompress.runner.latency import (
    Source,
    levels_by_layer,
    measure,
    shaped,
    spread_over,
    table_for,
)
from effcompress.selection.levels import modules_of
from effcompress.spec import WorkloadSpec
from tests.conftest import shape, tiny
from tests.contract.zoo import config_of

WIDTHS = {"attention": (3, 2, 1), "ffn": (40, 24, 16, 8, 4)}


def pruned(**fields: Any) -> PrunedModel:
    space = [
        Bound(REGISTRY.get("space", kind), {"scope": "per_layer"}) for kind in ("attention", "ffn")
    ]
    return PrunedModel(tiny(**fields), shape("gqa_tied", **fields), space)


def source(one: PrunedModel) -> Source:
    return Source(one.module, one.parent, one.config)


def test_models_of_the_table_have_every_width_together() -> None:
    whole = {"attention": 3, "ffn": 40}
    (one, two) = spread_over(WIDTHS, [whole] * 3)
    assert [levels["ffn"] for levels in one + two] == [40, 24, 16, 8, 4, 40]
    assert [levels["attention"] for levels in one + two] == [3, 2, 1, 3, 2, 1]
    (only,) = spread_over(WIDTHS, [whole] * 30)
    assert [levels["ffn"] for levels in only] == [40, 24, 16, 8, 4]


def test_layers_of_several_kinds_have_the_widths_that_they_may_have() -> None:
    """Attention in every other layer, and a last layer that is twice as wide."""
    whole = [{"ffn": 20}, {"attention": 3, "ffn": 20}, {"ffn": 20}, {"attention": 3, "ffn": 40}]
    found = spread_over(WIDTHS, whole)
    assert len(found) == 2  # three widths of attention, two layers
    for levels in found:
        assert [layer.keys() for layer in levels] == [layer.keys() for layer in whole]
        for layer, most in zip(levels, whole, strict=True):
            assert all(width <= most[kind] for kind, width in layer.items())
    for kind, wanted in WIDTHS.items():
        assert {layer[kind] for levels in found for layer in levels if kind in layer} == {*wanted}


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "gpt2", "opt"])
def test_a_shaped_model_has_these_widths(family: str) -> None:
    fields = shape("gqa_tied", model_type=family)
    one = PrunedModel(tiny(model_type=family), fields)
    wide = one.parent.widths
    kv = wide["attention.0"]
    levels = [
        {"attention": kv - 1, "ffn": 24},
        {"attention": 0, "ffn": 40},
        {"attention": kv, "ffn": 0},
    ]
    before = torch.get_rng_state()
    module = shaped(one.config, one.family, levels)
    assert torch.equal(torch.get_rng_state(), before)
    widths = {"attention.0": kv - 1, "ffn.0": 24, "attention_block.1": 0, "mlp_block.2": 0}
    assert sum(p.numel() for p in module.parameters()) == one.parent.count(widths)
    assert module(input_ids=torch.arange(5)[None]).logits.shape[:2] == (1, 5)
    assert levels_by_layer(one.depth, {**wide, **widths}) == levels


class FakeClock:
    """Every reading is ``now``; hooks of a module move it on by what its widths take, times a
    factor for the pass: the machine slows down, and one pass is disturbed.
    """

    def __init__(self, drift: list[float]) -> None:
        self.now, self.drift, self.passes = 0.0, drift, 0

    def __call__(self) -> float:
        return self.now


def test_medians_in_turns_by_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 rounds one takes 50 times as long; a width that seems slower than a larger one does not
    stay so.
    """
    clock = FakeClock([9.0, 1.0, 1.1, 50.0, 0.9, 1.0])
    units = {"attention": 7.0, "ffn": 1.0}

    def write_on(module: Any, prompt: Any, new: int, clock: Any) -> Any:
        turn = min(clock.passes // 3, 5)
        clock.passes += 1
        factor = clock.drift[turn]
        for layer in module.model.layers:
            for kind, part, rows in (
                ("attention", layer.self_attn, layer.self_attn.k_proj.weight.shape[0] // 8),
                ("ffn", layer.mlp, layer.mlp.up_proj.weight.shape[0]),
            ):
                for hook in [*part._forward_pre_hooks.values()]:
                    hook(part, ())
                odd = 100.0 if (kind, rows) == ("ffn", 8) else 0.0
                clock.now += factor * (units[kind] * rows + odd)
                for hook in [*part._forward_hooks.values()]:
                    hook(part, (), None)
        return torch.zeros(0), speed.Timing(500.0 * factor, 0.0)

    monkeypatch.setattr(latency, "write_on", write_on)
    load = WorkloadSpec(batch=1, length=4, rounds=5)
    one = pruned()
    entries, dense = measure(source(one), WIDTHS, load, lambda _: None, clock)
    assert dense == 500.0
    assert entries["attention"] == pytest.approx({3: 21.0, 2: 14.0, 1: 7.0})
    assert entries["ffn"] == pytest.approx({4: 4.0, 8: 108.0, 16: 108.0, 24: 108.0, 40: 108.0})
    assert one.module.training is False


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_real_table_of_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: Any) -> None:
    """Measured, kept in the cache under what it depends on, and read from there."""
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path))
    one = pruned()
    modules = modules_of(one.parent_sets, 0.5)
    load = WorkloadSpec(phase=phase, batch=2, length=6, new=3, rounds=1, threads=1)
    before = torch.get_num_threads(), torch.get_rng_state()
    table, known = table_for(source(one), modules, load, lambda _: None)
    assert not known and table.dense > 0 and set(table.entries["attention"]) == {1, 2, 3}
    assert {m.widths[-1] for m in modules} <= {1} and min(table.entries["ffn"].values()) > 0
    again, known = table_for(source(one), modules, load, lambda _: None)
    assert known and again == table
    other = WorkloadSpec(phase=phase, batch=1, length=6, new=3, rounds=1, threads=1)
    assert not table_for(source(one), modules, other, lambda _: None)[1]
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert table.of["threads"] == 1 and table.of["workload"]["phase"] == phase


@pytest.mark.parametrize("family", ["lfm2", "gemma4_text", "gemma3n_text"])
def test_layers_of_several_kinds_are_timed(family: str) -> None:
    """A convolution in the place of attention, or keys and values of another layer."""
    config = AutoConfig.for_model(**config_of(family))
    with torch.random.fork_rng():
        built: Any = AutoModelForCausalLM.from_config(config).eval()
    kinds = ("attention", "ffn")
    space = [Bound(REGISTRY.get("space", kind), {"scope": "per_layer"}) for kind in kinds]
    one = PrunedModel(built, config.to_dict(), space)
    widths = widths_by_kind(modules_of(one.parent_sets, 0.4))
    load = WorkloadSpec(phase="decode", batch=1, length=4, new=2, rounds=1)
    entries, dense = measure(source(one), widths, load, lambda _: None)
    assert {kind: tuple(sorted(each, reverse=True)) for kind, each in entries.items()} == widths
    assert dense > 0 and min(min(each.values()) for each in entries.values()) > 0


def test_modules_are_timed_within_the_passes_of_the_model() -> None:
    one, ticks = pruned(), iter(range(10_000))
    parts = {"mlp": one.module.get_submodule("model.layers.1.mlp")}
    with speed.timing(parts, torch.device("cpu"), lambda: float(next(ticks))) as calls:
        speed.write_on(one.module, torch.arange(8).reshape(2, 4), 3, lambda: 0.0)
    assert calls == {"mlp": [1.0, 1.0, 1.0]}  # the prompt, then two tokens; two readings each
    assert not one.module.get_submodule("model.layers.1.mlp")._forward_hooks
