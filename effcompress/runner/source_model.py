"""The source model: loaded whole or by rows, with places for what repairs write, and compared with
the one that the run began with, as its text and plugin files are.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.checkpoint import text_settings
from effcompress.data import Corpus
from effcompress.distributed.rows import shard_rows
from effcompress.distributed.shards import shard_parameters
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError
from effcompress.model.biases import add_biases, biased
from effcompress.model.by_rows import RowsOf
from effcompress.model.integrity import sha256_of
from effcompress.model.lineage import parent_of
from effcompress.model.load import LoadedModel, fingerprint
from effcompress.model.load import load as load_model
from effcompress.model.novices import add_novices, novel
from effcompress.network.axis_map import family_for
from effcompress.record.log import Log
from effcompress.removal.repairs import for_biases, for_experts, for_streams
from effcompress.runner.state import RunState, device_of, shards_model
from effcompress.spec import PruneSpec, Recipe

_OF_VERSIONS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Configuration keys that do not change what a model computes here."""
WEIGHTS = "model: weights"


def load_source(
    recipe: Recipe, log: Log, before: Mapping[str, str], *, offline: bool, world: World = ALONE
) -> tuple[LoadedModel, dict[str, str]]:
    """Loads the source model (``read_source``) and takes it up (``identified``)."""
    model = read_source(recipe, log, offline=offline, world=world)
    return identified(recipe, model, log, before, world)


def read_source(recipe: Recipe, log: Log, *, offline: bool, world: World = ALONE) -> LoadedModel:
    """Loads the source model, of a sharded one this rank's rows alone. Sends nothing.

    Raises SourceError as ``model.load`` does.
    """
    how: Any = {"offline": offline, "progress": log.note, "rows_of": _rows_of(recipe, world)}
    return load_model(recipe.model, seed=recipe.seed, **how)


def identified(
    recipe: Recipe, model: LoadedModel, log: Log, before: Mapping[str, str], world: World = ALONE
) -> tuple[LoadedModel, dict[str, str]]:
    """Returns the source model, sharded where it was read by rows, with zero biases where a repair
    writes into them, and what it is (``provenance_of``). A collective if it is sharded.

    Raises RunError when it is not what a resumed run had ``before``, CoverageError when the class
    of the model has no place for such biases.
    """
    model = _in_rows(recipe, model, world)
    provenance = provenance_of(recipe, model)
    require_same(before, provenance)
    return repairable(model, recipe.prune, log.note), provenance


def repairable(
    model: LoadedModel, prune: PruneSpec | None, note: Callable[[str], None]
) -> LoadedModel:
    """Adds the zero biases and constants that repairs write into; ``note`` is told how many.

    Raises CoverageError when the class of the model has no place for them.
    """
    if prune and for_experts(prune.repair):
        family = family_for(parent_of(model.config))
        config = novel(family, model.config)
        if added := add_novices(model.module, family):
            note(f"{added:,} constants added, all zero: a repair puts them in experts' places")
        model = replace(model, config=config, added_params=added)
    if not prune or not (for_biases(prune.repair) or for_streams(prune)):
        return model
    plain = parent_of(model.config)
    family = family_for(plain)
    config = {**model.config, **biased(family, plain)}
    if added := add_biases(model.module, family, config):
        note(f"{added:,} biases added, all zero: a repair writes into them")
    return replace(model, config=config, added_params=model.added_params + added)


def source_again(state: RunState, log: Log, *, offline: bool) -> tuple[nn.Module, Tensor | None]:
    """Loads the source model a second time, for a sharded run this rank's rows alone; also returns
    which of its hidden channels the pruned model has (None: all). Raises RunError when it is
    another than the run began with.
    """
    channels = state.pruned.ledger.original.get("hidden")
    kept = None if channels is None else channels.to(state.device)
    if state.source is not None:
        return state.source, kept
    recipe = state.recipe
    rng = torch.get_rng_state()
    source = read_source(recipe, log, offline=offline, world=state.world)
    torch.set_rng_state(rng)  # a resumed run loads it at another step
    source = _in_rows(recipe, source, state.world)
    require_same(state.provenance, provenance_of(recipe, source))
    return source.module, kept


def _rows_of(recipe: Recipe, world: World) -> RowsOf | None:
    """Returns which rows of how many this rank keeps; None where parameters are not sharded."""
    if not shards_model(recipe, world):
        return None
    count = world.size // recipe.distributed.replicas
    return partial(shard_rows, rank=world.rank % count, size=count)


def _in_rows(recipe: Recipe, model: LoadedModel, world: World) -> LoadedModel:
    """Returns a model that was read by rows with its parameters sharded, another as it is. A
    collective, which sends nothing.
    """
    if not model.rows:
        return model
    of, replicas = (world.size, device_of(recipe)), recipe.distributed.replicas
    shard_parameters(model.module, *of, model.rows, replicas=replicas)
    return replace(model, rows={})


def plugin_files(recipe: Recipe) -> dict[str, str]:
    """Returns a hash of each plugin file that the recipe names, by its number and name: a project
    may move.
    """
    files = enumerate(recipe.plugins)
    return {f"plugins.{index}: {path.name}": sha256_of(path) for index, path in files}


def provenance_of(recipe: Recipe, model: LoadedModel) -> dict[str, str]:
    """Returns what the source model is, as it was loaded: a hash of its weights (except random
    ones, which only the seed determines), and of each key of its configuration, its generation
    config and its tokenizer the value.
    """
    weights = {} if recipe.model.random else {WEIGHTS: fingerprint(model.module)}
    return {**weights, **described(model)}


def texts(corpus: Corpus) -> dict[str, str]:
    """Returns a hash of the tokens of each domain."""
    return {f"data.domains.{name}": facts["content"] for name, facts in corpus.summary().items()}


def described(model: LoadedModel) -> dict[str, str]:
    """Returns what the source model is, without its weights."""
    module: Any = model.module
    backend = getattr(model.tokenizer, "backend", None)
    parts = {"configuration": model.config, **text_settings(module.generation_config, backend)}
    return {
        f"model: {part}: {key}": json.dumps(value, sort_keys=True, default=str)
        for part, values in parts.items()
        for key, value in values.items()
        if key not in _OF_VERSIONS
    }


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Returns the first of ``now`` that was another before. What earlier versions did not write
    down is not compared.
    """
    return next((what for what, value in now.items() if before.get(what, value) != value), None)


def named_alike(before: Mapping[str, str]) -> dict[str, str]:
    """Returns what a checkpoint says was there, with plugin files named as ``plugin_files`` does;
    earlier versions named them by their paths.
    """
    old = [what for what in before if what.startswith("plugins: ")]
    new = {what: f"plugins.{i}: {what.rpartition('/')[2]}" for i, what in enumerate(old)}
    return {new.get(what, what): value for what, value in before.items()}


def require_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises RunError naming what ``changed``."""
    what = changed(before, now)
    if what is not None:
        raise RunError(
            f"this changed since the run began: was {before[what]:.60}, is {now[what]:.60}",
            where=what,
            fix="Put it back to continue, or start afresh with --output.",
        )
