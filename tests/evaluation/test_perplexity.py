"""Perplexity against an independent reference of a few lines, in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from effcompress.errors import RunError
from effcompress.evaluation import continuation, perplexity
from effcompress.model.tokenizer import ByteTokenizer
from tests.conftest import tiny, tokens


def reference(model: torch.nn.Module, ids_NT: torch.Tensor) -> float:
    total, count = 0.0, 0
    for row in ids_NT:
        logits = model(input_ids=row[None]).logits[0].double()
        for t in range(len(row) - 1):
            z = logits[t]
            total += float(torch.logsumexp(z, 0) - z[row[t + 1]])
            count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("length", [5, 33])
def test_agrees_with_the_reference(length: int, batch_size: int) -> None:
    model, ids = tiny().eval(), tokens(7, length)
    with torch.no_grad():
        expected = reference(model, ids)
    found = perplexity(model, ids, batch_size)
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert (found.tokens, found.sequences) == (7 * (length - 1), 7)


def test_mode_is_restored_and_no_graph_is_kept() -> None:
    model = tiny().train()
    perplexity(model, tokens(), 2)
    assert model.training


def test_not_finite_is_an_error() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RunError, match="not finite"):
        perplexity(model, tokens(), 2)


def test_continuation_is_greedy_and_repeatable() -> None:
    model, tokenizer = tiny(vocab_size=258), ByteTokenizer()
    one = continuation(model, tokenizer, "abc", 8, bos=True)
    assert one == continuation(model, tokenizer, "abc", 8, bos=True)
    row = [tokenizer.bos_id, *tokenizer.encode(["abc"])[0]]
    start = len(row)
    model.requires_grad_(False)
    for _ in range(8):
        scores = model(input_ids=torch.tensor([row])).logits[0, -1]
        seen = torch.tensor(sorted(set(row)))
        picked = scores[seen]
        scores[seen] = torch.where(picked < 0, picked * 1.2, picked / 1.2)
        row.append(int(scores.argmax()))
        if row[-1] == model.generation_config.eos_token_id:
            break
    assert one == tokenizer.decode(row[start:])
