"""Group sets: index tensors cover every position once, and couple what must go together."""

from __future__ import annotations

import pytest
import torch

from effcompress import groups
from effcompress.errors import CoverageError
from effcompress.model.families import family_of
from effcompress.model.families.llama import LLAMA
from effcompress.registry import REGISTRY, Bound
from effcompress.types import GroupSet, Side
from tests.conftest import SHAPES, shape
from tests.contract.zoo import config_of

KINDS = ("ffn", "attention", "hidden")


def find(name: str, *kinds: str, **knobs: object) -> list[GroupSet]:
    axes = groups.from_config(LLAMA, shape(name))
    return groups.find(axes, [Bound(REGISTRY.get("space", k), knobs) for k in kinds])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_units_cover_every_position_once(name: str, kind: str) -> None:
    axes = groups.from_config(LLAMA, shape(name))
    for s in find(name, kind):
        for m in s.members:
            positions = m.index_GB.flatten().sort().values
            assert torch.equal(positions, torch.arange(axes.shapes[m.param][m.dim]))
            assert m.index_GB.shape[0] == s.size


def test_what_a_family_has_fixed_is_in_no_space_and_why_is_said() -> None:
    config = config_of("minicpm3")
    axes = groups.from_config(family_of(config), config)
    with pytest.raises(CoverageError, match=r"'minicpm3': the class divides .* a whole number"):
        groups.find(axes, [Bound(REGISTRY.get("space", "hidden"))])
    config = config_of("dots1")
    axes = groups.from_config(family_of(config), config)
    sets = groups.find(axes, [Bound(REGISTRY.get("space", "ffn"))])
    assert {s.kind for s in sets} == {"ffn", "expert_ffn"} and axes.axes("shared_ffn")


def test_a_kv_group_owns_its_own_query_heads() -> None:
    first = find("gqa_tied", "attention")[0]
    index = {m.param.split(".")[-2]: m.index_GB for m in first.members}
    assert index["q_proj"][1].tolist() == list(range(16, 32))  # heads 2 and 3 of 8 columns each
    assert index["k_proj"][1].tolist() == list(range(8, 16))
    assert torch.equal(index["o_proj"], index["q_proj"])


def test_hidden_reaches_every_tensor_of_the_stem() -> None:
    (hidden,) = find("gqa_untied", "hidden")
    assert len(hidden.members) == 1 + 3 * (2 + 7) + 1 + 1  # embedding, blocks, last norm, head
    (tied,) = find("gqa_tied", "hidden")
    assert len(tied.members) == len(hidden.members) - 1


def test_two_spaces_on_one_axis_are_an_error() -> None:
    with pytest.raises(CoverageError, match=r"two spaces claim the axis 'ffn\.0'"):
        find("gqa_tied", "ffn", "ffn")


def test_scope_and_minimum_are_carried() -> None:
    sets = find("gqa_tied", "ffn", scope="per_layer", minimum=7)
    assert {(s.scope, s.minimum, s.kind) for s in sets} == {("per_layer", 7, "ffn")}
    assert [s.layer for s in sets] == [0, 1, 2]


def test_units_between_an_outer_and_an_inner_axis() -> None:
    """Unit u owns ``start + (o * size + u) * inner + r`` for every outer o and inner r."""
    side = Side("w", 0, "query.0", start=5, outer=2, inner=2)
    (member,) = GroupSet("query.0", "query", 0, size=3, sides=(side,)).members
    assert member.index_GB.tolist() == [[5, 6, 11, 12], [7, 8, 13, 14], [9, 10, 15, 16]]


def test_a_width_ends_on_what_both_multiples_share() -> None:
    """Whole steps of ``round_to`` that also end on ``finish_on``."""
    side = Side("w", 0, "ffn.0")
    made = GroupSet("ffn.0", "ffn", 0, size=48, sides=(side,), round_to=4, finish_on=6)
    assert made.multiple == 12


def test_what_stays_in_a_family_is_no_space() -> None:
    config = {**shape("gqa_tied"), "model_type": "nanochat"}
    axes = groups.from_config(family_of(config), config)
    with pytest.raises(CoverageError, match="space 'hidden' cuts 'hidden', which stays in family"):
        groups.find(axes, [Bound(REGISTRY.get("space", "hidden"))])
