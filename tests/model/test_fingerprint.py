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
