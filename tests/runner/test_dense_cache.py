"""The dense model is measured once for all runs that start from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from effcompress.recipe import load
from effcompress.runner import evaluation
from effcompress.runner import start as story
from effcompress.runner.evaluation import description, evaluate
from effcompress.runner.run import run
from effcompress.spec import EvaluateSpec
from tests.conftest import tiny
from tests.runner.toys import events, recipe, repeatable


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per measurement: how many held-out sequences were asked for."""
    found: list[int] = []

    def counted(*given, **options):
        found.append(given[3].sequences)
        return evaluate(*given, **options)

    monkeypatch.setattr(story, "evaluate", counted)
    return found


def test_the_dense_model_is_measured_once(tmp_path: Path, measured: list[int]) -> None:
    path = recipe(tmp_path)
    first = run(load(path), output=tmp_path / "first").folder
    assert measured == [3, 3]
    again = run(load(path), output=tmp_path / "again").folder
    assert measured == [3, 3, 3]
    one, two = events(first, "evaluation"), events(again, "evaluation")
    assert two[0].pop("known") is True
    assert one[0]["seconds"] == two[0]["seconds"]
    assert repeatable(one) == repeatable(two)


@pytest.mark.parametrize(
    "change",
    ["seed=1", "evaluate.sequences=2", "data.sequence_length=16", "evaluate.new_tokens=4"],
)
def test_what_an_evaluation_depends_on_is_measured_anew(
    tmp_path: Path, measured: list[int], change: str
) -> None:
    path = recipe(tmp_path)
    run(load(path), output=tmp_path / "first")
    run(load(path, [change]), output=tmp_path / "other")
    assert len(measured) == 4
    assert "known" not in events(tmp_path / "other", "evaluation")[0]


def test_another_text_and_another_model_are_measured_anew(
    tmp_path: Path, measured: list[int]
) -> None:
    path = recipe(tmp_path)
    run(load(path), output=tmp_path / "first")
    text = (tmp_path / "letters.jsonl").read_text()
    (tmp_path / "letters.jsonl").write_text(text.replace("delta", "omega"))
    run(load(path), output=tmp_path / "text")
    run(
        load(path, ["model.shape.rope_parameters={rope_type: default, rope_theta: 500}"]),
        output=tmp_path / "model",
    )
    assert len(measured) == 6


def test_a_damaged_file_costs_a_measurement(
    tmp_path: Path, measured: list[int], own_cache: Path
) -> None:
    path = recipe(tmp_path)
    run(load(path), output=tmp_path / "first")
    (kept,) = (own_cache / "evaluations").iterdir()
    kept.write_text(kept.read_text()[:40])
    run(load(path), output=tmp_path / "again")
    assert len(measured) == 4
    run(load(path), output=tmp_path / "third")
    assert len(measured) == 5


def test_a_cache_that_cannot_be_written_costs_no_run(
    tmp_path: Path, measured: list[int], own_cache: Path
) -> None:
    (own_cache / "evaluations").write_text("in the way")
    done = run(load(recipe(tmp_path)), output=tmp_path / "first")
    assert done.perplexity
    assert len(measured) == 2


def test_everything_that_an_evaluation_depends_on_is_in_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = SimpleNamespace(domains=(), sequence_length=32, bos=None, isolated=False)
    plain = {"model_hash": "a", "config": {"rope_theta": 1e4}, "tokenizer": "t", "corpus": text}

    def key(**changes: object) -> object:
        return description(tiny(), **{**plain, "spec": EvaluateSpec(), **changes})  # type: ignore[arg-type]

    first = key()
    assert key() == first
    found = [
        key(model_hash="b"),
        key(config={"rope_theta": 1e5}),
        key(tokenizer="u"),
        key(corpus=SimpleNamespace(**{**vars(text), "sequence_length": 16})),
        key(corpus=SimpleNamespace(**{**vars(text), "isolated": True})),
        key(spec=EvaluateSpec(sequences=7)),
    ]
    monkeypatch.setattr(evaluation, "_code", lambda: "another version of the package")
    assert all(other != first for other in [*found, key()])
