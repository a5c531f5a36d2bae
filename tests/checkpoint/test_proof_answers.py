"""What the proof makes of the fresh process's answers: each kind of difference alone is enough."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from effcompress.checkpoint import proof, prove
from effcompress.errors import RunError
from tests.conftest import tiny, tokens

Answers = dict[str, Tensor]
script = proof.script


def one_by_one(model: Any) -> Tensor:
    """The 16 most probable tokens behind the first row, without EOS, each by a pass of its own."""
    row = tokens(2, 10)[:1]
    for _ in range(16):
        with torch.no_grad():
            step_BV = model(input_ids=row, use_cache=False).logits[:, -1]
        step_BV[:, model.generation_config.eos_token_id] = -torch.inf
        row = torch.cat([row, step_BV.argmax(-1, keepdim=True)], 1)
    return row[0, 10:]


@pytest.fixture
def model() -> nn.Module:
    made = tiny("gqa_tied")
    made.generation_config = GenerationConfig(eos_token_id=2)
    return made


@pytest.fixture
def prove_with(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Answers], None]], proof.Proof]:
    """A proof whose fresh process gives the right answers, after ``change``."""

    def run(change: Callable[[Answers], None]) -> proof.Proof:
        with torch.no_grad():
            logits_BTV, greedy_T = model(input_ids=tokens(2, 10)).logits, one_by_one(model)
        answers = {"logits_BTV": logits_BTV, "cached_T": greedy_T, "uncached_T": greedy_T}
        answers = {name: t.clone() for name, t in answers.items()}
        change(answers)
        monkeypatch.setattr(proof, "in_fresh_process", lambda *_: answers)
        return prove(Path("out"), model, tokens(2, 10))

    return run


def test_the_same_answers_are_a_proof(prove_with: Callable[..., proof.Proof]) -> None:
    found = prove_with(lambda _answers: None)
    assert found.max_logit_difference == 0.0 and found.tokens_equal and found.cache_equal


def test_one_logit_too_far_is_none(prove_with: Callable[..., proof.Proof]) -> None:
    """A ten-thousandth, where rounding does a millionth."""
    for moved in (1e-4, -1e-4, float("nan")):
        with pytest.raises(RunError, match="logits differ by"):
            prove_with(lambda a, moved=moved: a["logits_BTV"][1, 3, 7].add_(moved))
    assert prove_with(lambda a: a["logits_BTV"][1, 3, 7].add_(5e-6)).max_logit_difference > 0


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (
            ("cached_T", "uncached_T"),
            "greedy tokens equal: False, with and without cache equal: True",
        ),
        (("uncached_T",), "greedy tokens equal: True, with and without cache equal: False"),
    ],
)
def test_one_other_token_is_none(
    prove_with: Callable[..., proof.Proof], kinds: tuple[str, ...], said: str
) -> None:
    def change(answers: Answers, at: int) -> None:
        for kind in kinds:
            answers[kind][at] = (answers[kind][at] + 1) % 61

    for at in (0, 1, 7, 15):
        with pytest.raises(RunError, match=said):
            prove_with(functools.partial(change, at=at))


def test_fewer_tokens_are_none(prove_with: Callable[..., proof.Proof]) -> None:
    def change(answers: Answers) -> None:
        answers |= {kind: answers[kind][:-1] for kind in ("cached_T", "uncached_T")}

    with pytest.raises(RunError, match="greedy tokens equal: False"):
        prove_with(change)


@pytest.mark.parametrize("stop", [None, 2, [2, 5]])
def test_one_pass_finds_the_tokens_that_many_find(
    model: nn.Module, stop: int | list[int] | None
) -> None:
    """Also where the most probable one is an end of the text, which is not chosen."""
    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        head.weight[[2, 5]] *= 30  # ends the text, often
    model.generation_config = GenerationConfig(eos_token_id=stop or [])
    said_T = one_by_one(model)
    assert stop is not None or {2, 5} & {*said_T.tolist()}
    row_BT = tokens(2, 10)[:1]
    with torch.no_grad():
        assert torch.equal(script.greedy(model, row_BT, said_T, stop), said_T)
        other_T = said_T.clone()
        other_T[7] = (other_T[7] + 1) % 61
        assert script.greedy(model, row_BT, other_T, stop)[7] == said_T[7]


@pytest.mark.parametrize("at", [0, 1, 7, 15])
def test_a_cache_that_errs_at_one_token_is_noticed(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real = script.generated

    def generated(*args: Any, cache: bool) -> Tensor:
        out_T = real(*args, cache=cache)
        if cache:
            out_T[at] = (out_T[at] + 1) % 61
        return out_T

    model.save_pretrained(tmp_path)
    monkeypatch.setattr(script, "generated", generated)
    found = script.answers(str(tmp_path), tokens(2, 10), "stock")
    assert found["uncached_T"][at] != found["cached_T"][at]
    assert torch.equal(found["uncached_T"][:at], found["cached_T"][:at])


def test_rounding_excuses_twice_what_it_does(
    model: nn.Module, prove_with: Callable[..., proof.Proof], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "rounding", lambda *_: 1e-4)
    found = prove_with(lambda a: a["logits_BTV"][0, 0, 0].add_(1.9e-4))
    assert found.tolerance == pytest.approx(2e-4)
    with pytest.raises(RunError, match=r"rounding: up to 0\.0002"):
        prove_with(lambda a: a["logits_BTV"][0, 0, 0].add_(2.2e-4))
