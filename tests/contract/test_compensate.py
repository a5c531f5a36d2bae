"""The second-order update in every family: no layer's output error grows by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effcompress.measure.grams import Grams, readers
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.compensate import _Read, _repair
from tests.conftest import FAMILIES, MIXTURES, shape, tiny, tokens

UPDATE = Bound(REGISTRY.get("repair", "obs_update"), {"damp": 1e-6})
NONE = (("mixtral", "ffn"), ("gpt_oss", "ffn"))


def read_by(module: nn.Module, ids: Tensor, params: list[str]) -> dict[str, Tensor]:
    """What the layers read, ``[T, I]``."""
    found: dict[str, Tensor] = {}
    handles = []
    for param in params:
        linear = module.get_submodule(param.removesuffix(".weight"))

        def keep(_m: Any, args: tuple[Tensor, ...], param: str = param) -> None:
            found[param] = args[0].detach().flatten(0, -2)

        handles.append(linear.register_forward_pre_hook(keep))
    module(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found


# Channels of these lie in experts, which are no linear layers.
CASES = [(f, s) for f in FAMILIES for s in ("ffn", "attention", "hidden") if (f, s) not in NONE]


@pytest.mark.parametrize(("family", "space"), CASES)
def test_no_output_error_grows(family: str, space: str) -> None:
    ids = tokens(8, 16)
    bound = Bound(REGISTRY.get("space", space))
    weights: dict[bool, dict[str, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    for update in (False, True):
        # Grouped kernels for experts take no fp64.
        dtype = torch.float32 if family in MIXTURES else torch.float64
        made = tiny("gqa_tied", dtype, model_type=family)
        model = PrunedModel(made, made.config.to_dict(), [bound])
        params = readers(model.module, model.axes, model.sets)
        assert params
        inputs = read_by(model.module, ids, list(params))
        dense = {p: model.parameters()[p].detach().clone() for p in params}
        grams = Grams(model.module, params, 1 << 30, 1.0)
        with grams.listening():
            model.module(input_ids=ids)
        plan = {s.name: [0, s.size - 1] if s.size > 2 else [0] for s in model.sets}
        model.mask(plan, repairs=[UPDATE] if update else [], inputs=grams)
        weights[update] = {p: model.parameters()[p].detach().clone() for p in params}
        model.commit(inputs=grams)  # what was read follows
    better = 0
    for param, dim in params.items():
        errors = {}
        for update, changed in weights.items():
            change = changed[param] - dense[param]
            rows = change if dim == 1 else change.T
            errors[update] = float((inputs[param] @ rows.T).square().sum())
        assert errors[True] <= errors[False] * (1 + 1e-5)
        better += errors[True] < 0.9 * errors[False]
    assert better >= len(params) // 2


def test_what_was_read_by_inputs_that_go_is_forgotten() -> None:
    """With or without a repair: the next cut's repair must not count on them."""
    model = PrunedModel(tiny("gqa_tied"), shape("gqa_tied"), [Bound(REGISTRY.get("space", "ffn"))])
    params = readers(model.module, model.axes, model.sets)
    grams = Grams(model.module, params, tokens=64, decay=1.0)
    with grams.listening(), torch.no_grad():
        model.module(tokens())
    model.mask({f"ffn.{i}": [2, 7] for i in range(3)}, inputs=grams)
    for param in params:
        gram_II = grams.read(param)
        assert gram_II is not None and not gram_II[[2, 7]].any() and not gram_II[:, [2, 7]].any()
        assert gram_II.diagonal().ne(0).sum() == 38


def test_a_repair_adds_to_the_bias_that_is_there() -> None:
    """Cut twice: what the first cut left in the bias stays."""
    weight, bias = torch.ones(2, 3), torch.tensor([10.0, 20.0])
    mean = torch.tensor([1.0, 2.0, 4.0])
    bound = Bound(REGISTRY.get("repair", "bias_mean"))
    for gone, wanted in ((0, [11.0, 21.0]), (2, [15.0, 25.0])):
        read = _Read(torch.eye(3), mean, torch.tensor([gone]))
        _repair(bound, {"w": weight}, [bias], read)
        assert bias.tolist() == wanted
