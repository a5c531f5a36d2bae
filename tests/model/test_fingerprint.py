"""Equal hashes exactly for equal weights."""

from __future__ import annotations

import copy

import torch

from effcompress.model.load import fingerprint
from tests.conftest import tiny


def test_a_hash_says_which_weights() -> None:
    model = tiny()
    same = fingerprint(model)
    assert len(same) == 16 and same == fingerprint(copy.deepcopy(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-6
    assert fingerprint(other) != same
    roomy = copy.deepcopy(model)
    roomy.model.layers[0].mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(48))
    assert fingerprint(roomy) == same
    roomy.model.layers[0].mlp.down_proj.bias.data[3] = 1e-9
    assert fingerprint(roomy) != same
    assert fingerprint(tiny(dtype=torch.float64)) != same
    assert fingerprint(tiny("gqa_untied")) != same


def one(shape: tuple[int, ...], name: str = "w", dtype: torch.dtype = torch.bfloat16) -> str:
    """A module whose only parameter has the same bits whatever its name, shape and type."""
    module = torch.nn.Module()
    bits = torch.arange(1, 13, dtype=torch.int16).view(dtype)
    module.register_parameter(name, torch.nn.Parameter(bits.view(shape)))
    return fingerprint(module)


def test_names_shapes_and_types_are_part_of_it() -> None:
    same = one((3, 4))
    assert same == one((3, 4))
    others = {one((4, 3)), one((12,)), one((3, 4), "v"), one((3, 4), dtype=torch.float16)}
    assert len({same, *others}) == 5


def test_a_weight_of_zeros_is_not_left_out() -> None:
    model = tiny()
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    zeroed = fingerprint(model)
    del model.model.layers[0].mlp.down_proj
    assert fingerprint(model) != zeroed
