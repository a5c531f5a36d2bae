"""The perplexity of a run counts the tokens that are trained on, and no prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effcompress import evaluation
from effcompress.distributed.world import ALONE
from effcompress.runner.evaluation import scores
from effcompress.spec import EvaluateSpec
from tests.conftest import tiny, tokens


def test_prompts_do_not_count() -> None:
    model, ids_NT = tiny("gqa_tied"), tokens(2, seed=1)
    trained_NT = torch.zeros_like(ids_NT, dtype=torch.bool)
    trained_NT[:, ids_NT.shape[1] // 2 :] = True
    corpus: Any = SimpleNamespace(
        domains=("answers",),
        heldout_trained=lambda _domain, _count: (ids_NT, trained_NT),
        heldout_positions=lambda _domain, _count: None,
    )
    spec = EvaluateSpec(sequences=2, batch_size=1)
    found = scores(model, corpus, spec, ALONE)["answers"].perplexity
    assert found == pytest.approx(evaluation.perplexity(model, ids_NT, 1, trained_NT).perplexity)
    assert found != pytest.approx(evaluation.perplexity(model, ids_NT, 1).perplexity, rel=1e-3)
