"""What cannot be used is refused in words, before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig

import effcompress as ec
from tests.conftest import shape, tiny, tokens


class Wrapped(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


Wrapped.__name__ = "DistributedDataParallel"


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["q_proj"]))


def quantised() -> Any:
    model = tiny()
    model.is_quantized = True
    return model


def encoder() -> Any:
    config = BertConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=40,
    )
    return AutoModelForMaskedLM.from_config(config)


def meta() -> Any:
    with torch.device("meta"):
        return tiny()


MODELS = {
    "text": (lambda: "gpt2", "'gpt2' is no model but a str", "from_pretrained"),
    "module": (lambda: torch.nn.Linear(2, 2), "no configuration of transformers", "AutoModel"),
    "headless": (
        lambda: AutoModel.from_config(tiny().config),
        "LlamaModel is no causal language model",
        "AutoModelForCausalLM",
    ),
    "encoder": (encoder, "BertForMaskedLM is no causal language model", "AutoModelForCausalLM"),
    "adapters": (adapted, r"adapters \(PEFT\)", "merge_and_unload"),
    "quantised": (quantised, "quantised", "bf16 or fp32"),
    "wrapper": (lambda: Wrapped(tiny()), "a wrapper around a model", "model.module"),
    "compiled": (lambda: torch.compile(tiny()), "a wrapper around a model", "_orig_mod"),
    "empty": (lambda: tiny().to("meta"), "meta device", "Load them"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    make, what, fix = MODELS[name]
    with pytest.raises(ec.SourceError, match=what) as error:
        ec.prune(make(), tokens(), keep=0.8)
    assert fix in str(error.value.fix) and error.value.exit_code == 2


IDS = tokens()
BATCHES: dict[str, tuple[Any, str, str]] = {
    "text": ("some text", "this is text", "tokenizer"),
    "texts": (["some", "text"], "this is text", "tokenizer"),
    "number": (3, "this is a int", "input_ids"),
    "numbers": ([3], "a batch is a int", "input_ids"),
    "empty": ([], "no batch", "anew"),
    "used up": (iter([]), "no batch", "anew"),
    "other keys": ([{"ids": IDS}], "no `input_ids`, only ids", "input_ids"),
    "floats": ([torch.rand(2, 8)], "not token ids", "whole numbers"),
    "deep": ([torch.zeros(1, 2, 3, dtype=torch.long)], "not token ids", "whole numbers"),
    "ragged list": ([{"input_ids": [[1, 2], [3]]}], "no tensor", "padding=True"),
    "large": ([IDS + 61], "not one of the 61", "own tokenizer"),
    "negative": ([IDS - 100], "not one of the 61", "labels only"),
    "one token": ([IDS[:, :1]], "one token", "two tokens"),
    "no labels": ([{"input_ids": IDS, "labels": IDS * 0 - 100}], "all labels are -100", "Leave"),
    "other labels": ([{"input_ids": IDS, "labels": IDS[:, :3]}], "`labels` has the shape", "every"),
    "holes": (
        [{"input_ids": IDS[:, :3], "attention_mask": torch.tensor([[1, 0, 1]] * 2)}],
        "has holes",
        "Padding",
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    given, what, fix = BATCHES[name]
    with pytest.raises(ec.SourceError, match=what) as error:
        ec.scores(tiny(), given)
    assert error.value.where == "batches" and fix in str(error.value.fix)


ASKED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no target": ({}, "no size given", "prune(...)", "keep=0.8"),
    "two": ({"keep": 0.8, "params": 100}, "keep= and params=", "prune(...)", "one of"),
    "keep 1": ({"keep": 1.0}, "between 0 and 1", "keep=...", "a fifth"),
    "keep 0": ({"keep": 0}, "between 0 and 1", "keep=...", "a fifth"),
    "keep 80": ({"keep": 80}, "between 0 and 1", "keep=...", "a fifth"),
    "criterion": (
        {"keep": 0.8, "criterion": "mask_fischer"},
        "no criterion named 'mask_fischer'",
        "prune(criterion=...)",
        "did you mean 'mask_fisher'",
    ),
    "knob": (
        {"keep": 0.8, "criterion": {"name": "taylor", "order": 2}},
        "no knob 'order'",
        "prune(criterion=...)",
        "signed",
    ),
    "selector": (
        {"keep": 0.8, "selector": "least_saliant"},
        "no selector named",
        "prune(selector=...)",
        "did you mean 'least_salient'",
    ),
    "normalise": (
        {"keep": 0.8, "normalise": "per_layer"},
        "per_layer",
        "prune(selector=...)",
        "per_parameter",
    ),
    "space": ({"keep": 0.8, "space": "fnn"}, "no space named 'fnn'", "prune(space=...)", "ffn"),
    "repair": ({"keep": 0.8, "repair": ["obs"]}, "no repair named", "prune(repair=...)", "Known"),
    "rounds": ({"keep": 0.8, "rounds": 0}, "rounds", "prune(schedule=...)", ""),
    "reach": ({"keep": 0.1, "space": ["ffn"]}, "cannot be reached", "prune(keep=...)", "at least"),
    "many": ({"params": 10**9}, "the model has only 41,280", "prune(params=...)", "smaller"),
    "kinds": (
        {"shape": {"ffn": 20}, "space": ["ffn", "hidden"]},
        "does not say how many 'hidden'",
        "",
        "hidden",
    ),
    "shape": ({"shape": {"ffn": 200}}, "200 units of 'ffn'", "ffn.0", "Name 1 to 40"),
    "gates": (
        {"keep": 0.8, "criterion": "learned_gates"},
        "learned gates",
        "prune(criterion=...)",
        "gates",
    ),
    "optimizer's": (
        {"keep": 0.8, "criterion": "taylor_second", "hessian": "adam"},
        "reads the optimizer of the training",
        "prune(hessian=...)",
        "fisher_diag",
    ),
    "layers": (
        {"keep": 0.8, "criterion": "block_influence", "space": ["ffn"]},
        "says nothing of 'ffn.0'",
        "prune(criterion=...)",
        "inputs",
    ),
    "masks": (
        {"shape": {"layer": 2}, "criterion": "mask_fisher"},
        "takes gradients of masks",
        "prune(criterion=...)",
        "taylor",
    ),
    "tensor": (
        {"keep": 0.8, "criterion": torch.zeros(2)},
        "is no value of a recipe: its type is Tensor",
        "prune(criterion=...)",
        "by its name",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_arguments(name: str) -> None:
    given, what, where, fix = ASKED[name]
    model = tiny()
    before = {key: p.clone() for key, p in model.named_parameters()}
    with pytest.raises(ec.EffcompressError, match=what) as error:
        ec.prune(model, tokens(), **given)
    assert where in str(error.value.where or "") and fix in str(error.value.fix)
    assert error.value.exit_code == 2
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_a_criterion_that_reads_text_without_text() -> None:
    with pytest.raises(ec.RecipeError, match="criterion 'taylor' measures on text") as error:
        ec.prune(tiny(), keep=0.8)
    assert error.value.where == "prune(batches=...)"
    with pytest.raises(ec.RecipeError, match="repair 'obs_update' measures on text"):
        ec.cut(tiny(), {"ffn.0": [1]}, repair=["obs_update"])
    assert ec.prune(tiny(), keep=0.8, criterion="magnitude").removed


def test_layers_one_by_one_want_equal_sequences() -> None:
    with pytest.raises(ec.RecipeError, match="sequences of one length"):
        ec.prune(
            tiny(),
            [tokens(1, 8), tokens(1, 9)],
            keep=0.8,
            criterion="wanda",
            propagate=True,
            space=["ffn"],
        )


def test_frozen_parameters_have_no_gradients() -> None:
    with pytest.raises(ec.RecipeError, match="no parameter has one") as error:
        ec.scores(tiny().requires_grad_(False), tokens())
    assert "requires_grad_(True)" in str(error.value.fix)


def test_a_gradient_that_is_alive_would_be_lost() -> None:
    model = tiny()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    with pytest.raises(ec.SurgeryError, match="a gradient is alive"):
        ec.scores(model, tokens())


def test_an_optimizer_of_another_model() -> None:
    optimizer = torch.optim.AdamW(tiny().parameters())
    with pytest.raises(ec.SurgeryError, match="not in the optimizer"):
        ec.prune(tiny(), tokens(), keep=0.8, optimizer=optimizer)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda _m, _b: 3.0, "returned float"),
        (lambda m, b: m(b["input_ids"]).logits, r"returned \(1, 12, 61\)"),
        (lambda m, b: m(b["input_ids"]).logits.sum().detach(), "no gradient"),
    ],
)
def test_losses(loss: Any, what: str) -> None:
    with pytest.raises(ec.SourceError, match=what):
        ec.scores(tiny(), tokens(), loss=loss)


PLANS: dict[str, tuple[dict[str, list[int]], str, str]] = {
    "name": ({"fnn.0": [1]}, "no 'fnn.0'", "ffn"),
    "layer": ({"ffn.7": [1]}, "no 'ffn.7'", "ffn.0"),
    "unit": ({"ffn.0": [40]}, "no unit 40", "0 to 39"),
    "twice": ({"ffn.0": [1, 1]}, "names a unit twice", "once"),
    "all": ({"ffn.0": list(range(40))}, "nothing would be left", "mlp_block"),
    "vocabulary": ({"vocab": [1]}, "no 'vocab'", "hidden"),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans(name: str) -> None:
    plan, what, fix = PLANS[name]
    with pytest.raises(ec.RecipeError, match=what) as error:
        ec.cut(tiny(), plan)
    assert error.value.where == "cut(plan)" and fix in str(error.value.fix)


def test_scores_of_other_mini_groups() -> None:
    model = tiny()
    groups = ec.mini_groups(model, ["ffn"])
    scores = ec.scores(model, tokens(), space=["attention"])
    with pytest.raises(ec.RecipeError, match=r"no score of 'ffn\.0'"):
        ec.choose(groups, scores, keep=0.9)
    short = {s.name: torch.rand(3) for s in groups}
    with pytest.raises(ec.RecipeError, match=r"40 mini-groups, its scores the shape \(3,\)"):
        ec.choose(groups, short, keep=0.9)
    nothing = {s.name: torch.zeros(40) for s in groups}
    with pytest.raises(ec.RunError, match="saliency 0"):
        ec.choose(groups, nothing, keep=0.9)
    spoilt = {s.name: torch.full((40,), torch.nan) for s in groups}
    with pytest.raises(ec.RecipeError, match="not finite"):
        ec.choose(groups, spoilt, keep=0.9)
    with pytest.raises(ec.RunError, match="pruning stopped at"):
        ec.choose(groups, {s.name: torch.rand(40) for s in groups}, keep=0.1)


def test_a_selector_that_measures_is_not_asked_apart() -> None:
    model = tiny()
    groups = ec.mini_groups(model, [{"name": "ffn", "scope": "per_layer"}])
    scores = {s.name: torch.rand(40) for s in groups}
    with pytest.raises(ec.RecipeError, match="measures layers before it chooses") as error:
        ec.choose(groups, scores, keep=0.9, selector="adaptive")
    assert "effcompress.prune" in str(error.value.fix)


def test_a_table_of_positions_is_not_left() -> None:
    model = tiny("mha_tied", model_type="gpt2")
    with pytest.raises(ec.SourceError, match="positions for 128"):
        ec.scores(model, tokens(1, 140))
    assert shape("mha_tied", model_type="gpt2")["n_positions"] == 128
