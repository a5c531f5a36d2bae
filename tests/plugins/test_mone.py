"""MoNE's statistics and criterion: two experts by hand, sequences against all tokens at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effcompress.measure.statistics import Streaming
from effcompress.registry import REGISTRY, Bound


def streamed(name: str, **tokens: Any) -> float:
    """The statistic of sequences: lists of tensors, of one sequence each."""
    stream = Streaming(REGISTRY.get("statistic", name))
    for row in zip(*tokens.values(), strict=True):
        given = dict(zip(tokens, row, strict=True))
        stream.add(output=given["output"], gate=given["gate"], gates=given["gate"][:, None])
    return float(stream.value())


def test_two_experts_by_hand() -> None:
    """Expert 0 returns (1, 0) and (3, 0) under the weights .5 and .3, expert 1 one thing once: its
    deviation is 0, whatever it is.
    """
    output = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[3.0, 0.0]]).double()]
    gate = [torch.tensor([0.5]).double(), torch.tensor([0.3]).double()]
    deviation = [streamed("output_deviation", output=output, gate=gate)]
    deviation += [streamed("output_deviation", output=output[:1], gate=gate[:1])]
    assert deviation == pytest.approx([2**0.5, 0.0])  # (1 + 1) / (2 - 1)
    mean = [streamed("gate_mean", output=output, gate=gate), 0.5]
    assert mean[0] == pytest.approx(0.4)
    score = Bound(REGISTRY.get("criterion", "mone"))(
        output_deviation=torch.tensor(deviation),
        gate_mean=torch.tensor(mean),
        routed=torch.tensor([2.0, 1.0]),
    )
    # The weight of expert 0 over all three routes: .8 / 3.
    assert score.tolist() == pytest.approx([2**0.5 * 0.8 / 3, 0.0])


def test_sequences_are_merged() -> None:
    draw = torch.Generator().manual_seed(0)
    output = torch.randn(40, 5, generator=draw, dtype=torch.float64) * 3 + 7
    parts, gate = list(output.split([1, 9, 2, 28])), torch.ones(40).double()
    found = streamed("output_deviation", output=parts, gate=list(gate.split([1, 9, 2, 28])))
    assert found == pytest.approx(float(output.std(0, unbiased=True).norm()), rel=1e-12)
