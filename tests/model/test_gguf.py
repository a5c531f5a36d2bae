"""llama.cpp itself opens the files: its logits are compared with those of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from effcompress import load_recipe
from effcompress.errors import SourceError
from effcompress.model.gguf.offered import why_not
from effcompress.model.gguf.write import LayerWidths, write_gguf
from effcompress.model.load import load
from tests.model.by_llama_cpp import (
    FFN,
    FULL,
    HEAD,
    HEADS,
    HIDDEN,
    KV,
    TEXTS,
    ask,
    difference,
    logits_of,
    tiny,
    write,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
UNIFORM: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
}


@pytest.mark.parametrize("case", UNIFORM)
def test_uniform(case: str, tmp_path: Path) -> None:
    model = tiny(**UNIFORM[case])
    size = write(tmp_path / "m.gguf", model)
    assert size == (tmp_path / "m.gguf").stat().st_size
    assert [f.name for f in tmp_path.iterdir()] == ["m.gguf"]
    found = ask(tmp_path / "m.gguf")
    assert found["meta"]["general.architecture"] == "llama"
    assert difference(found, model) < 3e-5


def masked(model: Any, layers: Sequence[LayerWidths]) -> dict[str, torch.Tensor]:
    """The weights of the last units of every layer; the others are silenced in the model."""
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, w in enumerate(layers):
        layer, prefix = model.model.layers[i], f"model.layers.{i}"
        slots = w.heads // w.kv_heads if w.kv_heads else 0
        groups = range(KV - w.kv_heads, KV)
        heads = [g * (HEADS // KV) + s for g in groups for s in range(HEADS // KV)[-slots:]]
        q = torch.tensor([h * HEAD + c for h in heads for c in range(HEAD)], dtype=torch.long)
        kv = torch.tensor([g * HEAD + c for g in groups for c in range(HEAD)], dtype=torch.long)
        ffn = torch.arange(FFN - w.ffn, FFN)
        cut = {"q": (q, 0), "k": (kv, 0), "v": (kv, 0), "o": (q, 1)}
        cut |= {"gate": (ffn, 0), "up": (ffn, 0), "down": (ffn, 1)}
        for part, (kept, axis) in cut.items():
            module = f"{prefix}.{'self_attn' if part in 'qkvo' else 'mlp'}.{part}_proj"
            for name in (f"{module}.weight", f"{module}.bias"):
                whole = tensors.pop(name, None)
                if whole is not None and len(kept):
                    tensors[name] = whole.index_select(axis, kept)
        for linear, kept in ((layer.self_attn.o_proj, q), (layer.mlp.down_proj, ffn)):
            gone = torch.ones(linear.in_features, dtype=torch.bool)
            gone[kept] = False
            linear.weight.data[:, gone] = 0
    return tensors


PRUNED = {
    "KV heads": ("deci", [(40, 6, 3), (33, 4, 2), (7, 2, 1)]),
    "query heads": ("deci", [(40, 6, 3), (33, 3, 3), (7, 2, 2)]),
    "first FFN gone": ("deci", [(0, 6, 3), (40, 6, 3), (40, 6, 3)]),
    "last FFN gone": ("deci", [(40, 6, 3), (40, 6, 3), (0, 4, 2)]),
    "all FFN gone": ("llama", [(0, 6, 3), (0, 6, 3), (0, 6, 3)]),
    "attention gone": ("deci", [(40, 6, 3), (30, 0, 0), (40, 6, 3)]),
    "first attention gone": ("deci", [(40, 0, 0), (30, 4, 2), (40, 6, 3)]),
    "last attention gone": ("deci", [(40, 6, 3), (30, 4, 2), (40, 0, 0)]),
    "all attention gone": ("deci", [(40, 0, 0), (30, 0, 0), (30, 0, 0)]),
    "first layer gone": ("llama", [(0, 0, 0), (30, 4, 2), (30, 4, 2)]),
    "last layer gone": ("deci", [(40, 6, 3), (30, 4, 2), (0, 0, 0)]),
    "one block left": ("llama", [(0, 0, 0), (0, 2, 1), (0, 0, 0)]),
}


QWEN2 = [("qwen2", "KV heads"), ("qwen2", "first attention gone")]
"""Queries, keys and values have biases."""


@pytest.mark.parametrize(("model_type", "case"), [*(("llama", c) for c in PRUNED), *QWEN2])
def test_widths_per_layer(model_type: str, case: str, tmp_path: Path) -> None:
    architecture, widths = PRUNED[case]
    layers = [LayerWidths(*w) for w in widths]
    model = tiny(model_type=model_type)
    whole = logits_of(model)
    tensors = masked(model, layers)
    write(tmp_path / "m.gguf", model, layers, tensors)
    found = ask(tmp_path / "m.gguf")
    assert found["meta"]["general.architecture"] == architecture
    assert difference(found, model) < 3e-5
    assert (logits_of(model) - whole).abs().max() > 0.1, "the case does not prune anything"


@pytest.mark.parametrize("widths", [(40, 6, 3), (33, 4, 2)])
def test_f16(widths: tuple[int, int, int], tmp_path: Path) -> None:
    """Against a model of the rounded weights: llama.cpp also rounds what they are multiplied by,
    to 11 bits.
    """
    model = tiny()
    layers = [FULL, LayerWidths(*widths), FULL]
    tensors = masked(model, layers)
    small = write(tmp_path / "m.gguf", model, layers, tensors, dtype="F16")
    for p in model.parameters():
        p.data = p.data.half().float() if p.dim() > 1 else p.data
    found = ask(tmp_path / "m.gguf")
    assert difference(found, model) < 3e-2
    assert found["meta"]["general.file_type"] == "1"
    stored = {t.name: t for t in GGUFReader(tmp_path / "m.gguf").tensors}
    gain, matrix = stored["blk.1.ffn_norm.weight"], stored["blk.1.ffn_down.weight"]
    assert (gain.tensor_type.name, matrix.tensor_type.name) == ("F32", "F16")
    expected = tensors["model.layers.1.mlp.down_proj.weight"].half()
    assert torch.equal(torch.from_numpy(matrix.data.copy()), expected)
    assert small < write(tmp_path / "wide.gguf", model, layers, tensors)


def test_a_wrong_epsilon_or_order_would_show(tmp_path: Path, monkeypatch) -> None:
    model = tiny()
    fields = model.config.to_dict()
    state = model.state_dict()
    write_gguf(
        tmp_path / "e.gguf", fields, [FULL] * 3, HIDDEN, 1e-6, state, None, dtype="F32", name=""
    )
    assert difference(ask(tmp_path / "e.gguf"), model) > 1e-4
    monkeypatch.setattr("effcompress.model.gguf.write.interleaved", lambda entry, heads: entry)
    write(tmp_path / "o.gguf", model)
    assert difference(ask(tmp_path / "o.gguf"), model) > 1e-2


def test_the_head_size_is_read_from_the_weights(tmp_path: Path) -> None:
    model = tiny()
    write(tmp_path / "m.gguf", model, head_dim=None)
    assert difference(ask(tmp_path / "m.gguf"), model) < 3e-5


@pytest.mark.parametrize(("window", "context"), [(32, "32"), (None, "128"), (4096, "128")])
def test_context_ends_with_the_sliding_window(window, context: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tiny(model_type="mistral", sliding_window=window))
    assert ask(tmp_path / "m.gguf")["meta"]["llama.context_length"] == context


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "opt"}, "llama, mistral, qwen2"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "dynamic"),
        ({"partial_rotary_factor": 0.5}, "rotates"),
    ],
)
def test_what_cannot_be_written_is_said(config: dict, word: str, tmp_path: Path) -> None:
    model = tiny()
    assert why_not(model.config.to_dict()) == ""
    assert word in why_not({**model.config.to_dict(), **config})
    with pytest.raises(SourceError, match=word):
        write(tmp_path / "m.gguf", model, **config)
    assert not list(tmp_path.iterdir())


def test_weights_and_widths_must_agree(tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=False)
    state = model.state_dict()
    layers = [FULL, FULL, LayerWidths(0, HEADS, KV)]
    with pytest.raises(SourceError, match=r"layers\.2\.mlp.*has no place"):
        write(tmp_path / "m.gguf", model, layers)
    layers = [FULL, FULL, LayerWidths(39, HEADS, KV)]
    with pytest.raises(SourceError, match=r"\[40, 54\], the widths say \[39, 54\]"):
        write(tmp_path / "m.gguf", model, layers)
    for flaw in (LayerWidths(40, 6, 0), LayerWidths(40, 5, 3), LayerWidths(-1, 6, 3)):
        with pytest.raises(SourceError, match="layer 1"):
            write(tmp_path / "m.gguf", model, [FULL, flaw, FULL])
    with pytest.raises(SourceError, match="no layer is left"):
        write(tmp_path / "m.gguf", model, [LayerWidths(0, 0, 0)] * 3)
    for name in ("lm_head.weight", "model.layers.1.self_attn.k_proj.weight"):
        with pytest.raises(SourceError, match=f"{name}: this weight is missing"):
            write(tmp_path / "m.gguf", model, tensors={k: state[k] for k in state if k != name})
    extra = {**state, "model.layers.0.self_attn.q_norm.weight": torch.ones(HEAD)}
    with pytest.raises(SourceError, match="q_norm"):
        write(tmp_path / "m.gguf", model, tensors=extra)
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_when_a_value_does_not_fit(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "m.gguf").write_text("before")
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = 1e5
    with pytest.raises(SourceError, match=r"blk\.2\.ffn_down\.weight: F16.*\n  write F32"):
        write(tmp_path / "m.gguf", model, dtype="F16")
    assert [f.read_text() for f in tmp_path.iterdir()] == ["before"]
    write(tmp_path / "m.gguf", model)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(SourceError, match="output_norm"):
        write(tmp_path / "m.gguf", model)


@pytest.mark.real
def test_a_real_model(tmp_path: Path) -> None:
    """Two of its layers lose a block each and one loses channels."""
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml").recipe
    loaded = load(recipe.model, seed=0)
    model: Any = loaded.module.eval()
    layers = [LayerWidths(1536, 9, 3)] * 30
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, gone, last in ((10, "self_attn", "o"), (20, "mlp", "down")):
        layers[i] = LayerWidths(1536, 0, 0) if gone == "self_attn" else LayerWidths(0, 9, 3)
        model.get_parameter(f"model.layers.{i}.{gone}.{last}_proj.weight").data.zero_()
        tensors = {k: v for k, v in tensors.items() if f"layers.{i}.{gone}" not in k}
    layers[15] = LayerWidths(1000, 9, 3)
    model.model.layers[15].mlp.down_proj.weight.data[:, 1000:] = 0
    for part in ("gate", "up", "down"):
        name = f"model.layers.15.mlp.{part}_proj.weight"
        tensors[name] = tensors[name][:, :1000] if part == "down" else tensors[name][:1000]
    loaded.tokenizer.backend.save_pretrained(tmp_path / "t")
    path, eps = tmp_path / "m.gguf", loaded.config["rms_norm_eps"]
    write_gguf(
        path, loaded.config, layers, 576, eps, tensors, tmp_path / "t", dtype="F32", name="Real"
    )
    ids = loaded.tokenizer.encode(["The capital of France is Paris, that of Italy"])[0]
    found = ask(path, ids, TEXTS)
    assert difference(found, model, ids) < 5e-4
    assert found["tokens"] == loaded.tokenizer.encode(TEXTS)
