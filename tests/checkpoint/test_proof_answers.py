"""What the proof makes of the fresh process's answers: each kind of difference alone is enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn
from transformers import GenerationConfig

from effcompress.checkpoint import proof, prove
from effcompress.errors import RunError
from tests.conftest import tiny, tokens

Answers = dict[str, Tensor]


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
        logits_BTV, greedy_T = proof._expected(model, tokens(2, 10))
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
    def change(answers: Answers) -> None:
        for kind in kinds:
            answers[kind][-1] = (answers[kind][-1] + 1) % 61

    with pytest.raises(RunError, match=said):
        prove_with(change)


def test_rounding_excuses_twice_what_it_does(
    model: nn.Module, prove_with: Callable[..., proof.Proof], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "rounding", lambda *_: 1e-4)
    found = prove_with(lambda a: a["logits_BTV"][0, 0, 0].add_(1.9e-4))
    assert found.tolerance == pytest.approx(2e-4)
    with pytest.raises(RunError, match=r"rounding: up to 0\.0002"):
        prove_with(lambda a: a["logits_BTV"][0, 0, 0].add_(2.2e-4))
