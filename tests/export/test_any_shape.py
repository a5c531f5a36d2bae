"""Whatever may be cut can be exported: any family, spaces and target, in every form on offer."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effcompress.errors import CoverageError, RunError
from effcompress.export.forms import NAMES, form
from effcompress.export.write import prove, write
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.selection.choose import choose
from effcompress.types import DEPTH, Due
from tests.conftest import FAMILIES, examples, shape, tiny, tokens

LEAST = Bound(REGISTRY.get("selector", "least_salient"), {"normalise": "raw"})


def cut_somehow(model_type: str, rng: random.Random) -> PrunedModel:
    """A model of four layers without what random saliency chose, in one to three commits."""
    layers = {"gpt2": "n_layer"}.get(model_type, "num_hidden_layers")
    more: dict[str, Any] = {"model_type": model_type, "vocab_size": 258, layers: 4}
    if model_type == "qwen3_moe":
        more |= {"mlp_only_layers": [1]}
    config, model = shape("gqa_tied", **more), tiny("gqa_tied", **more)
    for p in model.parameters():
        p.data *= 0.5 if p.dim() > 1 else 1.0  # logits of a usual size
    kinds = ["attention", "ffn", "hidden", *DEPTH]
    space = []
    for kind in rng.sample(kinds, rng.randint(1, len(kinds))):
        wide = kind in ("attention", "ffn")
        scope = {"scope": rng.choice(["lockstep", "per_layer", "global"])} if wide else {}
        space.append(Bound(REGISTRY.get("space", kind), scope))
    pruned = PrunedModel(model, config, space)
    scores = {
        s.name: torch.rand(s.size, generator=torch.Generator().manual_seed(rng.randrange(999)))
        for s in pruned.parent_sets
    }
    target = round(rng.uniform(0.2, 0.95) * pruned.params)
    for _ in range(rng.randint(1, 3)):
        alive = {
            name: torch.where(pruned.ledger.alive[name], score, torch.inf)
            for name, score in scores.items()
        }
        due = Due(params=rng.randint(target, pruned.params))
        found = choose(pruned.parent_sets, pruned.parent, alive, due, target, LEAST)
        pruned.mask(found.plan)
        pruned.commit()
        assert pruned.params == found.params == sum(p.numel() for p in pruned.parameters().values())
    return pruned


@pytest.mark.parametrize("model_type", FAMILIES)
@examples(6)
@given(seed=st.integers(0, 10**6))
def test_every_form_loads_and_computes_the_same(model_type: str, seed: int) -> None:
    rng = random.Random(seed)
    try:
        pruned = cut_somehow(model_type, rng)
    except CoverageError:  # nothing of these kinds can be cut here
        return
    ids_BT = tokens(vocab=258)
    for name in NAMES:
        try:
            made = form(pruned, name)
        except RunError as error:
            assert name != "exact" and error.fix, error
            continue
        with tempfile.TemporaryDirectory() as folder:
            write(made, pruned, ByteTokenizer(), Path(folder))
            prove(made, pruned, ids_BT, Path(folder))
