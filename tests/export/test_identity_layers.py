"""A layer that lost both of its blocks is the identity: it goes, and every form can be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from effcompress.export.forms import NAMES, form
from effcompress.export.write import prove, write
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import shape, tiny, tokens


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral", "gpt_neox", "gpt2", "opt"])
def test_a_layer_without_its_blocks_goes(model_type: str, at_once: bool, tmp_path: Path) -> None:
    config = shape("gqa_tied", model_type=model_type, vocab_size=258)
    model = tiny("gqa_tied", model_type=model_type, vocab_size=258)
    for p in model.parameters():
        p.data *= 0.5 if p.dim() > 1 else 1.0  # logits of a usual size
    space = [Bound(REGISTRY.get("space", kind)) for kind in ("attention_block", "mlp_block")]
    pruned, tokenizer = PrunedModel(model, config, space), ByteTokenizer()
    ids_BT = tokens(vocab=258)
    pruned.mask({"attention_block.1": [0]})
    if not at_once:
        pruned.commit()
    pruned.mask({"mlp_block.1": [0]})
    with torch.no_grad():
        masked_BTV = model(input_ids=ids_BT, use_cache=False).logits
    pruned.commit()
    assert pruned.depth.layers == (0, 2) and not pruned.depth.absent
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    torch.testing.assert_close(logits_BTV, masked_BTV, atol=1e-5, rtol=1e-5)
    for name in NAMES:
        made = form(pruned, name)
        folder = tmp_path / name
        write(made, pruned, tokenizer, folder)
        prove(made, pruned, tokenizer, ids_BT, folder)
        assert made.count == pruned.params
