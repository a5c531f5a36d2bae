"""Runs of models whose layers are not alike: linear attention, shared keys and values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effcompress import load_recipe, run
from effcompress.errors import RunError
from effcompress.estimate.check import check
from tests.proving import fresh_process
from tests.runner.toys import events, recipe

LINEAR = {
    **{"model_type": "qwen3_5_text", "head_dim": 8, "num_hidden_layers": 5},
    "layer_types": ["linear_attention", "full_attention"] * 2 + ["linear_attention"],
    **{"linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 7},
    "linear_value_head_dim": 5,
}
SHARED = {
    **{"model_type": "gemma4_text", "head_dim": 8, "num_hidden_layers": 6},
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    **{"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 6, "sliding_window": 8},
    "vocab_size_per_layer_input": 258,
}
BASE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
BASE |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
DEPTH = "{name: layer, minimum: 2}, attention_block, mlp_block"


def changes(shape: dict[str, object], space: str, *more: str) -> list[str]:
    return [
        f"model.shape={json.dumps(BASE | shape)}",
        f"prune.space=[{space}]",
        "prune.target={keep: 60%}",
        *more,
    ]


@pytest.mark.parametrize("shape", [LINEAR, SHARED], ids=["linear", "shared"])
def test_layers_of_every_kind_go(shape: dict[str, object], tmp_path: Path) -> None:
    mixer = "mixer, " if shape is LINEAR else ""
    space = f"ffn, attention, {mixer}hidden, {DEPTH}"
    asked = changes(shape, space, "export.form=exact")
    with fresh_process():  # the folder brings a class of its own
        run(load_recipe(recipe(tmp_path), asked), output=tmp_path / "out")
    (begin,), (end,) = (events(tmp_path / "out", kind) for kind in ("run", "end"))
    assert end["status"] == "success"
    assert end["params"] == pytest.approx(0.6 * begin["params"], rel=0.005)
    kinds = {"ffn", "attention", "hidden"} | ({"linear_head"} if shape is LINEAR else set())
    gone = {
        name.partition(".")[0]
        for name, width in begin["widths"].items()
        if end["widths"].get(name, 0) < width
    }
    assert gone >= kinds and gone & {"layer", "attention_block", "mlp_block"}


SPARSE = {
    **{"model_type": "gemma3n_text", "head_dim": 8, "num_hidden_layers": 4, "vocab_size": 258},
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    **{"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 6, "sliding_window": 8},
    **{"vocab_size_per_layer_input": 258, "laurel_rank": 4, "activation_sparsity_pattern": None},
    **{"altup_num_inputs": 2, "intermediate_size": [64] * 4},
}


@pytest.mark.parametrize("kind", ["gemma4_text", "gemma3n_text"])
def test_a_run_ends_with_a_folder_of_the_stock_class(kind: str, tmp_path: Path) -> None:
    """Gemma 4 refuses the configuration keys of transformers 4, and 3n states a width per layer."""
    shape = {**SHARED, "global_head_dim": 16} if kind == "gemma4_text" else SPARSE
    once = ("prune.target={keep: 95%}", "prune.schedule={name: once, at: 256}")
    asked = changes(shape, "{name: ffn, scope: global}", *once)
    run(load_recipe(recipe(tmp_path), asked), output=tmp_path / "out")
    (end,), (made,) = (events(tmp_path / "out", name) for name in ("end", "export"))
    assert end["status"] == "success" and made["form"] in ("uniform", "padded")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == kind
    assert ("rope_scaling" in config) == (kind == "gemma3n_text")


def test_a_hybrid_without_a_layer_of_attention_is_checked(tmp_path: Path) -> None:
    """Heads that no layer has do not say how wide a padded hidden size is."""
    shape = {**LINEAR, "layer_types": ["linear_attention"] * 5}
    asked = changes(shape, "{name: ffn, scope: global}, hidden", "export.form=padded")
    assert any("in reach" in line for line in check(load_recipe(recipe(tmp_path), asked)).lines)


def test_a_class_that_cannot_generate_is_refused_before_training(tmp_path: Path) -> None:
    """transformers' cache wants a layer of attention: LFM2 has none where all are convolutions."""
    shape = {"model_type": "lfm2", "layer_types": ["conv"] * 2, "num_hidden_layers": 2}
    once = ("prune.target={keep: 95%}", "prune.schedule={name: once, at: 256}")
    asked = changes(shape, "{name: ffn, scope: global}", *once)
    with pytest.raises(RunError, match=r"fails when it generates: ValueError: .get_seq_length"):
        run(load_recipe(recipe(tmp_path), asked), output=tmp_path / "out")
    assert not events(tmp_path / "out", "step")
