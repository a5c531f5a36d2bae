"""The end of a run: evaluation, export, proof."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from effcompress import checkpoint, evaluation, groups
from effcompress.data import Corpus
from effcompress.log import Log
from effcompress.model.containers import container
from effcompress.model.silence import quietly
from effcompress.runner.state import RunState
from effcompress.spec import EvaluateSpec
from effcompress.types import TextTokenizer

PROOF_TOKENS = 64


def evaluate(
    module: nn.Module, tokenizer: TextTokenizer, corpus: Corpus, spec: EvaluateSpec
) -> dict[str, object]:
    """Perplexity per domain and one continuation, with the protocol that makes them comparable."""
    started = time.monotonic()
    domains: dict[str, dict[str, float | int]] = {}
    for domain in corpus.domains:
        ids_NT = corpus.heldout(domain, spec.sequences)
        found = evaluation.perplexity(module, ids_NT, spec.batch_size)
        domains[domain] = {
            "perplexity": found.perplexity,
            "loss": found.loss,
            "tokens": found.tokens,
            "sequences": found.sequences,
        }
    text = evaluation.continuation(
        module, tokenizer, spec.prompt, spec.new_tokens, corpus.bos is not None
    )
    protocol = {
        "window": corpus.sequence_length,
        "stride": corpus.sequence_length,
        "bos": "one per window" if corpus.bos is not None else "none",
        "unit": "token",
        "split": "held out",
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "batch_size": spec.batch_size,
        "tokenizer": tokenizer.fingerprint[:12],
        "continuation": f"greedy, repetition penalty {evaluation.REPETITION_PENALTY}",
    }
    return {
        "domains": domains,
        "generation": {"prompt": spec.prompt, "text": text},
        "protocol": protocol,
        "seconds": time.monotonic() - started,
    }


def export_and_prove(state: RunState, corpus: Corpus, folder: Path, log: Log) -> None:
    """Write the model as a stock Hugging Face folder and have a fresh process agree to it."""
    log.phase("exporting")
    uniform = state.uniform_widths() or _widest(state.widths)
    params = {name: p.detach().cpu() for name, p in state.parameters().items()}
    padding = state.uniform_widths() is None
    if padding:
        params = _padded(state, params, uniform)
    norms = state.norms()
    built = container(state.family, state.config, uniform, norms[0].epsilon)
    built.skeleton.generation_config = state.module.generation_config
    with quietly():
        size = checkpoint.export(built.skeleton, params, state.tokenizer.save, folder)
    total = sum(p.numel() for p in params.values())
    why = built.why
    if padding:
        why = f"layers differ in width: padded with {total - state.params:,} zeros. {why}".strip()
    log.event("export", container=built.model_type, why=why, parameters=total, bytes=size)
    log.phase("proving the export in a fresh process")
    ids_BT = corpus.calibration(2, state.recipe.seed)[:, :PROOF_TOKENS]
    proof = checkpoint.prove(folder, state.module, ids_BT)
    log.event(
        "proof",
        max_logit_difference=proof.max_logit_difference,
        tokens_equal=proof.tokens_equal,
        cache_equal=proof.cache_equal,
        seconds=proof.seconds,
    )


def _widest(widths: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, width in widths.items():
        kind = name.split(".")[0]
        found[kind] = max(width, found.get(kind, 0))
    return found


@torch.no_grad()
def _padded(
    state: RunState, params: dict[str, Tensor], widest: dict[str, int]
) -> dict[str, Tensor]:
    """The same function with equal layers: zeros behind the last unit of every narrower one."""
    wide = {name: widest[name.split(".")[0]] for name in state.widths}
    shapes = groups.shapes_at(state.parent, wide)
    found: dict[str, Tensor] = {}
    for name, tensor in params.items():
        room = tensor.new_zeros(shapes[name])
        room[tuple(slice(0, n) for n in tensor.shape)] = tensor
        found[name] = room
    return found
