"""The start of a run: loads the source model, records what is run, evaluates the dense model."""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import partial

import torch

from effcompress import __version__
from effcompress.data import Corpus
from effcompress.estimate.schedule import measures
from effcompress.model.biases import add_biases, biased
from effcompress.model.lineage import parent_of
from effcompress.model.load import LoadedModel, fingerprint
from effcompress.model.load import load as load_model
from effcompress.network.axis_map import family_for
from effcompress.record.events import Evaluation, Run
from effcompress.record.log import Log
from effcompress.removal.repairs import for_biases, for_streams
from effcompress.runner.corpus import described
from effcompress.runner.dense_cache import description, evaluate_once
from effcompress.runner.evaluation import evaluate
from effcompress.runner.state import RunState
from effcompress.spec import Recipe


def load_source(recipe: Recipe, log: Log, *, offline: bool) -> LoadedModel:
    """Loads the source model, with zero biases where a repair writes into them.

    Raises SourceError as ``model.load`` does, CoverageError when the class of the model has no
    place for such biases.
    """
    model = load_model(recipe.model, seed=recipe.seed, offline=offline, progress=log.note)
    prune = recipe.prune
    if prune and (for_biases(prune.repair) or for_streams(prune)):
        return _with_biases(model, log)
    return model


def _with_biases(model: LoadedModel, log: Log) -> LoadedModel:
    """Adds biases of zero: the function of the model stays."""
    plain = parent_of(model.config)
    family = family_for(plain)
    config = {**model.config, **biased(family, plain)}
    if added := add_biases(model.module, family, config):
        log.note(f"{added:,} biases added, all zero: a repair writes into them")
    return replace(model, config=config, added_params=added)


def begin(
    state: RunState, model: LoadedModel, corpus: Corpus, total: int, log: Log, *, offline: bool
) -> None:
    """Records the ``run`` event and evaluates the dense model, or takes it from the cache.

    ``total``: tokens that the run will train on.
    """
    import transformers  # noqa: TID251  its version is part of the record

    recipe, hashed = state.recipe, fingerprint(state.module)
    log.event(
        Run(
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
    )
    log.phase("evaluating the dense model")
    pruned, tokens = state.pruned, state.tokenizer.fingerprint
    before = evaluate_once(
        partial(evaluated, state, corpus, log, when="before", offline=offline),
        description(pruned.module, hashed, pruned.config, tokens, corpus, recipe.evaluate),
        state.world,
    )
    if before.known:
        log.note("the dense model was evaluated by an earlier run: its result is taken")
    log.event(before)


def evaluated(state: RunState, corpus: Corpus, log: Log, *, when: str, offline: bool) -> Evaluation:
    """Evaluates the model as it is by the recipe's protocol; ``when``: before or after."""
    return evaluate(
        state.to_call,
        state.tokenizer,
        corpus,
        state.recipe.evaluate,
        when=when,
        params=state.params,
        offline=offline,
        say=log.note,
        world=state.world,
    )
