"""Perplexity against an independent reference of a few lines, in fp64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from effcompress.data.stream import windows_of
from effcompress.errors import RunError
from effcompress.evaluation import continuation, perplexity
from effcompress.export.forms import form
from effcompress.export.write import save
from effcompress.model.exact import open_exact
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import shape, tiny, tokens


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
    assert len(continuation(model, tokenizer, "", 8, bos=False)) > 0  # no token to begin with
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


def pruned(model_type: str) -> PrunedModel:
    """A tiny model with masked units in every kind, each layer another number."""
    config = shape("gqa_tied", model_type=model_type)
    space = [Bound(REGISTRY.get("space", name)) for name in ("ffn", "attention", "hidden")]
    found = PrunedModel(tiny(model_type=model_type), config, space)
    plan = {s.name: list(range(1, min(s.size, 2 + (s.layer or 0)))) for s in found.sets}
    found.mask(plan, repairs=[Bound(REGISTRY.get("repair", "norm_gain"))])
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_masked_and_exact_models_agree_with_the_reference(
    model_type: str, batch_size: int, tmp_path: Path
) -> None:
    one, ids = pruned(model_type), tokens(7, 19)
    with torch.no_grad():
        masked = reference(one.module.eval(), ids)
        assert perplexity(one.module, ids, batch_size).perplexity == pytest.approx(masked, rel=1e-6)
        one.commit()
        made = form(one, "exact")
        save(made.skeleton, made.tensors, ByteTokenizer().save, tmp_path, made.files)
        opened = open_exact(tmp_path)
        exact = reference(opened, ids)
    assert perplexity(opened, ids, batch_size).perplexity == pytest.approx(exact, rel=1e-6)
    # The cut itself changes rounding only.
    assert exact == pytest.approx(masked, rel=1e-4)


@pytest.mark.parametrize("bos", [None, 1])
def test_windows_that_begin_with_bos(bos: int | None) -> None:
    """BOS is context and nothing that is predicted; each window has it once."""
    model, text = tiny().eval(), tokens(1, 30)[0]
    windows = windows_of(text.numpy(), 6, bos, 100)
    ids = torch.stack([torch.from_numpy(windows.take(k)) for k in range(windows.count)])
    size = 6 if bos is None else 5
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, 30 - size + 1, size):
            own = text[start : start + size].tolist()
            context = [] if bos is None else [bos]
            for at in range(0 if bos is not None else 1, size):
                read = torch.tensor([[*context, *own[:at]]])
                z = model(input_ids=read).logits[0, -1].double()
                total += float(torch.logsumexp(z, 0) - z[own[at]])
                count += 1
    found = perplexity(model, ids, 4)
    assert found.tokens == count
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-6)


def test_dropout_takes_no_part_and_training_goes_on() -> None:
    """In the middle of training the model is in training mode; what is measured is the model."""
    ids = tokens(3, seed=2)
    module = tiny("gqa_tied", attention_dropout=0.5)
    wanted = perplexity(module.eval(), ids, 2)
    torch.manual_seed(0)
    assert perplexity(module.train(), ids, 2) == wanted
    assert module.training


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back(training: bool) -> None:
    model = tiny().train(training)
    perplexity(model, tokens(2), 2)
    assert model.training == training
