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

from effcompress import load_recipe
from effcompress.data.stream import marked, unmarked
from effcompress.errors import NotFinite, RecipeError, RunError, SourceError
from effcompress.evaluation import perplexity
from effcompress.spec import DistillSpec, DomainSpec, TrainSpec
from effcompress.train import backward
from effcompress.train.loss import divergence
from effcompress.types import Batch
from tests.conftest import tiny, tokens
from tests.runner.toys import recipe

ROWS = [{"q": f"what is {i}?", "hint": "easy", "a": f"answer {i * 7}"} for i in range(60)]
PROMPT = "### {q} ({hint})\n"


def test_prompts_are_tokenised_once(tmp_path, make):
    """The next run reads the cache: what determines its content is the same as JSON."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = DomainSpec(jsonl=(path,), text="a", prompt=PROMPT, holdout=0.2)
    for _ in range(2):
        make({"d": spec}, train_tokens=64)
    assert not [notice for notice in make.notices if "rebuilding" in notice]


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


def said(ids) -> str:
    return bytes(int(t) - 3 for t in ids.flatten() if t >= 3).decode()


def test_a_prompt_looks_up_names_only(tmp_path, make):
    """Format strings could reach attributes; here a path leads from field to field."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for prompt in ("{q.__class__}", "{0[x]}", '{"q": "?"}'):
        with pytest.raises(SourceError, match=r"x\.jsonl:1: no field") as error:
            make({"d": DomainSpec(jsonl=(path,), text="a", prompt=prompt)}, train_tokens=64)
        assert "fields here: a, hint, q" in str(error.value) and "{{ and }}" in str(error.value)


NESTED = [
    {"Short Question": f"why {i}", "meta": {"title": f"t{i}", "n": i, "none": None}, "score": 1.5}
    for i in range(60)
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_placeholders_with_spaces_paths_numbers_and_doubled_braces(tmp_path, make, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    else:
        pq.write_table(pa.Table.from_pylist(NESTED), path)
    prompt = "{{{Short Question}}} { meta.n }/{score}{meta.none}: "
    spec = DomainSpec(**{kind: (path,)}, text="meta.title", prompt=prompt, holdout=0.2)
    batch = make({"d": spec}, train_tokens=64).stream(0).next(2)
    text, trained = said(batch.ids_BT), said(batch.ids_BT[batch.trained_BT])
    number = int(text.partition("why ")[2].partition("}")[0])
    assert f"{{why {number}}} {number}/1.5: t{number}" in text
    assert "why" not in trained and f"t{number}" in trained


def test_a_field_named_with_a_dot_comes_before_a_path(tmp_path, make):
    path = tmp_path / "x.jsonl"
    rows = [{"m.t": f"own {i} {'x' * 40}", "m": {"t": "path"}} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DomainSpec(jsonl=(path,), text="m.t", holdout=0.2)
    text = said(make({"d": spec}, train_tokens=64).stream(0).next(2).ids_BT)
    assert "own" in text and "path" not in text


@pytest.mark.parametrize("prompt", ["{q", "q}", "{}", "{ }", "a {{q} b", "{a{q}}"])
def test_a_brace_that_is_no_field_is_refused_by_the_recipe(tmp_path, prompt):
    path = recipe(tmp_path, "")
    with pytest.raises(RecipeError, match=r"data\.domains\.letters\.prompt: a brace") as error:
        load_recipe(path, [f"data.domains.letters.prompt={json.dumps(prompt)}"])
    assert "{{" in str(error.value)


@pytest.mark.parametrize("part", ["train", "heldout"])
@pytest.mark.parametrize("some", [False, True])
def test_windows_of_prompts_alone_are_counted_or_refused(tmp_path, make, part, some):
    """Their perplexity would be 1 and their saliency 0."""
    usual, long = ([{"q": "q" * n, "a": f"answer {i} {n}"} for i in range(9)] for n in (0, 4000))
    for name, rows in (("usual", usual), ("asked", [*long, *usual] if some else long)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = dict.fromkeys(("train", "heldout"), tmp_path / "usual.jsonl")
    texts[part] = tmp_path / "asked.jsonl"
    spec = DomainSpec(
        jsonl=(texts["train"],), validation=(texts["heldout"],), text="a", prompt="{q}"
    )
    count = 2000 if some else 100  # of windows that hold 32 tokens each
    how = {"train_tokens": 32 * count, "heldout_sequences": count}
    name = {"train": "training", "heldout": "held-out"}[part]
    if not some:
        with pytest.raises(SourceError, match=rf"s\.d: all 10[01] {name} sequences are of prompts"):
            make({"d": spec}, **how)
        return
    make({"d": spec}, **how)
    (said,) = [n for n in make.notices if "of prompts alone" in n]
    assert "domain 'd': 1,1" in said and " of 1,13" in said and name in said


def test_nothing_predicted_is_no_loss_and_no_perplexity():
    model, ids = tiny(), tokens(2, seed=2)
    none = torch.zeros(ids.shape, dtype=torch.bool)
    none[:, 0] = True  # nothing predicts the first token
    with pytest.raises(RunError, match="no token of the held-out text"):
        perplexity(model, ids, 2, none)
    with pytest.raises(RunError, match="no token of the held-out text"):
        perplexity(model, ids[:0], 2)
    with pytest.raises(NotFinite, match="no token of the batch"):
        backward(model, Batch(ids, ("a",) * 2, (("a", 0),) * 2, none), TrainSpec(tokens=1))


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
