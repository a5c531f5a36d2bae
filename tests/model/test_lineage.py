"""What an exact folder says of its layers."""

from __future__ import annotations

import pytest

from effcompress.errors import SourceError
from effcompress.model.families.llama import LLAMA
from effcompress.model.lineage import depth_of
from effcompress.types import Depth
from tests.conftest import shape


def test_blocks_that_are_gone_are_named() -> None:
    plain = shape("gqa_tied")
    assert depth_of(LLAMA, plain) is None
    absent = {"1": [["self_attn", 2], ["input_layernorm", 0]], "2": [["mlp", 1]]}
    config = {**plain, "architectures": ["PrunedForCausalLM"], "pruned": {"absent": absent}}
    wanted = Depth((0, 1, 2), frozenset({"attention_block.1", "mlp_block.2"}))
    assert depth_of(LLAMA, config) == wanted
    config["pruned"] = {"absent": {"0": [["self_attn.q_proj", 1]]}}
    with pytest.raises(SourceError, match=r"'self_attn\.q_proj' is no block"):
        depth_of(LLAMA, config)
