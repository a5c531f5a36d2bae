"""The measurements before and after, by one protocol."""

from __future__ import annotations

import time

from torch import nn

from effcompress import evaluation
from effcompress.data import Corpus, digest
from effcompress.spec import EvaluateSpec
from effcompress.types import TextTokenizer


def evaluate(
    module: nn.Module, tokenizer: TextTokenizer, corpus: Corpus, spec: EvaluateSpec
) -> dict[str, object]:
    """Perplexity per domain and one continuation, with the protocol that makes them comparable."""
    started = time.monotonic()
    domains: dict[str, dict[str, float | int | str]] = {}
    for domain in corpus.domains:
        ids_NT, trained_NT = corpus.heldout_trained(domain, spec.sequences)
        found = evaluation.perplexity(module, ids_NT, spec.batch_size, trained_NT)
        domains[domain] = {
            "perplexity": found.perplexity,
            "loss": found.loss,
            "tokens": found.tokens,
            "sequences": found.sequences,
            "hash": digest(ids_NT),
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
