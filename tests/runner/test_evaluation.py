"""The perplexity of a run counts the tokens that are trained on, and no prompts; predictions are
compared with the source model's.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effcompress import evaluation, load_recipe
from effcompress.checkpoint import Proof
from effcompress.commands.evaluate import evaluate
from effcompress.distributed.world import ALONE
from effcompress.report.comparison.columns import columns
from effcompress.report.comparison.facts import read
from effcompress.runner.evaluation import scores
from effcompress.runner.run import run
from effcompress.spec import EvaluateSpec
from tests.conftest import tiny, tokens
from tests.runner.toys import events, recipe


def test_prompts_do_not_count() -> None:
    model, ids_NT = tiny("gqa_tied"), tokens(2, seed=1)
    trained_NT = torch.zeros_like(ids_NT, dtype=torch.bool)
    trained_NT[:, ids_NT.shape[1] // 2 :] = True
    corpus: Any = SimpleNamespace(
        domains=("answers",),
        heldout_trained=lambda _domain, _count, _behind: (ids_NT, trained_NT),
        heldout_positions=lambda _domain, _count, _behind: None,
    )
    spec = EvaluateSpec(sequences=2, batch_size=1)
    found = scores(model, corpus, spec, ALONE)["answers"].perplexity
    assert found == pytest.approx(evaluation.perplexity(model, ids_NT, 1, trained_NT).perplexity)
    assert found != pytest.approx(evaluation.perplexity(model, ids_NT, 1).perplexity, rel=1e-3)


def test_a_run_is_compared_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yes = Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)
    monkeypatch.setattr("effcompress.checkpoint.prove", lambda *_, **__: yes)
    at_once = {"schedule": "{name: once, at: 0}", "measure": "{source: calibration, sequences: 4}"}
    path = recipe(tmp_path, tokens=256, selector="least_salient", **at_once)
    loaded = load_recipe(path, ["evaluate.agreement=true"])
    run(loaded, output=tmp_path / "out")
    before, after = events(tmp_path / "out", "evaluation")
    assert all("agreement" not in d for d in before["domains"].values())
    # The same by `eval`, which loads both models from their folders.
    found = evaluate(tmp_path / "out").data["domains"]
    for name, score in after["domains"].items():
        assert 0.0 < score["agreement"] < 1.0 and score["divergence"] > 0.0
        assert found[name]["agreement"] == pytest.approx(score["agreement"], abs=0.02)
        assert found[name]["divergence"] == pytest.approx(score["divergence"], rel=1e-3)
    facts = read(tmp_path / "out", shown="out").facts
    assert facts is not None and facts.agreement is not None
    scores_of = [d["agreement"] for d in after["domains"].values()]
    assert facts.agreement == pytest.approx(sum(scores_of) / len(scores_of))
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{100 * facts.agreement:.1f}" in page and "Same next token" in page
    shown = {column.key: column for column in columns([facts])}
    assert shown["agreement"].dense(facts) == 1.0 and shown["divergence"].dense(facts) == 0.0
    steps = sum(step["flops"] for step in events(tmp_path / "out", "step"))
    assert facts.flops is not None and facts.flops >= steps
