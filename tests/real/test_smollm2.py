"""What must hold on a real model: its known shape, its one loud channel, and the whole story."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from effcompress import data, groups, load_recipe, run
from effcompress.evaluation import perplexity
from effcompress.measure.stats import collect
from effcompress.model.families import family_of
from effcompress.model.load import LoadedModel
from effcompress.recipe import LoadedRecipe
from effcompress.registry import REGISTRY, Bound
from effcompress.saliency.score import score
from effcompress.selection.choose import choose
from effcompress.types import Due

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def test_shape_and_quality(smol: LoadedModel, corpus: data.Corpus) -> None:
    axes = groups.axes_of(smol.module, family_of(smol.config), smol.config)
    assert axes.count() == 134_515_008
    assert (axes.widths["hidden"], axes.widths["ffn.29"], axes.widths["attention.0"]) == (
        576,
        1536,
        3,
    )
    # A model that was converted wrongly is at thousands.
    found = perplexity(smol.module, corpus.heldout("prose", 4), 2).perplexity
    assert 12 < found < 25


def loud_channel(smol: LoadedModel, ids_NT: torch.Tensor) -> int:
    """The hidden channel that carries almost all energy of the residual stream."""
    with torch.no_grad():
        states = smol.module.eval()(ids_NT, output_hidden_states=True).hidden_states
        energy = torch.stack([s.float().square().mean((0, 1)) for s in states[1:-1]]).mean(0)
    share, loud = (energy / energy.sum()).max(0)
    assert share > 0.9
    return int(loud)


def test_the_loud_channel_is_never_cut(smol: LoadedModel, corpus: data.Corpus) -> None:
    """Without it the model is destroyed. The default criterion and selector must keep it even when
    two thirds of all hidden channels go.
    """
    ids_NT = corpus.calibration(4, 0)
    loud = loud_channel(smol, ids_NT[:2])
    smol.module.train()
    criterion = Bound(REGISTRY.get("criterion", "taylor"))
    axes = groups.axes_of(smol.module, family_of(smol.config), smol.config)
    sets = groups.find(axes, [Bound(REGISTRY.get("space", "hidden"))])
    scores = score(sets, criterion, collect(smol.module, ids_NT, criterion.needs, None))
    target = axes.count({"hidden": 192})
    selector = Bound(REGISTRY.get("selector", "least_salient"))
    found = choose(sets, axes, scores, Due(params=target), target, selector)
    assert len(found.plan["hidden"]) >= 380
    assert loud not in found.plan["hidden"]
    # Magnitude alone would have been no help: this is what measuring buys.
    rank = int((scores["hidden"] > scores["hidden"][loud]).sum())
    assert rank < 192, f"the loud channel is only number {rank} of 576 by saliency"


@pytest.mark.fresh_process
def test_three_kinds_in_small(
    quickstart: LoadedRecipe, smol: LoadedModel, corpus: data.Corpus, tmp_path: Path
) -> None:
    sets = ["train.tokens=2048", "evaluate.sequences=2", "evaluate.new_tokens=4"]
    sets += ["prune.schedule={name: continuous, every: 1, start: 1k, groups: 20}"]
    sets += ["prune.commit_every=20"]
    out = tmp_path / "out"
    found = run(load_recipe(quickstart.path.with_name("three_kinds_135m.yaml"), sets), output=out)
    assert found.params == pytest.approx(121e6, rel=0.005)
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    by_kind = {e["event"]: e for e in events}
    assert by_kind["end"]["status"] == "success"
    assert by_kind["proof"]["max_logit_difference"] <= 1e-5
    plans = [json.loads(line)["plan"] for line in (out / "plans.jsonl").read_text().splitlines()]
    gone = {unit for plan in plans for unit in plan.get("hidden", [])}
    assert gone and loud_channel(smol, corpus.calibration(2, 0)) not in gone
    kinds = {k for e in events if e["event"] == "cut" for k in e["removed"]}
    assert kinds == {"attention", "ffn", "hidden"}
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == found.params
    text = tokenizer("The capital of France is", return_tensors="pt")
    assert model.generate(**text, max_new_tokens=4, do_sample=False).shape[1] > 5
