"""Instruction tuning: one document per sequence, the loss of its output and EOS alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import ByteTokenizer
from torch.nn import functional

from effcompress import load_recipe, run
from effcompress.errors import RecipeError, SourceError
from effcompress.evaluation import perplexity
from effcompress.spec import DocumentsSpec, DomainSpec, TrainSpec
from effcompress.train import backward
from tests.conftest import tiny
from tests.runner.toys import events, recipe

ROWS = DocumentsSpec(pack=False)
PAIRS = [{"q": f"what is {i}", "a": f"it is {i * 'x'}{i}"} for i in range(40)]


def file_of(folder: Path, pairs: list[dict[str, str]], name: str = "pairs") -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def built(make: Any, path: Path, prompt: str = "{q}? ", **how: Any) -> Any:
    tokenizer = how.pop("tokenizer", None)
    spec = DomainSpec(jsonl=(path,), text="a", prompt=prompt, holdout=how.pop("holdout", 0.0))
    defaults = {"train_tokens": 640, "sequence_length": 64, "documents": ROWS}
    return make({"d": spec}, tokenizer, **{**defaults, **how})


def test_a_row_is_a_prompt_an_output_and_eos(tmp_path: Path, make: Any) -> None:
    corpus = built(make, file_of(tmp_path, PAIRS))
    batch, decode = corpus.stream(0).next(40), ByteTokenizer().decode
    seen = set()
    for ids, trained in zip(batch.ids_BT, batch.trained_BT, strict=True):
        prompt, output = ids[: int(trained.nonzero()[0])], ids[trained]
        number = int(decode(prompt.tolist()).removeprefix("what is ").removesuffix("? "))
        assert decode(output.tolist()) == PAIRS[number]["a"] and int(output[-1]) == 2
        behind = ids[int(trained.nonzero()[-1]) + 1 :]
        assert (behind == 2).all()  # padding is EOS too, and that erases no label
        seen.add(number)
    assert seen == set(range(40))
    longest = max(len(f"{p['q']}? {p['a']}") + 1 for p in PAIRS)
    assert batch.ids_BT.shape == (40, longest)  # not 64


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_loss_is_the_mean_over_output_and_eos(
    tmp_path: Path, make: Any, adds_bos: bool
) -> None:
    tokenizer = ByteTokenizer(adds_bos=adds_bos)
    corpus = built(make, file_of(tmp_path, PAIRS[:3]), tokenizer=tokenizer)
    model, bos = tiny(vocab_size=259), [1] if adds_bos else []
    wanted = []
    for pair in PAIRS[:3]:
        before, after = tokenizer.encode([f"{pair['q']}? ", pair["a"]])
        ids = torch.tensor([*bos, *before, *after, 2])
        logits = model(input_ids=ids[None]).logits[0, :-1]
        each = functional.cross_entropy(logits, ids[1:], reduction="none")
        wanted.append(float(each[-len(after) - 1 :].mean().detach()))
    batch = corpus.stream(0).next(3)
    found = backward(model, batch, TrainSpec(tokens=1, batch_size=3))
    assert found.loss == pytest.approx(sum(wanted) / 3, rel=1e-6)


def test_a_longer_prompt_has_as_many_labels(tmp_path: Path, make: Any) -> None:
    """And the same ones: no token is lost or won where the prompt ends."""
    labels = []
    for name, prompt in (("one", "{q}? "), ("two", "{q}? {q}? ")):
        corpus = built(make, file_of(tmp_path, PAIRS[:8], name), prompt)
        batch = corpus.stream(0).next(8)
        rows = zip(batch.ids_BT, batch.trained_BT, strict=True)
        labels.append(sorted(tuple(ids[trained].tolist()) for ids, trained in rows))
    assert labels[0] == labels[1]
    assert sum(map(len, labels[0])) == sum(len(p["a"]) + 1 for p in PAIRS[:8])


def test_pairs_without_a_label_are_dropped_counted_and_named(tmp_path: Path, make: Any) -> None:
    long = {"q": "q" * 62, "a": "never read"}  # 62 + "? " fill the sequence
    pairs = [*PAIRS[:5], long, *PAIRS[5:], {**long, "q": "z" * 99}]
    corpus = built(make, file_of(tmp_path, pairs))
    (said,) = [n for n in make.notices if "no token to learn" in n]
    assert said.startswith("domain 'd': 2 of 42 training documents have no token to learn")
    assert f"within 64 and are left out; the first is at {tmp_path}/pairs.jsonl:6;" in said
    assert corpus.stream(0).next(40).trained_BT.any(1).all()
    almost = {"q": "q" * 61, "a": "x is read"}
    corpus = built(make, file_of(tmp_path, [almost], "almost"))
    batch = corpus.stream(0).next(1)
    assert batch.trained_BT.sum() == 1 and batch.ids_BT.shape == (1, 64)
    assert batch.ids_BT[0, -1] == ord("x") + 3  # cut on the right: no EOS
    with pytest.raises(SourceError, match="all 1 training documents are of prompts alone"):
        built(make, file_of(tmp_path, [long], "all"))


def test_held_out_pairs_are_dropped_too_and_scored_by_their_outputs(
    tmp_path: Path, make: Any
) -> None:
    long = [{"q": f"{i}" + "q" * 99, "a": "never read"} for i in range(30)]
    path = file_of(tmp_path, [*PAIRS, *long])
    corpus = built(make, path, holdout=0.5, heldout_sequences=100)
    (said,) = [n for n in make.notices if "held-out documents have no token" in n]
    number = int(said.partition("jsonl:")[2].partition(";")[0])
    assert number > 40
    ids, trained = corpus.heldout_trained("d", 100)
    assert 10 < len(ids) < 30 and trained.any(1).all()
    few, _ = corpus.heldout_trained("d", 3)
    assert len(few) == 3 and ids[:3, : few.shape[1]].equal(few)
    model = tiny(vocab_size=259)
    found = perplexity(model, ids, 4, trained)
    outputs = [ByteTokenizer().decode(i[t].tolist()) for i, t in zip(ids, trained, strict=True)]
    assert set(outputs) <= {p["a"] for p in PAIRS}
    assert found.tokens == sum(len(o) + 1 for o in outputs)


def test_documents_without_prompts_lie_one_to_a_row(jsonl: Any, texts: Any, make: Any) -> None:
    documents = ["one", "a" * 99, "three words here"]
    spec = DomainSpec(jsonl=(jsonl("a.jsonl", documents),), holdout=0.0)
    corpus = make({"d": spec}, train_tokens=96, documents=ROWS)
    rows = corpus.stream(0).next(3)
    said = sorted(ByteTokenizer().decode(ids.tolist()) for ids in rows.ids_BT)
    assert said == ["a" * 32, "one", "three words here"]
    packed = make({"d": spec}, train_tokens=96)
    assert packed.fingerprint != corpus.fingerprint


def test_a_run_counts_rows_of_full_length_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path, pairs = recipe(tmp_path), file_of(tmp_path, PAIRS)
    domain = {"jsonl": str(pairs), "text": "a", "prompt": "{q}? ", "holdout": "20%"}
    sets = [f"data.domains={json.dumps({'d': domain})}", "data.documents={pack: false}"]
    sets += ["train.tokens=2560", "train.batch_size=4", "data.sequence_length=64"]
    loaded = load_recipe(path, ["prune=null", *sets])
    run(loaded, output=tmp_path / "out")
    steps = events(tmp_path / "out", "step")
    assert [s["tokens"] for s in steps] == [256 * n for n in range(1, 11)]
    assert len({s["flops"] for s in steps}) > 1  # of the rows as long as they are
    before, after = events(tmp_path / "out", "evaluation")
    assert after["domains"]["d"]["loss"] < before["domains"]["d"]["loss"] - 0.1
    for section in ("prune", "sparsify"):
        more = ["prune=null", "sparsify={method: magnitude, sparsity: 50%}"]
        with pytest.raises(RecipeError, match="pack: false is for training alone"):
            load_recipe(path, [*sets, *(more if section == "sparsify" else [])])
