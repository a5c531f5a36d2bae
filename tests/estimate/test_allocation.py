"""What levels cost: parameters and bytes by arithmetic, times from a table."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.estimate.allocation import (
    LatencyTable,
    bytes_costs,
    dependencies,
    known_tables,
    monotone,
    params_costs,
    place_of,
    read_table,
    refusal,
)
from effcompress.model.families import family_of
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.levels import modules_of, widths_of
from effcompress.spec import PruneSpec, TargetSpec, WorkloadSpec
from tests.conftest import shape, tokens
from tests.contract.zoo import config_of
from tests.selection.test_levels import found

KINDS = ("attention", "ffn", "attention_block", "mlp_block")
LOAD = WorkloadSpec(batch=3, length=7, threads=2)
TABLE = LatencyTable(
    {}, {"attention": {1: 0.2, 2: 0.3, 3: 0.4}, "ffn": {40: 1.0, 20: 0.5, 10: 0.25}}, 5.0
)


def choices() -> list[list[int]]:
    """Some choices, every level of every module among them."""
    modules = modules_of(found(KINDS)[1], 0.5)
    most = max(len(m.widths) for m in modules)
    rows = [[min(k, len(m.widths) - 1) for m in modules] for k in range(most)]
    return [*rows, [k % len(m.widths) for k, m in enumerate(modules)]]


@pytest.mark.parametrize("levels", choices(), ids=str)
def test_parameters_and_bytes_are_those_of_the_model(levels: list[int]) -> None:
    axes, sets = found(KINDS)
    modules = modules_of(sets, 0.5)
    width_M = [m.widths[k] for m, k in zip(modules, levels, strict=True)]
    widths = widths_of(modules, width_M)
    count = axes.count(widths)
    assert params_costs(axes, modules, 1).of(levels) == count
    groups = sum(w for m, w in zip(modules, width_M, strict=True) if m.kind == "attention")
    cache = 2 * 8 * groups * 3 * 7  # keys and values, head_dim 8, 3 sequences of 7 tokens
    costs = bytes_costs(axes, shape("gqa_tied"), modules, LOAD, 1)
    assert costs.of(levels) == 4 * (count + cache)


def test_keys_and_values_of_layers_that_are_not_cut_count() -> None:
    axes, sets = found(("ffn",))
    modules = modules_of(sets, 0.5)
    costs = bytes_costs(axes, shape("gqa_tied"), modules, LOAD, 1)
    assert costs.whole == 4 * (axes.count() + 2 * 8 * 3 * 3 * 7 * 3)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "qwen2_moe"])
def test_the_cache_is_as_large_as_the_one_that_the_class_fills(model_type: str) -> None:
    """Latent attention keeps what keys and values are made of: nothing of it goes with a head."""
    config = config_of(model_type)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    axes = groups.axes_of(model, family_of(config), config)
    with torch.no_grad():
        filled = model(input_ids=tokens(LOAD.batch, LOAD.length), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in filled.layers)
    assert bytes_costs(axes, config, (), LOAD, 1).whole == 4 * (axes.count() + kept)
    kinds = ("attention", "attention_block")
    knobs: Any = {"attention": {"scope": "per_layer"}}
    space = [Bound(REGISTRY.get("space", kind), knobs.get(kind, {})) for kind in kinds]
    modules = modules_of(groups.find(axes, space), 0.5)
    costs = bytes_costs(axes, config, modules, LOAD, 1)
    assert costs.whole == 4 * (axes.count() + kept)
    gone = costs.of([len(m.widths) - 1 for m in modules])
    assert gone == 4 * axes.count({m.block: 0 for m in modules})
    fewer = costs.whole - costs.of([1] * len(modules))
    heads = {m.name: m.widths[1] for m in modules}
    latent = axes.family.latent is not None
    lost = 0 if latent else kept - kept * sum(heads.values()) // sum(m.size for m in modules)
    assert fewer == 4 * (axes.count() - axes.count(heads) + lost)


def test_times_are_those_of_the_table_and_the_rest_of_the_source_model() -> None:
    _, sets = found(KINDS)
    short = [m for m in modules_of(sets, 0.5) if m.kind == "attention"]
    costs = TABLE.costs(short, TargetSpec(speedup=1.25))
    assert costs.base == pytest.approx(5.0 - 3 * 0.4)
    assert costs.cost_ML[0] == (0.4, 0.3, 0.2, 0.0)
    assert costs.asked == pytest.approx(4.0)
    assert costs.whole == pytest.approx(5.0)
    assert costs.least == pytest.approx(3.8 + 0.2)  # one attention block stays, of one head
    assert TABLE.costs(short, TargetSpec(milliseconds=4500)).asked == 4.5


def test_blocks_that_took_longer_than_the_source_model_are_all_of_it() -> None:
    """1.2 s of blocks in a model of 0.8 s: a machine that was busy with other work."""
    modules = [m for m in modules_of(found(KINDS)[1], 0.5) if m.kind == "attention"]
    table = LatencyTable({}, TABLE.entries, 0.8)
    costs = table.costs(modules, TargetSpec(speedup=1.25))
    assert costs.whole == pytest.approx(0.8) and costs.base == 0.0
    assert costs.cost_ML[0] == pytest.approx((0.8 / 3, 0.2, 0.4 / 3, 0.0))
    said = refusal(table.costs(modules, TargetSpec(speedup=9.0)), modules, "speedup")
    assert said is not None and said[1].startswith("Name 6, or less")
    assert refusal(table.costs(modules, TargetSpec(speedup=6.0)), modules, "speedup") is None


@pytest.mark.parametrize("floors", [(1, 1), (2, 1), (3, 2), (3, 3)])
def test_the_least_cost_keeps_as_many_blocks_as_the_space_says(floors: tuple[int, int]) -> None:
    """Against all choices of levels that keep so many blocks of each kind."""
    axes, _ = found(KINDS)
    knobs: list[dict[str, Any]] = [{"scope": "per_layer"}, {"scope": "per_layer"}]
    knobs += [{"minimum": n} for n in floors]
    named = zip(KINDS, knobs, strict=True)
    space = [Bound(REGISTRY.get("space", kind), own) for kind, own in named]
    modules = modules_of(groups.find(axes, space), 0.3)
    costs = params_costs(axes, modules, 1)
    fit = [
        costs.of(levels)
        for levels in itertools.product(*(range(len(m.widths)) for m in modules))
        for left in [Counter(m.kind for m, k in zip(modules, levels, strict=True) if m.widths[k])]
        if all(left[kind] >= n for kind, n in zip(KINDS[:2], floors, strict=True))
    ]
    assert costs.least == min(fit)


def test_no_speed_up_is_named_that_is_none() -> None:
    modules = [m for m in modules_of(found(("attention",))[1], 0.5) if m.kind == "attention"]
    table = LatencyTable({}, {"attention": {1: 0.399, 2: 0.4, 3: 0.4}}, 5.0)
    said = refusal(table.costs(modules, TargetSpec(speedup=1.5)), modules, "speedup")
    assert said is not None and said[1].startswith("Lower a `minimum`, or add ffn, ")


def test_what_to_type_names_what_the_space_has_not() -> None:
    axes, sets = found(("ffn",))
    modules = modules_of(sets, 0.5)
    said = refusal(params_costs(axes, modules, 1), modules, "keep")
    more = "add attention, attention_block, mlp_block to prune.space."
    assert said is not None and said[1].endswith(more)
    axes, sets = found(KINDS)
    modules = modules_of(sets, 0.5)
    said = refusal(params_costs(axes, modules, 1), modules, "keep")
    assert said is not None and said[1].endswith("lower a `minimum`.")


@given(st.dictionaries(st.integers(1, 50), st.floats(0.0, 9.0), min_size=1))
def test_a_table_is_monotone(seconds: dict[int, float]) -> None:
    found = monotone(seconds)
    assert found.keys() == seconds.keys()
    widths = sorted(found)
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(widths))
    assert all(found[w] == max(seconds[v] for v in widths if v <= w) for w in widths)


def prune(**load: Any) -> PruneSpec:
    plugin: Any = Bound(REGISTRY.get("criterion", "magnitude"), {})
    target = TargetSpec(speedup=1.5)
    how: Any = {"target": target, "space": (), "criterion": plugin, "schedule": plugin}
    return PruneSpec(**how, workload=WorkloadSpec(**load))


def test_a_table_that_was_measured_on_a_busy_machine_says_so() -> None:
    assert not TABLE.busy
    busy = LatencyTable({}, TABLE.entries, 5.0, 0.42).busy
    assert "42 % of a processor" in busy and str(place_of({})) in busy


def test_a_table_is_found_again_where_all_that_it_depends_on_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path))
    axes, sets = found(KINDS)
    modules = modules_of(sets, 0.5)
    of = dependencies(axes, modules, LOAD, "cpu", "", 2)
    path = place_of(of)
    path.parent.mkdir(parents=True)
    table = LatencyTable(of, TABLE.entries, TABLE.dense, 0.5)
    path.write_text(table.text())
    assert read_table(path) == table
    same: Any = {"batch": 3, "length": 7}

    def known(device: str = "auto", **load: Any) -> int:
        return len(known_tables(axes, modules, prune(**{**same, **load}), device))

    assert known() == known(threads=2) == known("cpu") == 1  # threads left to the run: any
    assert known(threads=3) == known(batch=2) == known(phase="decode") == known("cuda") == 0
    assert not known_tables(axes, modules_of(sets, 0.6), prune(**same), "auto")
    for text in ("", "{}", "[]", json.dumps({"of": {}, "entries": {"ffn": 3}, "dense": 1})):
        path.write_text(text)
        assert read_table(path) is None
