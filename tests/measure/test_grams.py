"""Second moments of what layers read, against the tensors themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from effcompress.measure.grams import Grams, readers
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import tiny, tokens

SPACES = ("ffn", "attention", "hidden")


def pruned(*names: str) -> PrunedModel:
    model = tiny()
    space = [Bound(REGISTRY.get("space", name)) for name in names]
    return PrunedModel(model, model.config.to_dict(), space)


def seen(module: nn.Module, ids: Tensor, params: list[str]) -> dict[str, Tensor]:
    """What each layer reads, ``[T, I]`` in fp64, by hooks of the test's own."""
    found: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(p.removesuffix(".weight")).register_forward_pre_hook(
            lambda _m, args, p=p: found.__setitem__(p, args[0].detach().flatten(0, -2).double())
        )
        for p in params
    ]
    module(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found


def test_only_layers_in_blocks_that_lose_inputs() -> None:
    model = pruned("ffn")
    assert set(readers(model.module, model.axes, model.sets)) == {
        f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)
    }
    every = pruned(*SPACES)
    found = readers(every.module, every.axes, every.sets)
    assert len(found) == 3 * 7 and all(name.startswith("model.layers.") for name in found)


def test_mean_of_outer_products_and_shared_inputs() -> None:
    model = pruned(*SPACES)
    params = readers(model.module, model.axes, model.sets)
    grams = Grams(model.module, params, tokens=1 << 30, decay=1.0)
    batches = [tokens(2, seed=1), tokens(3, seed=2)]
    want: dict[str, list[Tensor]] = {}
    for ids in batches:
        with grams.listening():
            model.module(input_ids=ids)
        for name, x in seen(model.module, ids, list(params)).items():
            want.setdefault(name, []).append(x.T @ x / len(x))
    for name, parts in want.items():
        found = grams.read(name)
        assert found is not None
        torch.testing.assert_close(found.double(), sum(parts) / len(parts), rtol=1e-4, atol=1e-6)
    # q, k, v read one tensor; gate and up another: 4 distinct inputs of 7 in each layer.
    assert len(grams.values) == 3 * 4
    assert len(grams.owner) == 3 * 7


def test_subsample_takes_other_tokens_every_time() -> None:
    model = pruned("ffn")
    params = readers(model.module, model.axes, model.sets)
    (name, *_) = params
    ids = tokens(4)
    x = seen(model.module, ids, [name])[name]
    stride = len(x) // 8
    grams = Grams(model.module, params, tokens=8, decay=0.5)
    for _ in range(2):
        with grams.listening():
            model.module(input_ids=ids)
    parts = [x[k::stride][:8] for k in range(2)]
    first, second = (part.T @ part / 8 for part in parts)
    found = grams.read(name)
    assert found is not None and not torch.allclose(first, second)
    want = (0.5 * first + second) / 1.5
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-6)


def test_nothing_is_heard_outside() -> None:
    model = pruned("ffn")
    grams = Grams(model.module, readers(model.module, model.axes, model.sets), 8, 0.5)
    model.module(input_ids=tokens())
    assert not grams.values and grams.read(next(iter(grams.params))) is None
    grams.close()
    with grams.listening():
        model.module(input_ids=tokens())
    assert not grams.values


@pytest.mark.parametrize("kind", SPACES)
def test_follows_masks_and_commits(kind: str) -> None:
    """What is left of the moments is what the pruned model's layers would have been asked for."""
    model = pruned(kind)
    grams = Grams(model.module, readers(model.module, model.axes, model.sets), 1 << 30, 1.0)
    with grams.listening():
        model.module(input_ids=tokens())
    before = {p: grams.read(p) for p in grams.params}
    plan = {s.name: [0] for s in model.sets}
    gone = {
        m.param: m.index_GB[0]
        for s in model.sets
        for m in s.members
        if grams.params.get(m.param) == m.dim
    }
    model.mask(plan, inputs=grams)
    for param, index in gone.items():
        found = grams.read(param)
        assert found is not None and not found[index].any() and not found[:, index].any()
    model.commit(inputs=grams)
    shapes = dict(model.module.named_parameters())
    for param, index in gone.items():
        found, old = grams.read(param), before[param]
        assert found is not None and old is not None
        keep = [i for i in range(len(old)) if i not in index.tolist()]
        assert len(found) == shapes[param].shape[1]
        torch.testing.assert_close(found, old[keep][:, keep])


def test_state_goes_round() -> None:
    model = pruned("ffn", "hidden")
    params = readers(model.module, model.axes, model.sets)
    one = Grams(model.module, params, 8, 0.5)
    with one.listening():
        model.module(input_ids=tokens())
    two = Grams(model.module, params, 8, 0.5)
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert two.owner == one.owner and two.weights == one.weights and two.passes == one.passes
    for param in params:
        a, b = one.read(param), two.read(param)
        assert a is not None and b is not None and torch.equal(a, b)
