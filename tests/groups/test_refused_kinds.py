"""What a declared family never cuts is refused by name, with the reason; without weights."""

from __future__ import annotations

import pytest

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families import family_of
from effcompress.network.axis_map import resolve_model
from effcompress.registry import REGISTRY, Bound
from effcompress.types import GroupSet
from tests.contract.zoo import config_of


def found(model_type: str, space: str, **knobs: object) -> list[GroupSet]:
    """The group sets of one space of a tiny model."""
    axes = resolve_model(config_of(model_type)).axes
    return groups.find(axes, [Bound(REGISTRY.get("space", space), knobs)])


@pytest.mark.parametrize(
    ("space", "words"),
    [("hidden", "AltUp scales the copies"), ("layer", "a layer mixes the copies")],
)
def test_gemma_3n_keeps_its_stream_and_its_layers(space: str, words: str) -> None:
    with pytest.raises(CoverageError, match=f"'{space}', which stays in .*gemma3n.*{words}"):
        found("gemma3n_text", space)


def test_gemma_3n_keeps_channels_whose_statistics_choose_the_active_ones() -> None:
    assert [s.name for s in found("gemma3n_text", "ffn")] == [f"ffn.{i}" for i in range(1, 5)]
    family = family_of(config_of("gemma3n_text"))
    assert "mean and deviation" in family.unreached["sparse_ffn"]


def test_gemma_3n_keeps_attention_that_others_attend_to() -> None:
    there = {s.name for s in found("gemma3n_text", "attention_block")}
    assert there == {f"attention_block.{i}" for i in (0, 2, 3, 4)}


def test_a_space_of_state_spaces_has_groups_or_heads() -> None:
    for model_type, layers in (("nemotron_h", (0, 4)), ("bamba", (0, 2))):
        for unit in ("group", "head"):
            names = [s.name for s in found(model_type, "mixer", unit=unit)]
            assert names == [f"ssm_{unit}.{i}" for i in layers]


def test_layers_of_nemotron_h_are_counted_by_their_kinds() -> None:
    config = {**config_of("nemotron_h"), "layers_block_type": None}
    config["hybrid_override_pattern"] = "MM-*E"
    axes = resolve_model(config).axes
    assert axes.depth.layers == (0, 1, 2, 3, 4)
    assert {"layer.1", "layer.3"} <= axes.staying, "the last state space and the last attention"
