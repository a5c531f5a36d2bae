"""Tiny models and their gguf files, and what llama.cpp says about them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.model.gguf.write import DType, LayerWidths, write_gguf

FFN, HEADS, KV, HEAD, HIDDEN, ROWS = 40, 6, 3, 8, 54, 61
FULL = LayerWidths(FFN, HEADS, KV)
IDS = [3, 5, 1, 60, 22, 17, 9, 2, 33, 40]
READER = Path(__file__).parent / "read_by_llama_cpp.py"
TEXTS = [
    "Hello world, it's 2024!  x\n\n  y 12345 tail ",
    "na\u00efve \u00e9t\u00e9 \u2014 \u6f22\u5b57 \U0001f642\ttabs",
    "",
    " a  b   ",
    "don't DON'T 123,456.78 the theory of this thing",
    "the end</s>",
]


def tiny(**more: Any) -> nn.Module:
    """A random model whose gains and biases are random too, so that forgetting one shows."""
    fields = {
        "model_type": "llama",
        "vocab_size": ROWS,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": HEAD,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,  # large enough that a wrong one shows
        **more,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        for p in model.parameters():
            p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
    return model.eval()


def write(
    path: Path,
    model: Any,
    layers: Sequence[LayerWidths] = (FULL,) * 3,
    tensors: dict[str, torch.Tensor] | None = None,
    folder: Path | None = None,
    dtype: DType = "F32",
    **config: Any,
) -> int:
    fields = {**model.config.to_dict(), **config}
    held = model.state_dict() if tensors is None else tensors
    hidden, eps = model.config.hidden_size, model.config.rms_norm_eps
    return write_gguf(path, fields, layers, hidden, eps, held, folder, dtype=dtype, name="Tiny")


def ask(path: Path, ids: list[int] = IDS, texts: Sequence[str] = ()) -> dict[str, Any]:
    """What llama.cpp says about a file."""
    answer = path.with_suffix(".json")
    question = json.dumps({"path": str(path), "ids": ids, "texts": list(texts)})
    command = [sys.executable, str(READER), str(answer)]
    done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(answer.read_text())


def logits_of(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def difference(found: dict[str, Any], model: Any, ids: list[int] = IDS) -> float:
    """Largest logit difference, token by token and with the whole prompt at once."""
    expected = logits_of(model, ids)
    steps = (torch.tensor(found["steps"]) - expected).abs().max()
    return float(max(steps, (torch.tensor(found["last"]) - expected[-1]).abs().max()))
