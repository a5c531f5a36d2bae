"""A process of its own that asks llama.cpp: a wrong file ends it, not the tests.

Reads ``{"path", "ids", "texts"}`` as JSON from its input, writes ``{"steps", "last", "tokens",
"meta"}`` to the file that is its argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cyllama.llama.llama_cpp as cpp


class Model(cpp.LlamaModel):
    @property
    def n_vocab(self) -> int:  # the binding's own reader of logits asks for it
        return self.get_vocab().n_vocab


def ask(path: str, ids: list[int], texts: list[str]) -> dict:
    cpp.disable_logging()
    cpp.ggml_backend_load_all()
    model = Model(path, cpp.LlamaModelParams())
    params = cpp.LlamaContextParams()
    params.n_ctx, params.n_threads, params.n_threads_batch = 128, 1, 1
    params.type_k = params.type_v = params.flash_attn_type = 0  # F32, and no fused attention
    context = cpp.LlamaContext(model, params)

    def logits(items: list[tuple[int, int]]) -> list[float]:
        batch = cpp.LlamaBatch(n_tokens=len(items), embd=0, n_seq_max=1)
        for position, token in items:
            batch.add(token, position, [0], position == items[-1][0])
        context.decode(batch)
        return list(context.get_logits())

    steps = [logits([item]) for item in enumerate(ids)]
    context.kv_cache_clear()
    vocab = model.get_vocab()
    return {
        "steps": steps,
        "last": logits(list(enumerate(ids))),
        "tokens": [list(vocab.tokenize(text, True, True)) for text in texts],
        "meta": dict(model.metadata()),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(ask(**json.load(sys.stdin))))
