"""One of several processes (`tests.warm.together`): counts the bytes of a step, of a cut and of
joining again (``main``), of what reads calibration text (``calibrating``), or of a step of recovery
(``recovering``), and writes ``output.json``.

``output.json``: for each process what -> kind of collective -> bytes that it handed to it;
``touched`` and ``groups`` of the cut, bytes of the model's buffers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from effcompress import load_recipe, train
from effcompress.distributed.world import World, joined, needs_all_ranks
from effcompress.record.log import Log, NoView
from effcompress.runner import prune as pruning
from effcompress.runner import recovery
from effcompress.runner.measuring import calibrated, listening, observe
from effcompress.runner.prune import commit_event, prune_event
from effcompress.runner.recovery import refit_event
from effcompress.runner.rotate import rotate_event
from effcompress.runner.source_model import load_source, provenance_of
from effcompress.runner.sparsify import sparsify_event
from effcompress.runner.start import corpus_of
from effcompress.runner.state import RunState
from effcompress.spec import Recipe
from effcompress.train.loss import Distillation
from effcompress.types import Due

here: Counter[str] = Counter()
by_layer = pruning.propagated
alive: list[tuple[StorageWeakRef, int]] = []


def counts(kind: str, real: Callable[..., Any], tensors: Callable[..., list[Any]]) -> Any:
    def counting(*args: Any, **how: Any) -> Any:
        here[kind] += sum(t.nbytes for t in tensors(*args, **how))
        return real(*args, **how)

    return counting


def gathered(tensor: Any) -> Any:
    """Note how many bytes of whole tensors are alive with this one, whoever refers to them."""
    alive.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
    alive[:] = [(held, size) for held, size in alive if not held.expired()]
    here["whole"] = max(here["whole"], sum(size for _, size in alive))
    return tensor


def handed(_: Any = None, given: Any = None, **how: Any) -> list[Any]:
    """What FSDP2 hands to a collective, by place or by name."""
    return [how["input"] if given is None else given]


def count() -> None:
    """From here on, note the bytes of every collective."""
    dist.all_reduce = counts("all_reduce", dist.all_reduce, lambda t, *_, **how: [t])
    dist.all_gather = counts("all_gather", dist.all_gather, lambda _, t, *rest, **how: [t])
    for name in ("all_gather", "reduce_scatter"):
        names = (f"{name}_single", f"{name}_into_tensor", f"{name}_tensor")  # the first: torch 2.13
        used = next(n for n in names if hasattr(dist, n))
        setattr(dist, used, counts(name, getattr(dist, used), handed))
    full = counts("all_gather", DTensor.full_tensor, lambda t, **how: [t.to_local()])
    DTensor.full_tensor = lambda t, **how: gathered(full(t, **how))
    to_all = counts("all_to_all", dist.all_to_all_single, lambda _, t, *rest, **how: [t])
    dist.all_to_all_single = to_all
    c10d.broadcast = counts("decision", c10d.broadcast, lambda t, *_, **how: [t])
    coalesced = dist._broadcast_coalesced
    dist._broadcast_coalesced = counts("broadcast", coalesced, lambda _, ts, *rest, **how: ts)


def state_of(recipe: Recipe, log: Log, world: World) -> RunState:
    model, provenance = load_source(recipe, log, {}, offline=True, world=world)
    quiet: Any = {"offline": True, "say": log.note, "notice": log.note}
    state = RunState(recipe, model, corpus_of(recipe, model.tokenizer, **quiet), world)
    state.provenance = provenance
    return state


def calibrating(path: Path, cases: Mapping[str, Sequence[str]], output: Path) -> None:
    """``cases``: name -> settings of a recipe that cuts once, at the start."""
    count()
    said: dict[str, Any] = {}
    with joined() as world:
        log = Log(path.parent, view=NoView(), keep=world.main)
        for name, sets in cases.items():
            recipe = load_recipe(path, sets).recipe
            state = state_of(recipe, log, world)
            assert state.shards
            state.to_call  # noqa: B018  joins
            found = said[name] = {}

            def counting(what: str, act: Callable[..., object], *given: Any, into=found) -> None:
                here.clear()
                act(*given)
                into[what] = {kind: count for kind, count in here.items() if kind != "decision"}

            if recipe.prune is not None and recipe.prune.rotate is not None:
                counting("rotation", rotate_event, state, recipe.prune, recipe.prune.rotate, log)
                found["widths"] = {}
            elif recipe.prune is not None:
                counting("calibration", calibrated, state, recipe.prune, log)
                found["propagated"] = {}

                def propagated(*given: Any, counting=counting) -> Any:
                    made: list[Any] = []
                    counting("propagated", lambda: made.append(by_layer(*given)))
                    return made[0]

                pruning.propagated = propagated
                due = Due(params=state.target_params)
                prune_event(state, replace(recipe.prune, refit=None), due, log)
                found["widths"] = dict(state.pruned.ledger.widths())
                if recipe.prune.refit is not None:
                    counting("refit", refit_event, state, recipe.prune, log)
            if recipe.sparsify is not None:
                counting("zeros", sparsify_event, state, recipe.sparsify, log)
        log.close()
        if world.main:
            output.write_text(json.dumps(said))


def main(path: Path, output: Path, sets: Sequence[str] = ()) -> None:
    count()
    recipe = load_recipe(path, sets).recipe
    with joined() as world:
        log = Log(path.parent, view=NoView(), keep=world.main)
        state = state_of(recipe, log, world)
        assert recipe.train and recipe.prune and state.optimizer
        said: dict[str, Any] = {"buffers": sum(t.nbytes for t in state.module.buffers())}

        def step() -> None:
            batch = state.stream.next(recipe.train.batch_size)
            with listening(state):
                train.backward(state.train_module, batch, recipe.train, world=world)
            observe(state, recipe.prune)
            train.update(state.module, state.optimizer, recipe.train, 1e-3, world)
            world.any(False)

        def cut() -> None:
            prune_event(state, recipe.prune, Due(params=state.params - 2000), log)

        step()  # joins the replicas
        for name, do in {"step": step, "cut": cut}.items():
            here.clear()
            do()
            said[name] = dict(here)
        dead = {name: int((~alive).sum()) for name, alive in state.pruned.ledger.alive.items()}
        said |= {"touched": [n for n, gone in dead.items() if gone], "groups": sum(dead.values())}
        here.clear()
        commit_event(state, log)
        said["surgery"] = dict(here)
        assert state.train_module is not state.module
        said["commit"] = dict(here)
        if state.shards:
            own = [p.to_local().numel() for p in state.module.parameters()]
            largest = max(p.nbytes for p in state.module.parameters())
            sharded = needs_all_ranks(state.train_module)
            said |= {"own": sum(own), "shared": sharded, "largest": largest}
            here.clear()
            state.snapshot({})
            said["checkpoint"] = dict(here)
            with state.gathered():
                said["whole model"] = dict(here)
        said["params"] = sum(p.numel() for p in state.module.parameters())
        log.close()
        every = world.each(lambda: said)
        if world.main:
            output.write_text(json.dumps(every))


def recovering(path: Path, output: Path) -> None:
    """The bytes of a step of `recover`, behind a cut at once."""
    count()
    recipe = load_recipe(path).recipe
    with joined() as world:
        log = Log(path.parent, view=NoView(), keep=world.main)
        model, _ = load_source(recipe, log, {}, offline=True, world=world)
        quiet: Any = {"offline": True, "say": log.note, "notice": log.note}
        state = RunState(recipe, model, corpus_of(recipe, model.tokenizer, **quiet), world)
        assert recipe.recover and recipe.prune and state.optimizer
        prune_event(state, recipe.prune, Due(params=state.target_params), log)
        commit_event(state, log)
        state.provenance = provenance_of(recipe, model)
        recovery.begin(state, log, offline=True)
        said: dict[str, Any] = {"widths": state.pruned.ledger.widths()}
        for _ in range(2):  # the first wraps the model
            module = state.train_module
            here.clear()
            batch = state.stream.next(recipe.recover.batch_size)
            train.backward(module, batch, recipe.recover, state.objective, world)
            train.update(state.module, state.optimizer, recipe.recover, 1e-3, world)
            world.any(False)
        said["step"] = dict(here)
        if isinstance(state.objective, Distillation):
            whole, own = (
                sum(size(p) for p in state.objective.teacher.parameters())
                for size in (lambda p: p.numel(), lambda p: p.to_local().numel())
            )
            said |= {"teacher": whole, "own": own}
        log.close()
        if world.main:
            output.write_text(json.dumps(said))
