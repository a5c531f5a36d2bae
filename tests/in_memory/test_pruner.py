"""Pruning in a training loop of a script, and within a Trainer of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import effcompress as ec
from effcompress.measure.stats import TrainingStats
from effcompress.registry import REGISTRY, Bound
from effcompress.saliency.average import ScoreAverage
from effcompress.saliency.score import score
from effcompress.spec import MeasureSpec
from tests.conftest import tiny, tokens

SPACE = ["attention", "ffn", "hidden"]


def trained(model: Any, optimizer: Any, pruner: ec.Pruner, steps: int) -> list[int]:
    """Parameters after every step."""
    sizes = []
    for seed in range(steps):
        ids = tokens(seed=seed)
        loss = model(input_ids=ids, labels=ids).loss  # is alive where a cut is made
        loss.backward()
        pruner.step()
        sizes.append(pruner.params)
    return sizes


@pytest.mark.parametrize("criterion", ["taylor", "mask_fisher"])
@pytest.mark.parametrize("repair", [["norm_gain"], ["norm_gain", "obs_update"]])
def test_a_plain_loop(criterion: str, repair: list[str]) -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held = {name: id(p) for name, p in model.named_parameters()}
    pruner = ec.Pruner(
        model,
        optimizer,
        keep=0.7,
        steps=10,
        warmup=2,
        until=8,
        criterion=criterion,
        space=SPACE,
        repair=repair,
    )
    sizes = trained(model, optimizer, pruner, 10)
    assert sizes[1] == 41_280 > sizes[2] > sizes[4] > sizes[7] == sizes[9]
    assert pruner.done and abs(sizes[-1] / pruner.target - 1) <= 0.005
    found = pruner.finish()
    assert found.after.params == sizes[-1] == sum(p.numel() for p in model.parameters())
    assert len(found.cuts) >= 5 and not found.warnings
    assert {name: id(p) for name, p in model.named_parameters()} == held
    for p in model.parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape and optimizer.state[p]["step"] == 10
    assert not model._forward_pre_hooks
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    again = pruner.finish()
    assert again.plan == found.plan


def test_the_first_cut_is_by_the_mean_saliency_of_the_steps() -> None:
    """Against scores of an own loop: the running mean of ``|w g|`` over three steps."""
    model, twin = tiny("gqa_untied").train(), tiny("gqa_untied").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    own = torch.optim.AdamW(twin.parameters(), lr=1e-3)
    schedule = {"name": "continuous", "every": 3, "groups": 1}
    measure = {"average": "decay", "decay": 0.5}
    pruner = ec.Pruner(
        model,
        optimizer,
        keep=0.9,
        steps=100,
        space=[{"name": "ffn", "scope": "per_layer"}],
        schedule=schedule,
        measure=measure,
        commit_every=1,
    )
    groups = ec.mini_groups(twin, [{"name": "ffn", "scope": "per_layer"}])
    average = ScoreAverage({s.name: s.units for s in groups}, MeasureSpec(decay=0.5))
    taylor = Bound(REGISTRY.get("criterion", "taylor"), {"signed": False})
    for seed in range(3):
        ids = tokens(seed=seed)
        twin(input_ids=ids, labels=ids).loss.backward()
        scores = score(groups.found, taylor, TrainingStats(twin, {"grad"}, None))
        average.update(scores, {s.name: torch.arange(s.units) for s in groups})
        own.step()
        own.zero_grad()
    trained(model, optimizer, pruner, 3)
    (cut,) = pruner.finish().cuts[:1]
    mean = average.read()
    name = min(mean, key=lambda n: float(mean[n].min()))
    assert cut.plan == {name: [int(mean[name].argmin())]}


def test_the_three_parts_of_a_step_and_evaluation_between() -> None:
    """A loop with its own clipping; evaluation is not measured."""
    models = [tiny("gqa_tied").train() for _ in range(2)]
    found = []
    for model in models:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        how: Any = {"criterion": "mask_fisher", "repair": ["obs_update"], "space": ["ffn"]}
        pruner = ec.Pruner(model, optimizer, keep=0.8, steps=4, **how)
        for seed in range(4):
            ids = tokens(seed=seed)
            model(input_ids=ids, labels=ids).loss.backward()
            if model is models[0]:
                pruner.step()
                continue
            pruner.observe()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.eval()
            with torch.no_grad():
                model(input_ids=tokens(4, seed=90 + seed))
            model.train()
            pruner.cut_if_due()
        found.append(pruner.finish())
    assert found[0].plan == found[1].plan
    for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(own, other)


def test_micro_batches_add_up() -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    pruner = ec.Pruner(model, optimizer, shape={"ffn": 30}, steps=2, criterion="mask_fisher")
    for seed in range(2):
        for micro in range(3):
            ids = tokens(seed=10 * seed + micro)
            (model(input_ids=ids, labels=ids).loss / 3).backward()
        pruner.step()
    assert pruner.finish().after.shape["intermediate_size"] == 30


def test_what_is_left_goes_at_the_end_with_a_warning() -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = {"name": "continuous", "every": 1, "groups": 1}
    pruner = ec.Pruner(
        model, optimizer, keep=0.6, steps=3, schedule=schedule, criterion="magnitude"
    )
    trained(model, optimizer, pruner, 2)
    assert not pruner.done
    found = pruner.finish()
    assert abs(found.after.params / found.before.params / 0.6 - 1) <= 0.005
    assert len(found.warnings) == 1 and "too many" in found.warnings[0]


def test_an_output_that_is_alive() -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = ec.Pruner(model, optimizer, keep=0.6, steps=1)
    ids = tokens()
    looked_at = model(input_ids=ids)
    model(input_ids=ids, labels=ids).loss.backward()
    with pytest.raises(ec.SurgeryError, match="an output of the model") as error:
        pruner.step()
    assert "no_grad" in str(error.value.fix) and looked_at.logits.requires_grad


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = ec.Pruner(model, optimizer, keep=0.9, steps=3)
    for factor in (1.0, float("inf"), 1.0):
        ids = tokens()
        loss = model(input_ids=ids, labels=ids).loss * factor
        loss.backward()
        if factor != 1.0:
            pruner.observe()
            optimizer.zero_grad()
            pruner.cut_if_due()
        else:
            pruner.step()
    found = pruner.finish()
    assert "step 2 is not measured" in found.warnings[0]
    assert found.after.params < found.before.params


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"steps": 0}, "between step 0 and step 0 of 0"),
        ({"steps": 10, "warmup": 10}, "between step 10 and step 10"),
        ({"steps": 10, "until": 11}, "step 11 of 10"),
        ({"steps": 10, "schedule": "cubik"}, "no schedule named 'cubik'"),
        ({"steps": 10, "schedule": {"name": "constant_rate", "start": 20}}, "start is 20"),
        ({"steps": 10, "criterion": "wanda"}, "measures on calibration text, not on training"),
        ({"steps": 10, "schedule": {"name": "once", "at": 0}}, "cuts at step 0"),
    ],
)
def test_refused(given: dict[str, Any], what: str) -> None:
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ec.EffcompressError, match=what) as error:
        ec.Pruner(model, optimizer, keep=0.8, **given)
    assert error.value.exit_code == 2


def test_an_optimizer_of_another_model() -> None:
    with pytest.raises(ec.SurgeryError, match="not in the optimizer"):
        ec.Pruner(tiny(), torch.optim.AdamW(tiny().parameters()), keep=0.8, steps=3)


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_a_cut_model_knows_its_shape(tmp_path: Path) -> None:
    model = tiny("gqa_untied")
    ec.cut(model, {"ffn.0": [0, 1], "attention_block.1": [0]})
    twin = copy.deepcopy(model)
    saved = ec.save(twin, tmp_path / "out")
    assert saved.form == "padded" and saved.max_logit_difference < 1e-5
