"""Likelihoods of continuations against an independent reference in fp64, one pair at a time."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from effcompress.errors import RunError
from effcompress.evaluation.choices import Likelihood, Pair, likelihoods
from tests.conftest import tiny


def reference(model: nn.Module, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = [*context, *continuation]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    total, greedy = 0.0, True
    for at in range(len(context), len(ids)):
        z = logits[at - 1]
        total += float(z[ids[at]] - torch.logsumexp(z, 0))
        greedy &= int(z.argmax()) == ids[at]
    return total, greedy


def made_up(seed: int = 0) -> list[Pair]:
    """Contexts that are shared, contexts that are not; one to five tokens to follow."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    for _ in range(6):
        context = [rng.randrange(61) for _ in range(rng.randint(1, 20))]
        for _ in range(rng.randint(1, 4)):
            pairs.append((context, [rng.randrange(61) for _ in range(rng.randint(1, 5))]))
    return pairs


def ask(model: nn.Module, pairs: list[Pair], batch_size: int = 4, most: int | None = None):
    return likelihoods(
        model, pairs, batch_size=batch_size, max_length=most, progress=lambda share: None
    )


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral", "opt"])
def test_agree_with_the_reference(model_type: str, batch_size: int) -> None:
    model, pairs = tiny(model_type=model_type).eval(), made_up()
    found = ask(model, pairs, batch_size)
    for pair, one in zip(pairs, found, strict=True):
        total, greedy = reference(model, *pair)
        assert one.total == pytest.approx(total, abs=1e-4)
        assert (one.greedy, one.cut) == (greedy, 0)


def test_greedy_is_greedy() -> None:
    model = tiny().eval()
    ids = model.generate(torch.tensor([[3, 5, 7]]), max_new_tokens=4, do_sample=False)[0].tolist()
    other = [*ids[3:6], (ids[6] + 1) % 61]
    assert [one.greedy for one in ask(model, [(ids[:3], ids[3:]), (ids[:3], other)])] == [1, 0]


def test_pairs_that_end_differently_share_a_row() -> None:
    model, seen = tiny().eval(), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = ask(model, [([1, 2, 3], [4]), ([1, 2, 3], [5]), ([1, 2], [3, 6])])
    hook.remove()
    assert [tuple(shape) for shape in seen] == [(1, 3)]
    for pair, one in zip(([4], [5]), found[:2], strict=True):
        assert one.total == pytest.approx(reference(model, [1, 2, 3], pair)[0], abs=1e-4)
    assert found[2].total == pytest.approx(reference(model, [1, 2], [3, 6])[0], abs=1e-4)


def test_what_is_too_long_loses_its_beginning() -> None:
    model = tiny().eval()
    context, answer = list(range(20)), [30, 31]
    (found,) = ask(model, [(context, answer)], most=8)
    # Nine tokens: eight are read, the last is only asked for.
    total, _ = reference(model, context[-7:], answer)
    assert (found.total, found.cut) == (pytest.approx(total, abs=1e-4), 13)


def test_twice_the_same_and_the_mode_is_restored() -> None:
    model = tiny().train()
    first: list[Likelihood] = ask(model, made_up())
    assert first == ask(model, made_up())
    assert model.training


def test_progress_ends_at_one() -> None:
    told: list[float] = []
    likelihoods(tiny(), made_up(), batch_size=4, max_length=None, progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0


def test_not_finite_is_an_error() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RunError, match="not finite"):
        ask(model, made_up())
