"""Mini-groups, scores, choice and cut, one by one, on models that a script holds."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, FalconMambaConfig

import effcompress as ec
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import shape, tiny, tokens

EACH: list[Any] = [{"name": k, "scope": "global"} for k in ("attention", "ffn")]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.float()


def test_mini_groups_say_what_goes_together() -> None:
    model = tiny("gqa_tied")
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = ec.mini_groups(model)
    assert {kind: len(sets) for kind, sets in found.kinds.items()} == {
        **{"attention": 3, "ffn": 3, "hidden": 1}
    }
    assert found.params == sum(p.numel() for p in model.parameters())
    # A KV head with its two query heads: rows of q, k, v and columns of o.
    assert found["attention.1"].units == 3
    assert found["attention.1"].params == 48 * 8 * (2 + 1 + 1 + 2)
    assert found["ffn.0"].params == 3 * 48 and found["ffn.0"].units == 40
    assert "ffn" in str(found) and "<table>" in found._repr_html_()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_space_is_named_as_in_a_recipe() -> None:
    model = tiny("mha_untied")
    (kind,) = ec.mini_groups(model, "layer").kinds
    assert kind == "layer"
    found = ec.mini_groups(model, [{"name": "ffn", "minimum": 12, "skip_layers": [0]}])
    assert [s.name for s in found] == ["ffn.1", "ffn.2"] and found[0].minimum == 12


def test_scores_are_those_of_an_own_computation() -> None:
    """``|w g|`` of a channel: rows of gate and up, a column of down, mean gradient of sequences."""
    model = tiny("gqa_untied")
    ids = tokens(3)
    found = ec.scores(model, ids, criterion="taylor", space="ffn")
    own = copy.deepcopy(model)
    for row in ids:
        (own(input_ids=row[None], labels=row[None]).loss / len(ids)).backward()
    mlp = own.model.layers[1].mlp
    both = [(m.weight * m.weight.grad).abs() for m in (mlp.gate_proj, mlp.up_proj)]
    down = (mlp.down_proj.weight * mlp.down_proj.weight.grad).abs()
    wanted = both[0].sum(1) + both[1].sum(1) + down.sum(0)
    torch.testing.assert_close(found["ffn.1"], wanted.detach(), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters()) and not model.training


def test_padding_is_taken_off_and_lengths_may_differ() -> None:
    model = tiny("gqa_tied")
    long, brief = tokens(1, 14, seed=1), tokens(1, 9, seed=2)
    padded = torch.zeros(2, 14, dtype=torch.long)
    padded[0], padded[1, 5:] = long[0], brief[0]
    mask = torch.ones_like(padded)
    mask[1, :5] = 0
    batch = {"input_ids": padded, "attention_mask": mask}
    for criterion in ("taylor", "wanda"):
        how: Any = {"criterion": criterion, "space": EACH}
        wanted = ec.scores(model, [long, brief[0]], **how)
        found = ec.scores(model, DataLoader([batch], batch_size=None), **how)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_labels_and_a_loss_of_ones_own() -> None:
    model = tiny("gqa_tied")
    ids = tokens(2)
    labels = ids.clone()
    labels[:, :6] = -100
    half = ec.scores(model, {"input_ids": ids, "labels": labels}, space="ffn")
    seen = []

    def loss(module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append((batch["input_ids"].shape, int(batch["weight"])))
        out = module(input_ids=batch["input_ids"]).logits[0, 5:-1].float()
        return torch.nn.functional.cross_entropy(out, batch["input_ids"][0, 6:])

    batch = {"input_ids": ids, "weight": torch.tensor([3, 4])}
    own = ec.scores(model, batch, space="ffn", loss=loss)
    assert seen == [((1, 12), 3), ((1, 12), 4)]
    whole = ec.scores(model, ids, space="ffn")
    torch.testing.assert_close(own["ffn.0"], half["ffn.0"], rtol=1e-5, atol=1e-8)
    assert not torch.allclose(whole["ffn.0"], half["ffn.0"], rtol=1e-3)


@pytest.mark.parametrize("space", [["attention", "ffn", "hidden"], EACH, ["layer", "ffn"]])
@pytest.mark.parametrize("name", ["gqa_tied", "mha_untied"])
def test_masked_equals_cut(name: str, space: Any) -> None:
    model = tiny(name)
    groups = ec.mini_groups(model, space)
    scores = ec.scores(model, tokens(3), space=space)
    plan = ec.choose(groups, scores, keep=0.7, selector="in_turns")
    assert plan and {name.partition(".")[0] for name in plan} <= {*groups.kinds}
    masked = copy.deepcopy(model)
    by_hand = PrunedModel(masked, shape(name))
    by_hand.parent_sets = by_hand.sets = list(groups.found)
    by_hand.ledger = type(by_hand.ledger)({s.name: s.size for s in groups.found})
    by_hand.mask(plan, repairs=[Bound(REGISTRY.get("repair", "norm_gain"))])
    found = ec.cut(model, plan)
    assert found.after.params == sum(p.numel() for p in model.parameters())
    assert abs(found.after.params / found.before.params / 0.7 - 1) <= 0.005
    ids = tokens(2, seed=5)
    torch.testing.assert_close(logits(model, ids), logits(masked, ids), rtol=0, atol=1e-4)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is ("untied" not in name)
    out = model.generate(ids[:1], max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert out.shape == (1, 16)


def test_moments_follow_bit_for_bit_and_training_goes_on() -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(seed: int) -> None:
        ids = tokens(seed=seed)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for seed in range(3):
        step(seed)
    held = {name: id(p) for name, p in model.named_parameters()}
    old = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    gone = [2, 17, 39]
    left = [u for u in range(40) if u not in gone]
    ec.cut(model, {"ffn.1": gone}, optimizer=optimizer)
    assert {name: id(p) for name, p in model.named_parameters()} == held
    for name, p in model.named_parameters():
        moment, wanted = optimizer.state[p]["exp_avg"], old[name]
        if "layers.1.mlp.down" in name:
            wanted = wanted[:, left]
        elif "layers.1.mlp" in name:
            wanted = wanted[left]
        assert torch.equal(moment, wanted), name
    assert model.training
    step(4)


def test_a_cut_model_is_cut_again() -> None:
    """Layers of other widths, and a missing block, which its configuration has no place for."""
    model = tiny("gqa_untied")
    ec.cut(model, {"ffn.0": [1, 2], "mlp_block.1": [0], "attention.2": [0]})
    again = ec.mini_groups(model, ["ffn", "attention"])
    assert [s.name for s in again.kinds["ffn"]] == ["ffn.0", "ffn.2"]
    assert again["ffn.0"].units == 38 and again["attention.2"].units == 2
    found = ec.prune(copy.deepcopy(model), tokens(), params=found_size(model) - 4000, space=EACH)
    assert abs(found.after.params - (found_size(model) - 4000)) <= 0.005 * found.after.params


def found_size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    model = tiny("gqa_tied", dtype=dtype)
    found = ec.prune(model, tokens(3), keep=0.7, criterion="mask_fisher")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert abs(found.after.params / found.before.params / 0.7 - 1) <= 0.005
    assert torch.isfinite(logits(model, tokens())).all()


def test_biases_that_a_repair_needs_join_the_optimizer() -> None:
    model = tiny("gqa_tied").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = ec.prune(
        model,
        tokens(4),
        keep=0.8,
        criterion="flap",
        space=EACH,
        repair=["bias_mean"],
        optimizer=optimizer,
    )
    assert model.model.layers[0].mlp.down_proj.bias is not None
    assert found.before.params > 41_280, "the biases count"
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def test_an_architecture_that_is_not_declared_is_traced() -> None:
    model = tiny("gqa_untied", model_type="apertus")
    found = ec.prune(model, tokens(3), keep=0.8, space=["ffn", "attention"])
    assert sum(found.removed.values()) > 0
    assert found_size(model) == found.after.params


def test_a_mixture_of_experts() -> None:
    model = tiny("gqa_untied", model_type="mixtral")
    found = ec.prune(model, tokens(6, 20), shape={"expert": 3}, criterion="reap")
    assert [len(units) for units in found.plan.values()] == [2, 2, 2]
    assert model.config.num_local_experts == 3


def test_the_result_shows_itself() -> None:
    model = tiny("gqa_tied")
    found = ec.prune(model, tokens(3), shape={"attention": 2, "ffn": 30, "hidden": 40})
    assert found.after.shape["intermediate_size"] == 30
    assert found.after.shape["hidden_size"] == 40 == model.config.hidden_size
    assert found.after.shape["num_key_value_heads"] == 2
    assert len(found.kept["ffn.1"]) == 30
    assert not {*found.kept["ffn.1"]} & {*found.plan["ffn.1"]}
    drawn = found.pictures()
    assert {*drawn} == {"left", "shape_attention", "shape_ffn"}
    assert all(svg.startswith("<svg") for svg in drawn.values())
    assert "41,280" in found._repr_html_() and "->" in str(found)


def test_nothing_of_it_is_imported_with_the_package() -> None:
    code = "import sys, effcompress; effcompress.__all__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_random_state_of_the_script_stays() -> None:
    model = tiny("gqa_tied")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ec.prune(model, tokens(3), keep=0.9)
    assert torch.equal(torch.get_rng_state(), before)


def test_falcon_mamba_is_refused_or_cut_in_words() -> None:
    """A model without attention: what it has may go, or the error says what it has."""
    config = FalconMambaConfig(
        vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2, intermediate_size=48
    )
    model = AutoModelForCausalLM.from_config(config)
    try:
        assert ec.mini_groups(model).params == found_size(model)
    except ec.EffcompressError as error:
        assert error.what and error.exit_code == 2
