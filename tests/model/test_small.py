"""Small models of any architecture: the structure stays, every size becomes another number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effcompress.errors import SourceError
from effcompress.model.small import build, shrink


def heads(model: Any) -> tuple[int, int]:
    return model.config.num_attention_heads, model.config.num_key_value_heads


@pytest.mark.parametrize(
    ("given", "small"), [((32, 8), (12, 4)), ((32, 32), (12, 12)), ((32, 1), (12, 1))]
)
def test_how_heads_are_shared_stays(given: tuple[int, int], small: tuple[int, int]) -> None:
    config = {"model_type": "llama"}
    config |= {"num_attention_heads": given[0], "num_key_value_heads": given[1]}
    assert heads(build(config, "small")) == small


def test_sizes_that_the_file_leaves_out_become_small_too() -> None:
    small, other = (build({"model_type": "starcoder2"}, size) for size in ("small", "other"))
    assert sum(p.numel() for p in small.parameters()) < 200_000
    shapes = [{tuple(p.shape) for p in model.parameters()} for model in (small, other)]
    assert shapes[0].isdisjoint(shapes[1])


@pytest.mark.parametrize("model_type", ["bailing_hybrid", "cohere_compass_text"])
def test_fields_of_other_names_and_rope_by_kind_of_layer(model_type: str) -> None:
    """Groups of a router under a name of the class's own; a class without default rope."""
    for size in ("small", "other"):
        model = build({"model_type": model_type}, size)
        assert sum(p.numel() for p in model.parameters()) < 2_000_000
        assert model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.isfinite().all()


def test_sizes_as_given_on_any_device() -> None:
    with torch.device("meta"):
        model = build({"model_type": "llama", "hidden_size": 2048}, "given")
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    assert embedding.weight.shape == (32000, 2048) and embedding.weight.is_meta


def test_lists_with_an_entry_for_each_layer_follow_the_layers() -> None:
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "eos_token_id": 50_000}
    found = shrink(config, "small")
    assert found["layer_types"] == ["a", "b", "a", "b"] and found["eos_token_id"] < 61
    assert found["num_hidden_layers"] == 4
    assert shrink(config, "other")["layer_types"] == ["a", "b", "a"]


def test_every_kind_of_layer_stays() -> None:
    """Twice, where there are two: a small model must stay one when a layer goes."""
    config = {"num_hidden_layers": 6, "layer_types": ["a", "a", "b", "a", "a", "c"]}
    found = shrink(config, "small")
    assert found["layer_types"] == ["a", "a", "b", "c"] and found["num_hidden_layers"] == 4


def test_a_part_of_a_head_that_is_rotated_stays_a_part() -> None:
    model = build({"model_type": "phi", "partial_rotary_factor": 0.4}, "small")
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 61)


def test_refusals_are_told_in_the_words_of_the_class() -> None:
    with pytest.raises(SourceError, match=r"cannot build 'no_such' .*: Unrecognized"):
        build({"model_type": "no_such"}, "small")


@pytest.mark.parametrize("model_type", ["jamba", "kimi_linear", "laguna", "mimo_v2_flash"])
def test_sizes_that_follow_from_others(model_type: str) -> None:
    """Sorts of layers by a period, names of their own, heads by layer, KV heads doubled under a
    window: each is built small, and runs.
    """
    for size in ("small", "other"):
        assert build({"model_type": model_type}, size).config.num_hidden_layers <= 5


def test_a_period_keeps_every_sort_of_layer() -> None:
    small = build({"model_type": "jamba"}, "small")
    assert set(small.config.layers_block_type) == {"attention", "mamba"}


def test_a_repeated_list_of_sorts_is_gone_through_once() -> None:
    config = {"num_hidden_layers": 26, "block_types": ["recurrent", "recurrent", "attention"]}
    assert shrink(config, "small")["num_hidden_layers"] == 3


def test_own_sizes_keep_the_relation_of_heads() -> None:
    config = {
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "per_layer_config": {1: {"num_attention_heads": 64, "num_key_value_heads": 64}},
    }
    own = shrink(config, "small")["per_layer_config"][1]
    assert own["num_attention_heads"] == own["num_key_value_heads"] != 64
