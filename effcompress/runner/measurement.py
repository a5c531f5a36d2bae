"""The measurements before and after, by one protocol."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

from effcompress import evaluation
from effcompress.data import Corpus
from effcompress.runner import tasks
from effcompress.spec import EvaluateSpec
from effcompress.types import TextTokenizer


def evaluate(
    module: nn.Module,
    tokenizer: TextTokenizer,
    corpus: Corpus,
    spec: EvaluateSpec,
    *,
    offline: bool,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Perplexity per domain, one continuation and, where the recipe has tasks, their scores, each
    with the protocol that makes them comparable. ``say`` hears of progress.

    Raises RecipeError or SourceError for tasks that cannot be measured here.
    """
    started = time.monotonic()
    domains: dict[str, dict[str, float | int]] = {}
    for domain in corpus.domains:
        ids_NT = corpus.heldout(domain, spec.sequences)
        one = evaluation.perplexity(module, ids_NT, spec.batch_size)
        domains[domain] = {
            "perplexity": one.perplexity,
            "loss": one.loss,
            "tokens": one.tokens,
            "sequences": one.sequences,
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
    found: dict[str, object] = {
        "domains": domains,
        "generation": {"prompt": spec.prompt, "text": text},
        "protocol": protocol,
    }
    if spec.tasks is not None:
        found["tasks"] = tasks.solve(
            module, tokenizer, spec.tasks, bos=corpus.bos, offline=offline, say=say
        )
    return {**found, "seconds": time.monotonic() - started}
