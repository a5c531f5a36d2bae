"""The source model, as a run starts from it."""

from __future__ import annotations

from dataclasses import replace

from effcompress.model.biases import add_biases, biased
from effcompress.model.lineage import parent_of
from effcompress.model.load import LoadedModel
from effcompress.model.load import load as load_model
from effcompress.network.axis_map import family_for
from effcompress.record.log import Log
from effcompress.removal.repairs import for_biases, for_streams
from effcompress.spec import Recipe


def load_source(recipe: Recipe, log: Log, *, offline: bool) -> LoadedModel:
    """Raises SourceError as ``model.load`` does, CoverageError when a repair wants to write into
    biases that the class has no place for.
    """
    model = load_model(recipe.model, seed=recipe.seed, offline=offline, progress=log.note)
    prune = recipe.prune
    if prune and (for_biases(prune.repair) or for_streams(prune)):
        return _with_biases(model, log)
    return model


def _with_biases(model: LoadedModel, log: Log) -> LoadedModel:
    """A place for repairs to write to; the function stays."""
    plain = parent_of(model.config)
    family = family_for(plain)
    config = {**model.config, **biased(family, plain)}
    if added := add_biases(model.module, family, config):
        log.note(f"{added:,} biases added, all zero: a repair writes into them")
    return replace(model, config=config, added_params=added)
