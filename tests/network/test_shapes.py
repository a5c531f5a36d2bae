"""Sizes of published models, from their shapes alone; and what a shape cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families import family_of
from effcompress.network.shapes import bounded, wanted
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.budget import Budget, simulate
from effcompress.selection.candidates import candidates_of
from effcompress.spec import TargetSpec
from effcompress.types import AxisMap, GroupSet

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
LLAMA_3_8B = LLAMA_7B | {
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
}
BUT_FOUR_AND_TWO = (0, 1, 2, 3, -2, -1)
"""LLM-Pruner's layers [4, 30)."""
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, int], int, str]] = {
    "LLM-Pruner, LLaMA-7B, 25 % of [4, 30)": (
        LLAMA_7B,
        BUT_FOUR_AND_TWO,
        {"attention": 24, "ffn": 8256},
        5_422_977_024,
        "kv_group",
    ),
    "LLM-Pruner, LLaMA-7B, 60 % of [3, 31)": (
        LLAMA_7B,
        (0, 1, 2, -1),
        {"attention": 13, "ffn": 4403},
        3_350_188_032,
        "kv_group",
    ),
    "LLM-Pruner, Llama-3-8B, 25 % of [4, 30)": (
        LLAMA_3_8B,
        BUT_FOUR_AND_TWO,
        {"attention": 6, "ffn": 10752},
        6_612_586_496,
        "kv_group",
    ),
    "Torch-Pruning, Llama-3.1-8B, 50 % with all KV heads": (
        LLAMA_3_8B,
        (),
        {"query": 2, "ffn": 7168, "hidden": 2048},
        2_337_409_024,
        "q_per_group",
    ),
    "Sheared-LLaMA-1.3B": (
        LLAMA_7B,
        (),
        {"attention": 16, "ffn": 5504, "hidden": 2048, "layer": 24},
        1_345_423_360,
        "kv_group",
    ),
    "Sheared-LLaMA-2.7B": (
        LLAMA_7B,
        (),
        {"attention": 20, "ffn": 6912, "hidden": 2560, "layer": 32},
        2_701_560_320,
        "kv_group",
    ),
}


def sets_of(
    config: dict[str, Any], shape: dict[str, int], skip: tuple[int, ...] = (), unit: str = ""
) -> tuple[AxisMap, list[GroupSet]]:
    axes = groups.from_config(family_of(config), config)
    names = {"query": "attention"}
    space = []
    for kind in shape:
        name = names.get(kind, kind)
        knobs: dict[str, Any] = {} if name == "hidden" else {"skip_layers": skip}
        if name == "attention" and unit:
            knobs["unit"] = unit
        space.append(Bound(REGISTRY.get("space", name), knobs))
    return axes, groups.find(axes, space)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    config, skip, shape, params, unit = PUBLISHED[name]
    axes, sets = sets_of(config, shape, skip, unit)
    target = TargetSpec(shape=shape)
    assert wanted(target, axes, bounded(sets, target)) == params


def test_a_deep_shape_needs_no_search() -> None:
    """Any order of removals leads to a shape: no search goes as deep as there are removals."""
    _, _, shape, params, unit = PUBLISHED["Sheared-LLaMA-1.3B"]
    axes, found = sets_of(LLAMA_7B, shape, unit=unit)
    sets = bounded(found, TargetSpec(shape=shape))
    budget = Budget(axes, candidates_of(sets), {}, params)
    assert len(budget.open()) == 3 + 32
    simulate(budget, groups=50)
    assert budget.params > params


def test_every_kind_ends_on_its_width_whatever_is_preferred() -> None:
    small = LLAMA_7B | {
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 8,
    }
    shape = {"ffn": 60, "attention": 4, "hidden": 40, "layer": 3}
    axes, found = sets_of(small, shape)
    target = TargetSpec(shape=shape)
    sets = bounded(found, target)
    params = wanted(target, axes, sets)
    for prefer in (Budget.removed, lambda b, k: -b.freed(k), lambda b, k: b.freed(k)):
        budget = Budget(axes, candidates_of(sets), {}, params)
        simulate(budget, prefer=prefer, params=params)
        assert budget.params == params
        left = {name: n for name, n in budget.widths.items() if axes.living(name, budget.widths)}
        assert sum(name.startswith("layer.") for name in left) == 3
        assert {n for name, n in left.items() if name.startswith("ffn.")} == {60}
        assert {n for name, n in left.items() if name.startswith("attention.")} == {4}
        assert left["hidden"] == 40


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"ffn": 100}, "how many 'attention'"),
        ({"ffn": 100, "attention": 3, "fnn": 3}, "names 'fnn'"),
        ({"ffn": 12000, "attention": 3}, "12000 units of 'ffn', but there are 11008"),
        ({"ffn": 0, "attention": 3}, "0 units of 'ffn'"),
    ],
)
def test_shapes_that_cannot_be(shape: dict[str, int], said: str) -> None:
    _, sets = sets_of(LLAMA_7B, {"ffn": 1, "attention": 1})
    with pytest.raises(CoverageError, match=said):
        bounded(sets, TargetSpec(shape=shape))
