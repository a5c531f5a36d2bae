"""The source model of a sharded run: each rank reads its rows of it, and no more."""

from dataclasses import replace
from functools import partial

from effcompress.distributed.rows import shard_rows
from effcompress.distributed.shards import shard_parameters
from effcompress.distributed.world import World
from effcompress.model.by_rows import RowsOf
from effcompress.model.load import LoadedModel
from effcompress.runner.state import device_of, shards_model
from effcompress.spec import Recipe


def rows_of(recipe: Recipe, world: World) -> RowsOf | None:
    """Returns which rows of how many this rank keeps; None where parameters are not sharded."""
    if not shards_model(recipe, world):
        return None
    count = world.size // recipe.distributed.replicas
    return partial(shard_rows, rank=world.rank % count, size=count)


def in_rows(recipe: Recipe, model: LoadedModel, world: World) -> LoadedModel:
    """Returns a model that was read by rows with its parameters sharded, another as it is. A
    collective, which sends nothing.
    """
    if not model.rows:
        return model
    of, replicas = (world.size, device_of(recipe)), recipe.distributed.replicas
    shard_parameters(model.module, *of, model.rows, replicas=replicas)
    return replace(model, rows={})
