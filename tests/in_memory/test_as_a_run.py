"""A model that a script holds loses what `effcompress run` takes from it by the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import effcompress as ec
from effcompress.model.load import load as load_model
from effcompress.record import events
from effcompress.runner.start import corpus_of
from tests.runner.test_baselines import SEQUENCES, write_model
from tests.runner.toys import texts

EACH = [{"name": "attention", "scope": "global"}, {"name": "ffn", "scope": "global"}]
ALONE = [{"name": "attention", "scope": "per_layer"}, {"name": "ffn", "scope": "per_layer"}]
CASES: dict[str, dict[str, Any]] = {
    "masks": {"criterion": "mask_fisher", "space": EACH},
    "weights": {"criterion": {"name": "magnitude", "norm": "l2"}, "space": ["ffn", "hidden"]},
    "hessian": {"criterion": "taylor_second", "space": EACH, "normalise": "per_kind"},
    "rounds": {"criterion": "taylor", "space": ["ffn", "hidden", "attention"], "rounds": 3},
    "biases": {"criterion": "flap", "space": EACH, "repair": ["bias_mean"], "normalise": "raw"},
    "inputs": {"criterion": "wanda", "space": EACH, "repair": ["obs_update"], "propagate": True},
    "refit": {"criterion": "taylor", "space": ["attention", "ffn"], "refit": "least_squares"},
    "depth": {"criterion": "block_influence", "repair": [], "shape": {"layer": 3}},
    "levels": {"criterion": "ziplm", "space": ALONE, "repair": ["obs_update"]}
    | {"allocation": {"name": "dynamic_program", "shrink": 0.8}},
}
KEEP = {"keep": 0.8}


def recipe(folder: Path, of: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run, as a mapping, that asks for the same."""
    other = ("normalise", "rounds", "propagate", "keep", "shape")
    kept = {k: v for k, v in of.items() if k not in other}
    kept.setdefault("space", [*of.get("shape", {})])
    if "normalise" in of:
        kept["selector"] = {"name": "least_salient", "normalise": of["normalise"]}
    measure = {"source": "calibration", "sequences": SEQUENCES, "refit_sequences": SEQUENCES}
    return {
        "name": "toy",
        "model": {"folder": folder / "model", "tokenizer": "bytes"},
        "data": {
            "sequence_length": 24,
            "domains": {
                name: {"jsonl": folder / f"{name}.jsonl", "holdout": "20%"}
                for name in ("letters", "numbers")
            },
        },
        "prune": {
            "target": {"shape": of["shape"]} if "shape" in of else KEEP,
            "measure": {**measure, "propagate": of.get("propagate", False)},
            "schedule": {"name": "once", "at": 0, "rounds": of.get("rounds", 1)},
            **kept,
        },
        "evaluate": {"sequences": 2, "new_tokens": 4},
        "export": {"form": "exact"},
    }


def ran(folder: Path, of: dict[str, Any]) -> tuple[ec.Report, Tensor]:
    """(the report of a run by this recipe, its calibration tokens)."""
    texts(folder)
    write_model(folder)
    loaded = ec.load_recipe(recipe(folder, of))
    report = ec.run(loaded, output=folder / "run")
    source = load_model(loaded.recipe.model, seed=0, offline=True, progress=print)
    corpus = corpus_of(loaded.recipe, source.tokenizer, offline=True, say=print, notice=print)
    return report, corpus.calibration(SEQUENCES, 0)


@pytest.mark.parametrize("case", CASES)
def test_the_same_mini_groups_go_and_the_same_weights_stay(case: str, tmp_path: Path) -> None:
    of = CASES[case] if "shape" in CASES[case] else {**KEEP, **CASES[case]}
    report, ids_NT = ran(tmp_path, of)
    plan: dict[str, list[int]] = {}
    for cut in events.read_plans(tmp_path / "run" / "plans.jsonl"):
        for name, units in cut.plan.items():
            plan[name] = sorted([*plan.get(name, []), *units])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    found = ec.prune(model, [ids_NT[:2], ids_NT[2:]], **of)
    assert found.plan == plan and sum(map(len, plan.values())) > 0
    assert len(found.cuts) == of.get("rounds", 1)
    if "keep" in of:
        assert abs(found.after.params / found.before.params / of["keep"] - 1) <= 0.005
    assert found.after.params == report.params == report.after.params
    assert found.after.shape == report.after.shape and found.before.shape == report.before.shape
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run", trust_remote_code=True)
    with torch.no_grad():
        wanted = theirs.eval()(ids_NT, use_cache=False).logits
        logits = model.eval()(ids_NT, use_cache=False).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)


def test_step_by_step_is_the_same_as_in_one_call(tmp_path: Path) -> None:
    texts(tmp_path)
    write_model(tmp_path)
    batches = torch.randint(0, 258, (4, 20), generator=torch.Generator().manual_seed(1))
    how: dict[str, Any] = {"criterion": "taylor", "space": ["attention", "ffn", "hidden"]}
    steps, once = (AutoModelForCausalLM.from_pretrained(tmp_path / "model") for _ in range(2))
    groups = ec.mini_groups(steps, how["space"])
    scores = ec.scores(steps, batches, **how)
    plan = ec.choose(groups, scores, keep=0.75, normalise="raw")
    by_steps = ec.cut(steps, plan)
    in_one = ec.prune(once, batches, keep=0.75, normalise="raw", **how)
    assert by_steps.plan == in_one.plan and by_steps.after == in_one.after
    for own, other in zip(steps.parameters(), once.parameters(), strict=True):
        assert torch.equal(own, other)
