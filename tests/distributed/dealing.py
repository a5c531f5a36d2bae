"""One of several processes (`tests.warm.together`): Gram matrices that are dealt out, and layers
that are gathered in bfloat16, on a tiny model. What is wrong fails here, in the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effcompress.distributed.rows import own, whole
from effcompress.distributed.shards import Shards
from effcompress.distributed.world import ALONE, World, joined
from effcompress.errors import NotFinite, PluginError
from effcompress.measure.grams import Grams, readers
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import tiny, tokens
from tests.measure.test_grams import seen

CPU = torch.device("cpu")
PER_RANK = 2
"""Sequences of a pass on each rank."""


def dealt(limit: int) -> None:
    """Each matrix is at one process, and is the mean over what all read (``limit`` tokens each, of
    two passes with decay), in fp64; whoever loads them has the same.
    """
    with joined() as world:
        model, grams = _measuring(world, limit)
        reference, params = tiny(), list(grams.params)
        want: dict[str, Tensor] = {}
        for number in range(2):
            ids = tokens(PER_RANK * world.size, seed=number)
            with grams.listening():
                model.module(input_ids=ids[world.own_rows(len(ids))])
            for rank in range(world.size):
                part = ids[World(rank, world.size).own_rows(len(ids))]
                for name, x in seen(reference, part, params).items():
                    stride = max(1, len(x) // limit)
                    some = x[number % stride :: stride][:limit] if stride > 1 else x
                    share = (1.0 if number else 0.5) / 1.5 / world.size
                    want[name] = want.get(name, 0.0) + share * some.T @ some / len(some)
        held = world.each(lambda: sorted(grams.values))
        assert sorted(n for each in held for n in each) == sorted({*grams.owner.values()})
        assert all(held), "every process holds some"
        sizes = [sum(t.nbytes for t in grams.values.values())]
        every = [x[0] for x in world.each(lambda: sizes)]
        assert max(every) - min(every) <= max(t.numel() * 4 for t in grams.values.values())
        _equal(world, grams, want)
        grams.share()
        saved = world.each(grams.state_dict)
        together = {key: value for each in reversed(saved) for key, value in each.items()}
        again = Grams(model.module, grams.params, limit, 0.5, world=world, dealt=True)
        again.load_state_dict(together)
        _equal(world, again, want)
        single = Grams(model.module, grams.params, limit, 0.5)
        single.load_state_dict(together)
        _equal(ALONE, single, want)


def _measuring(world: World, limit: int) -> tuple[PrunedModel, Grams]:
    module = tiny()
    space = [Bound(REGISTRY.get("space", name)) for name in ("ffn", "attention", "hidden")]
    model = PrunedModel(module, module.config.to_dict(), space)
    params = readers(module, model.axes, model.sets)
    return model, Grams(module, params, limit, 0.5, world=world, dealt=True)


def _equal(world: World, grams: Grams, want: Mapping[str, Tensor]) -> None:
    for name, matrix in want.items():
        found = grams.read(name)
        if world.size > 1:
            assert (found is not None) == (grams.holder(name) == world.rank), name
        if found is not None:
            torch.testing.assert_close(found.double(), matrix, rtol=1e-4, atol=1e-5)


def spoilt() -> None:
    """One process reads what is not finite: all raise, and all restart the same matrices."""
    with joined() as world:
        model, grams = _measuring(world, 1 << 20)
        if world.rank == 1:
            layer = model.module.get_submodule("model.layers.1")
            layer.register_forward_hook(lambda _m, _a, out: out * float("nan"))
        with pytest.raises(NotFinite), grams.listening():
            model.module(input_ids=tokens(1, seed=world.rank))
            raise NotFinite("the loss is not finite")
        bad = "model.layers.2.mlp.gate_proj.weight"
        with pytest.raises(NotFinite, match="not finite"):
            grams.read(bad)
        grams.read("model.layers.0.mlp.gate_proj.weight")  # of a layer before: finite everywhere
        gone = grams.forget_unfinite()
        assert {name.split(".")[2] for name in gone} == {"2"} and grams.read(bad) is None
        assert world.each(lambda: gone) == [gone] * world.size


def failing() -> None:
    """A repair that fails where a matrix is held ends all processes, with its error."""
    with joined() as world:
        model, grams = _measuring(world, 1 << 20)
        shards = Shards(model.module, "model.layers", world.size, CPU)
        root = shards.wrap()
        with grams.listening(), torch.no_grad():
            root(input_ids=tokens(1, seed=world.rank))
        shards.unwrap()
        repair = Bound(REGISTRY.get("repair", "obs_update"))
        before = {n: whole(p).clone() for n, p in model.module.named_parameters()}
        corrected = Bound.corrected
        held = "model.layers.1.mlp.down_proj.weight"

        def refusing(self: Any, weight: Tensor, **given: Any) -> Any:
            if len(given["gram"]) == before[held].shape[1] and grams.holder(held) == world.rank:
                raise PluginError("no solution")
            return corrected(self, weight, **given)

        Bound.corrected = refusing
        with pytest.raises(PluginError, match="no solution"):
            model.mask({"ffn.1": [0, 3]}, repairs=[repair], inputs=grams)
        Bound.corrected = corrected
        model.mask({"ffn.0": [0, 3]}, repairs=[repair], inputs=grams)
        assert not torch.equal(whole(model.parameters()["model.layers.0.mlp.down_proj.weight"]),
                               before["model.layers.0.mlp.down_proj.weight"])  # fmt: skip


def halved() -> None:
    """Layers gathered in bfloat16, under autocast: the same losses and the same gradients of all
    matrices as from fp32 weights, as long as gains are numbers of bfloat16; those of gains are
    rounded.
    """
    with joined() as world:
        model = tiny()
        for p in model.parameters():
            if p.dim() == 1:
                p.data = p.data.bfloat16().float()
        shards = Shards(model, "model.layers", world.size, CPU)
        losses, grads = [], []
        for bf16 in (False, True):
            root = shards.wrap(bf16=bf16)
            losses.append(float(_backward(root, world)))
            grads.append({n: own(p.grad).clone() for n, p in model.named_parameters()})
            model.zero_grad()
            shards.unwrap()
        assert losses[0] == losses[1]
        for name, grad in grads[0].items():
            other = grads[1][name]
            assert other.dtype == torch.float32
            inside_gain = grad.dim() == 1 and ".layers." in name
            if inside_gain:
                torch.testing.assert_close(other, grad, rtol=2**-7, atol=2**-8)
                assert not torch.equal(other, grad) or not grad.numel()
            else:
                assert torch.equal(other, grad), name
        gain = model.get_parameter("model.layers.1.input_layernorm.weight")
        own(gain.detach()).add_(1e-3)
        pair = [float(_backward(shards.wrap(bf16=bf16), world)) for bf16 in (False, True)
                if shards.unwrap() is None]  # fmt: skip
        assert pair[0] != pair[1], "a gain that bfloat16 has not is rounded"


def _backward(root: nn.Module, world: World) -> Tensor:
    ids = tokens(1, seed=world.rank)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = root(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach()
