"""A model whose own class does not compute is named as such, before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.errors import SourceError
from effcompress.model.families import family_of, require_sane
from effcompress.model.forward import require_forward
from tests.contract.zoo import BASE
from tests.runner.toys import recipe

SHARING: dict[str, Any] = {
    **BASE,
    **{"model_type": "gemma4_text", "num_hidden_layers": 4, "sliding_window": 8},
    **{"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    **{"hidden_size_per_layer_input": 0, "global_head_dim": 16},
}
SHARING_3N: dict[str, Any] = {
    **{key: value for key, value in SHARING.items() if key != "global_head_dim"},
    **{"model_type": "gemma3n_text", "hidden_size_per_layer_input": 6, "laurel_rank": 4},
    **{"vocab_size_per_layer_input": 258, "altup_num_inputs": 2},
    **{"activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [40] * 4},
}


def built(config: dict[str, Any]) -> Any:
    fields = {**config}
    torch.manual_seed(0)
    stated = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return AutoModelForCausalLM.from_config(stated)


def test_a_class_that_fails_is_named_with_the_module_and_the_line() -> None:
    with pytest.raises(SourceError) as caught:
        require_forward(built(SHARING), "tiny")
    what = str(caught.value)
    assert "in model, Gemma4TextModel (modeling_gemma4.py:" in what and "TypeError: " in what
    assert caught.value.where == "model: tiny" and caught.value.exit_code == 2


def test_one_that_computes_is_left_as_it_was() -> None:
    module = built({**SHARING, "num_kv_shared_layers": 0}).train()
    require_forward(module, "tiny")
    assert module.training and all(p.grad is None for p in module.parameters())


def test_a_run_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails: here the feed-forward of a Llama."""

    def broken(self: Any, _x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError(f"made up in {type(self).__name__}")

    monkeypatch.setattr(LlamaMLP, "forward", broken)
    with pytest.raises(SourceError, match=r"model\.layers\.0\.mlp, LlamaMLP .*: made up"):
        run(load_recipe(recipe(tmp_path)), output=tmp_path / "out")


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs of layers": (SHARING, "num_kv_shared_layers is 2, and transformers' class"),
    "no kind has an owner": ({**SHARING, "num_kv_shared_layers": 4}, "inputs of single layers"),
    "all share": (
        {**SHARING, "hidden_size_per_layer_input": 6, "num_kv_shared_layers": 4},
        "no layer before those has full_attention",
    ),
    "one kind has no owner": (
        {**SHARING_3N, "num_kv_shared_layers": 3},
        "no layer before those has full_attention",
    ),
}


@pytest.mark.parametrize(("config", "words"), CASES.values(), ids=CASES)
def test_check_refuses_what_the_class_cannot_compute(
    config: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the class itself does fail: in its forward pass, or when it is built."""
    file = recipe(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(file), "--set", f"model.shape={json.dumps(config)}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and "Traceback" not in said
    with pytest.raises(SourceError, match=words):
        require_sane(family_of(config), config)
    with pytest.raises((SourceError, ValueError)):
        require_forward(built(config), "tiny")


@pytest.mark.parametrize("config", [SHARING, SHARING_3N], ids=["gemma4", "gemma3n"])
def test_what_it_computes_is_not_refused(config: dict[str, Any]) -> None:
    fine = {**config, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 258}
    require_sane(family_of(fine), fine)
    require_forward(built(fine), "tiny")
