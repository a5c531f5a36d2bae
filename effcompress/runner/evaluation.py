"""Evaluates a model by the recipe's protocol, the same before and after pruning."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from effcompress import evaluation
from effcompress.data import Corpus, digest
from effcompress.distributed import ALONE, World
from effcompress.record.events import DomainScore, Evaluation, Generation
from effcompress.runner import tasks
from effcompress.spec import EvaluateSpec
from effcompress.types import TextTokenizer


def evaluate(
    module: nn.Module,
    tokenizer: TextTokenizer,
    corpus: Corpus,
    spec: EvaluateSpec,
    *,
    when: str,
    params: int,
    offline: bool,
    say: Callable[[str], None],
    world: World = ALONE,
) -> Evaluation:
    """Returns perplexity per domain, one continuation and, where the recipe has tasks, their
    scores, each with the protocol that makes them comparable. ``say`` is called with progress.

    Raises RecipeError or SourceError for tasks that cannot be scored here.
    """
    started = time.monotonic()
    solved = None
    if spec.tasks is not None:  # first: an unknown task should not cost a perplexity
        solved = tasks.solve(
            module, tokenizer, spec.tasks, bos=corpus.bos, offline=offline, say=say
        )
    domains = {
        domain: _perplexity(module, corpus, domain, spec, world) for domain in corpus.domains
    }
    text = evaluation.continuation(
        module, tokenizer, spec.prompt, spec.new_tokens, corpus.bos is not None
    )
    return Evaluation(
        when=when,
        params=params,
        domains=domains,
        generation=Generation(prompt=spec.prompt, text=text),
        protocol={
            "window": corpus.sequence_length,
            "stride": corpus.sequence_length,
            "bos": "one per window" if corpus.bos is not None else "none",
            "unit": "token",
            "split": "held out",
            "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
            "batch_size": spec.batch_size,
            "tokenizer": tokenizer.fingerprint[:12],
            "continuation": f"greedy, repetition penalty {evaluation.REPETITION_PENALTY}",
        },
        tasks=solved,
        seconds=time.monotonic() - started,
    )


def _perplexity(
    module: nn.Module, corpus: Corpus, domain: str, spec: EvaluateSpec, world: World
) -> DomainScore:
    ids_NT, trained_NT = corpus.heldout_trained(domain, spec.sequences)
    found = evaluation.perplexity(module, ids_NT, spec.batch_size, trained_NT, world)
    return replace(found, hash=digest(ids_NT))
