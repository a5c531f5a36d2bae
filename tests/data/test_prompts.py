"""Instruction data: prompts are read, but neither trained on nor evaluated."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from effcompress.data.stream import marked, unmarked
from effcompress.errors import SourceError
from effcompress.evaluation import perplexity
from effcompress.spec import DistillSpec, DomainSpec, TrainSpec
from effcompress.train import backward
from effcompress.train.loss import divergence
from effcompress.types import Batch
from tests.conftest import tiny, tokens

ROWS = [{"q": f"what is {i}?", "hint": "easy", "a": f"answer {i * 7}"} for i in range(60)]
PROMPT = "### {q} ({hint})\n"


def test_prompts_are_marked_in_every_format(tmp_path, make):
    jsonl, parquet = tmp_path / "x.jsonl", tmp_path / "x.parquet"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    seen = []
    for kind, path in (("jsonl", jsonl), ("parquet", parquet)):
        spec = DomainSpec(**{kind: (path,)}, text="a", prompt=PROMPT, holdout=0.2)
        corpus = make({"d": spec}, train_tokens=64)
        batch = corpus.stream(0).next(2)
        assert batch.trained_BT is not None
        seen.append((batch.ids_BT, batch.trained_BT))
        ids_NT, trained_NT = corpus.heldout_trained("d", 2)
        assert not trained_NT.all() and trained_NT.any()
        assert int(ids_NT.min()) >= 0 and int(corpus.calibration(2).min()) >= 0
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


def test_exactly_the_prompt_is_not_trained_on(tmp_path, make):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = DomainSpec(jsonl=(path,), text="a", prompt=PROMPT, validation=(), holdout=0.2)
    corpus = make({"d": spec}, train_tokens=1024, sequence_length=64)
    tokens_of = corpus._domains["d"].train.used
    text = bytes(int(t if t >= 0 else ~t) - 3 for t in tokens_of if (t if t >= 0 else ~t) >= 3)
    trained = bytes(int(t) - 3 for t in tokens_of if t >= 3)
    assert b"### what is" in text and b"(easy)\nanswer" in text
    assert b"what" not in trained and b"answer" in trained


def test_text_without_prompts_is_as_before(jsonl, texts, make):
    corpus = make({"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(80)),))})
    assert corpus.stream(0).next(2).trained_BT is None


def test_a_field_that_is_not_there_is_named(tmp_path, make):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"a": "b"}) + "\n")
    with pytest.raises(SourceError, match="no field 'q'"):
        make({"d": DomainSpec(jsonl=(path,), text="a", prompt="{q}: ")})


def test_a_prompt_looks_up_names_only(tmp_path, make):
    """Format strings could reach attributes; braces with anything but a name are plain text."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = DomainSpec(jsonl=(path,), text="a", prompt="{q.__class__} {0[x]} ", holdout=0.2)
    ids = make({"d": spec}, train_tokens=64).stream(0).next(2).ids_BT
    text = bytes(int(t) - 3 for t in ids.flatten() if t >= 3)
    assert b"{q.__class__} {0[x]} " in text


def loss_by_hand(model, ids, trained) -> float:
    """Mean over rows of the mean over their trained tokens, rows of prompts alone left out."""
    rows = []
    for row, used in zip(ids, trained, strict=True):
        logits = model(input_ids=row[None]).logits[0, :-1].double()
        each = functional.cross_entropy(logits, row[1:], reduction="none")[used[1:]]
        if len(each):
            rows.append(each.mean())
    return float(torch.stack(rows).mean().detach())


def test_the_loss_of_what_is_trained_on():
    model, ids = tiny(), tokens(4, seed=2)
    trained = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    trained[2] = False
    batch = Batch(ids, ("a", "a", "b", "b"), (("a", 0),) * 4, trained)
    wanted = loss_by_hand(model, ids, trained)
    grads = []
    for micro in (4, 1):
        spec = TrainSpec(tokens=1, batch_size=4, micro_batch_size=micro)
        losses = backward(model, batch, spec)
        assert losses.loss == pytest.approx(wanted, rel=1e-5)
        assert set(losses.domain_loss) == {"a", "b"}
        grads.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_perplexity_counts_only_them():
    model, ids = tiny(), tokens(3, seed=2)
    counted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    found = perplexity(model, ids, 2, counted)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].double()
    each = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    chosen = each[counted[:, 1:].flatten()]
    assert found.tokens == len(chosen)
    assert found.perplexity == pytest.approx(math.exp(float(chosen.mean())), rel=1e-6)


def test_a_teacher_is_asked_about_them_alone():
    make = torch.Generator().manual_seed(0)
    theirs, own = (torch.randn(2, 5, 7, generator=make) for _ in range(2))
    trained = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    found = divergence(theirs, own, 1.0, trained)
    whole = [
        float(functional.kl_div(o.log_softmax(-1), t.softmax(-1), reduction="sum"))
        for t, o in zip(theirs[0, :-1], own[0, :-1], strict=True)
    ]
    assert float(found[0]) == pytest.approx((whole[1] + whole[2]) / 2, rel=1e-5)
    assert float(found[1]) == 0.0
    assert DistillSpec().text_weight == 0.0


def test_every_token_can_be_marked():
    """The first of a vocabulary too: its complement is below zero."""
    ids = np.array([0, 1, 258], dtype=np.int64)
    again, trained = unmarked(marked(ids))
    assert again.tolist() == [0, 1, 258] and not trained.any()
    assert unmarked(ids)[1].all()


def test_rows_of_prompts_alone_do_not_thin_out_the_gradient():
    """Three rows learn as much beside a fourth that is all prompt as without it."""
    ids = tokens(4, seed=2)
    trained = torch.ones(ids.shape, dtype=torch.bool)
    trained[3] = False
    grads = []
    for n in (3, 4):
        model = tiny()
        batch = Batch(ids[:n], ("a",) * n, (("a", 0),) * n, trained[:n])
        backward(model, batch, TrainSpec(tokens=1, batch_size=n))
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
