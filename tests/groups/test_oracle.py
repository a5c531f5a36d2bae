"""What torch-pruning finds by tracing and what the families declare are the same groups, wherever
torch-pruning is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from effcompress.groups.axes import from_shapes
from effcompress.groups.tracing import graph as trace_graph
from effcompress.groups.tracing.graph import Place, Trace, trace
from effcompress.model.families import family_of
from effcompress.types import AxisMap
from tests.conftest import PLAIN, shape, tiny, tokens

ALL = ("ffn", "attention", "hidden")
RIGHT = {
    "llama": ALL,
    "mistral": ALL,
    "qwen2": ALL,
    "qwen3": ALL,
    "smollm3": ALL,
    "gemma2": ALL,
    "gemma3_text": ALL,
    "phi3": ALL,
    "olmo2": ALL,
    "opt": ALL,
    # Each head's queries, keys and values stand together in one matrix: it mixes them up.
    "gpt_neox": ("ffn", "hidden"),
    # It cannot follow three-dimensional experts, nor what flows through them.
    "mixtral": ("attention",),
    "qwen3_moe": ("attention",),
}
Unit = dict[Place, set[int]]


def traced(model_type: str) -> tuple[AxisMap, Trace]:
    """Three query heads per KV head (with two it is lost) and eager attention (in the other it
    does not see which queries a KV head serves).
    """
    more: dict[str, Any] = {"model_type": model_type, "num_hidden_layers": 2}
    more |= {} if model_type in PLAIN else {"num_key_value_heads": 2}
    model = tiny("gqa_untied", **more)
    model.set_attn_implementation("eager")
    config = shape("gqa_untied", **more)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    axes = from_shapes(family_of(config), config, shapes)
    return axes, trace(model, tokens(1, 7))


def declared(axes: AxisMap, kind: str) -> Iterator[Unit]:
    for group in axes.sets(kind):
        for unit in range(group.size):
            held: Unit = {}
            for member in group.members:
                at = held.setdefault((member.param, member.dim), set())
                at.update(member.index_GB[unit].tolist())
            yield held


def found(trace: Trace, unit: Unit, axes: AxisMap) -> Unit:
    """Everything that was found together with a position of a matrix of the unit. Norms within each
    head, the same for all heads, do not count: torch-pruning takes them for the first head's.
    """
    held: Unit = {}
    for coupled in trace.coupled:
        if any(unit.get(place, set()) & set(coupled[place]) for place in coupled if wide(place)):
            for place, positions in coupled.items():
                held.setdefault(place, set()).update(positions)
    return {p: at for p, at in held.items() if axes.by_param[p[0]][0].names != ("head_dim",)}


def wide(place: Place) -> bool:
    """Norms and biases follow matrices, not the other way round."""
    return place[0].endswith("weight") and "norm" not in place[0]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer takes milliseconds; mixtures have many questions without one."""
    monkeypatch.setattr(trace_graph, "SECONDS_PER_QUERY", 0.2)


@pytest.mark.parametrize("model_type", RIGHT)
def test_tracing_finds_what_is_declared(model_type: str) -> None:
    axes, trace = traced(model_type)
    for kind in RIGHT[model_type]:
        units = list(declared(axes, kind))
        assert units
        assert all(found(trace, unit, axes) == unit for unit in units)


def test_where_it_is_wrong_it_says_so() -> None:
    axes, trace = traced("gpt_neox")
    assert "gpt_neox.layers.0.attention.query_key_value" in trace.silent
    assert all(found(trace, unit, axes) != unit for unit in declared(axes, "attention"))
