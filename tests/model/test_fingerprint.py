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


def test_names_and_shapes_count_not_values_alone() -> None:
    def module(**parameters: torch.Tensor) -> torch.nn.Module:
        made = torch.nn.Module()
        for name, value in parameters.items():
            made.register_parameter(name, torch.nn.Parameter(value.clone()))
        return made

    one, two = torch.arange(12.0).reshape(3, 4), torch.ones(5)
    same = fingerprint(module(a=one, b=two))
    assert fingerprint(module(a=one, c=two)) != same
    assert fingerprint(module(a=one.reshape(4, 3), b=two)) != same
    assert fingerprint(module(a=one.reshape(12), b=two)) != same
    assert fingerprint(module(a=one.to(torch.float64), b=two)) != same
    zeros = torch.zeros(2, dtype=torch.float32), torch.zeros(2, dtype=torch.int32).float()
    assert fingerprint(module(a=zeros[0])) == fingerprint(module(a=zeros[1]))
    halves = torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.float16)
    assert fingerprint(module(a=halves[0])) != fingerprint(module(a=halves[1]))
