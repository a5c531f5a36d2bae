"""Numbers of layers, and which of their blocks are there."""

from __future__ import annotations

from effcompress.types import Depth


def test_what_went_stays_away_and_layers_take_their_blocks_along() -> None:
    whole = Depth((0, 1, 2, 3))
    one = whole.without(["attention_block.1"])
    assert one == Depth((0, 1, 2, 3), frozenset({"attention_block.1"}))
    two = one.without(["mlp_block.3"])
    assert two.absent == {"attention_block.1", "mlp_block.3"}
    three = two.without(["layer.1"])
    assert three == Depth((0, 2, 3), frozenset({"mlp_block.3"}))
