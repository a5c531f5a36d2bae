"""Where a run starts from: written down, and measured."""

from __future__ import annotations

import datetime
from functools import partial

import torch

from effcompress import __version__
from effcompress.data import Corpus
from effcompress.estimate.schedule import measures
from effcompress.model.load import LoadedModel, fingerprint
from effcompress.record.log import Log
from effcompress.runner.corpus import described
from effcompress.runner.dense_cache import description, evaluate_once
from effcompress.runner.evaluation import evaluate
from effcompress.runner.state import RunState


def begin(
    state: RunState, model: LoadedModel, corpus: Corpus, total: int, log: Log, *, offline: bool
) -> None:
    """Write down where the run starts from, and measure the dense model."""
    import transformers  # noqa: TID251  its version is part of the record

    recipe, hashed = state.recipe, fingerprint(state.module)
    log.event(
        "run",
        name=recipe.name,
        seed=recipe.seed,
        effcompress=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=model.source,
        model_hash=hashed,
        params=state.params,
        source_params=state.params - model.added_params,
        target_params=state.target_params if recipe.prune else None,
        total_tokens=total,
        widths=state.pruned.widths,
        device=str(state.device),
        threads=torch.get_num_threads(),
        processes=state.world.size,
        measures=measures(recipe),
        data=described(corpus),
    )
    log.phase("evaluating the dense model")
    pruned, tokens = state.pruned, state.tokenizer.fingerprint
    before = evaluate_once(
        partial(evaluated, state, corpus, log, offline),
        description(pruned.module, hashed, pruned.config, tokens, corpus, recipe.evaluate),
        state.world,
    )
    if before.get("known"):
        log.note("the dense model is known from an earlier run: not measured again")
    log.event("evaluation", when="before", params=state.params, **before)


def evaluated(state: RunState, corpus: Corpus, log: Log, offline: bool) -> dict[str, object]:
    """Of the model as it is, by the recipe's protocol."""
    spec, how = state.recipe.evaluate, {"offline": offline, "say": log.note}
    return evaluate(state.to_call, state.tokenizer, corpus, spec, **how, world=state.world)
