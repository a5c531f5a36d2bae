"""The shapes that a search tries: all of a grid, priced and sorted by brute force beside it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.measure.grams import Grams, readers
from effcompress.model.families import family_of
from effcompress.network.active import active_params
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.shape_search import SizedShape, largest_shapes, smallest_shape
from effcompress.network.shapes import widths_of
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import SearchSpec
from effcompress.types import AxisMap, GroupSet
from tests.conftest import MIXTURES, tiny

CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "tie_word_embeddings": True,
}


def bound(name: str, **knobs: Any) -> Bound:
    return Bound(REGISTRY.get("space", name), knobs)


def model(**knobs: Any) -> tuple[AxisMap, list[GroupSet]]:
    axes = groups.from_config(family_of(CONFIG), CONFIG)
    spaces = [bound(k, **knobs.get(k, {})) for k in ("hidden", "attention", "ffn", "layer")]
    return axes, groups.find(axes, spaces)


def brute(
    axes: AxisMap, sets: list[GroupSet], grid: dict[str, int], width: float, depth: float
) -> list[SizedShape]:
    """Every shape of the grid, by counting."""
    most = {"hidden": 24, "attention": 4, "ffn": 40, "layer": 5}
    choices = [
        [
            n
            for n in range(1, whole + 1)
            if (n == whole or n % grid[kind] == 0)
            and whole - n <= (depth if kind == "layer" else width) * whole + 1e-9
        ]
        for kind, whole in most.items()
    ]
    shapes = (dict(zip(most, units, strict=True)) for units in itertools.product(*choices))
    return [SizedShape(units, axes.count(widths_of(units, sets))) for units in shapes]


MIXTURE = {
    **{k: v for k, v in CONFIG.items() if k != "model_type"},
    **{"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2},
}


def active_by_hand(experts: int, channels: int, hidden: int) -> int:
    """Parameters of the toy mixture that a token meets: two of the experts, and all of the rest."""
    attention = 4 * hidden * 24
    expert = 3 * hidden * channels
    layer = attention + 2 * expert + experts * hidden + 2 * hidden
    return 100 * hidden + 5 * layer + hidden


@pytest.mark.parametrize("limit", [0.99, 0.8, 0.7])
def test_the_largest_shapes_by_what_a_token_meets(limit: float) -> None:
    axes = groups.from_config(family_of(MIXTURE), MIXTURE)
    sets = groups.find(axes, [bound(k) for k in ("hidden", "expert", "ffn")])
    assert active_params(axes, MIXTURE) == active_by_hand(6, 40, 24)
    most = round(limit * active_by_hand(6, 40, 24))
    search = SearchSpec(grid={"hidden": 4, "expert": 1, "expert_ffn": 8}, max_width=0.7, top=9)
    found = largest_shapes(axes, sets, search, most, MIXTURE)
    grid = itertools.product(range(8, 25, 4), range(2, 7), range(16, 41, 8))
    sizes = sorted(
        (
            (active_by_hand(e, f, h), axes.count(widths_of(units, sets)))
            for h, e, f in grid
            for units in [{"hidden": h, "expert": e, "expert_ffn": f}]
            if active_by_hand(e, f, h) <= most
        ),
        reverse=True,
    )
    assert [(s.active, s.params) for s in found] == sizes[:9]
    assert smallest_shape(axes, sets, search, MIXTURE).active == active_by_hand(2, 16, 8)


@pytest.mark.parametrize("model_type", [*MIXTURES])
def test_what_a_token_meets_of_real_classes(model_type: str) -> None:
    """Counted on the class: all parameters less the experts that a token is not sent to."""
    module: Any = tiny(model_type=model_type)
    config = module.config.to_dict()
    axes = groups.from_config(family_of(config), config)
    idle = 0
    for path, part in module.named_modules():
        if path.endswith("mlp.experts"):
            each = [p for p in part.parameters() if p.dim() > 1]
            count = len(each[0])
            chosen = config["num_experts_per_tok"]
            idle += sum(p.numel() for p in each) * (count - chosen) // count
    total = sum(p.numel() for p in module.parameters())
    assert active_params(axes, config) == total - idle


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 15),
    st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.9]),
    st.sampled_from([0.0, 0.2, 0.4, 0.8]),
    st.integers(1, 12),
    st.floats(0.3, 1.0),
)
def test_the_largest_shapes_of_the_grid(
    hidden: int, heads: int, ffn: int, width: float, depth: float, top: int, keep: float
) -> None:
    axes, sets = model()
    grid = {"hidden": hidden, "attention": heads, "ffn": ffn, "layer": 1}
    limit = round(keep * axes.count())
    search = SearchSpec(grid=grid, max_width=width, max_depth=depth, top=top)
    found = largest_shapes(axes, sets, search, limit)
    every = brute(axes, sets, grid, width, depth)
    sizes = sorted((s.params for s in every if s.params <= limit), reverse=True)
    assert [s.params for s in found] == sizes[:top]
    assert all(s in every for s in found)
    assert len({tuple(s.units.items()) for s in found}) == len(found)
    assert smallest_shape(axes, sets, search).params == min(s.params for s in every)


def test_steps_limits_and_rounding_of_the_space() -> None:
    axes, sets = model(ffn={"round_to": 8, "minimum": 24}, layer={"minimum": 4})
    search = SearchSpec(max_width=0.9, max_depth=0.9, top=1000)
    found = largest_shapes(axes, sets, search, axes.count())
    units = {kind: {s.units[kind] for s in found} for kind in found[0].units}
    # 24 // 8 = 3 -> steps of 2; 40 // 8 = 5 -> 4, of which round_to leaves 40, 32, 24; one by one.
    assert units["hidden"] == {*range(4, 25, 2)}
    assert units["ffn"] == {24, 32, 40}
    assert units["attention"] == {1, 2, 3, 4}
    assert units["layer"] == {4, 5}


def test_no_shape_is_small_enough() -> None:
    axes, sets = model()
    assert largest_shapes(axes, sets, SearchSpec(), 10) == []


def test_grids_that_cannot_be() -> None:
    axes, sets = model()
    with pytest.raises(CoverageError, match="names 'heads', which nothing"):
        largest_shapes(axes, sets, SearchSpec(grid={"heads": 1}), axes.count())
    big = dict(CONFIG, hidden_size=60_000, intermediate_size=60_000)
    wide = groups.from_config(family_of(big), big)
    both = groups.find(wide, [bound("hidden"), bound("ffn")])
    with pytest.raises(CoverageError, match="combinations are too many"):
        largest_shapes(wide, both, SearchSpec(grid={"hidden": 1, "ffn": 1}), wide.count())


@pytest.mark.parametrize("name", ["gqa_tied", "opt", "qwen3_moe"])
def test_a_trial_leaves_no_trace(name: str) -> None:
    """Masked inside as a copy that is really masked, and bit for bit as before behind."""
    more = {} if name == "gqa_tied" else {"model_type": name}
    module = tiny(**more).eval()
    config = module.config.to_dict()
    spaces = [bound("hidden"), bound("ffn" if name != "qwen3_moe" else "expert"), bound("layer")]
    pruned = PrunedModel(module, config, spaces)
    ids_BT = torch.arange(12).view(2, 6)
    inputs = Grams(module, readers(module, pruned.axes, pruned.sets), 1 << 30, 1.0)
    with inputs.listening(), torch.no_grad():
        before = module(input_ids=ids_BT).logits
    grams = {k: t.clone() for k, t in inputs.state_dict().items()}
    plan = {"hidden": [1, 4]} | {
        s.name: [0, 2] for s in pruned.sets if s.kind in ("ffn", "expert") and "1" in s.name
    }
    plan["layer.0"] = [0]
    repairs = [Bound(REGISTRY.get("repair", n), {}) for n in ("norm_gain", "obs_update")]
    other = PrunedModel(copy.deepcopy(module), config, spaces)
    other.mask(plan, repairs=repairs, inputs=copy.deepcopy(inputs))
    with torch.no_grad():
        wanted = other.module(input_ids=ids_BT).logits
        with (
            pytest.raises(RuntimeError, match="stop"),
            pruned.trial(plan, repairs=repairs, inputs=inputs),
        ):
            assert torch.equal(module(input_ids=ids_BT).logits, wanted)
            assert not torch.equal(wanted, before)
            raise RuntimeError("stop")
        assert torch.equal(module(input_ids=ids_BT).logits, before)
    assert not pruned.ledger.pending()
    after = inputs.state_dict()
    assert all(torch.equal(after[k], t) for k, t in grams.items())
