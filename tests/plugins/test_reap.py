"""Criteria of experts: two experts by hand, on which five criteria say four different things."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effcompress.errors import PluginError
from effcompress.measure.statistics import Streaming
from effcompress.registry import REGISTRY, Bound, Plugin, Registry
from effcompress.saliency.inputs import score_inputs
from effcompress.types import GroupSet

# Two tokens go to expert 0 with (weight, norm) = (.9, 1), (.1, 3), one to expert 1 with (.5, 2).
OUTPUTS = {0: [[0.6, 0.8], [3.0, 0.0]], 1: [[0.0, 2.0]]}
GATES = {0: [[0.9, 0.1], [0.1, 0.9]], 1: [[0.5, 0.5]]}
WANTED = {
    "reap": (0.6, 1.0),
    "man": (2.0, 2.0),
    "msan": (5.0, 4.0),
    "ean": (4.0, 2.0),
    "frequency": (2.0, 1.0),
}


def measured(plugin: Plugin, scale: float = 1.0) -> dict[str, Tensor]:
    """The statistics of the two experts, and of a third that is sent nothing."""
    found = {"routed": torch.tensor([2.0, 1.0, 0.0])}
    for name, statistic in plugin.of_experts.items():
        values = []
        for j, rows in OUTPUTS.items():
            stream = Streaming(statistic)
            gates = scale * torch.tensor(GATES[j], dtype=torch.float64)
            output = torch.tensor(rows, dtype=torch.float64)
            for t in range(len(rows)):  # token by token, as if each were a sequence
                at = slice(t, t + 1)
                stream.add(output=output[at], gate=gates[at, 0], gates=gates[at])
            values.append(float(stream.value()))
        found[name] = torch.tensor([*values, 0.0])
    return found


def experts() -> GroupSet:
    return GroupSet("expert.1", "expert", 1, 3, ())


class Nothing:
    """No linear layer."""

    params: dict[str, int] = {}  # noqa: RUF012
    owner: dict[str, str] = {}  # noqa: RUF012

    def read(self, _param: str) -> dict[str, Tensor]:
        raise AssertionError

    weight = read


def scored(name: str, scale: float = 1.0, **knobs: object) -> list[float]:
    plugin = REGISTRY.get("criterion", name)
    bound = Bound(plugin, {n: k.default for n, k in plugin.knobs.items()} | knobs)
    of_experts = {"expert.1": measured(plugin, scale)}
    return score_inputs([experts()], bound, Nothing(), {}, of_experts)["expert.1"].tolist()


@pytest.mark.parametrize("name", WANTED)
def test_two_experts_by_hand(name: str) -> None:
    assert scored(name) == pytest.approx([*WANTED[name], 0.0], abs=1e-6)


def test_weights_that_do_not_sum_to_one() -> None:
    """The model multiplies by half of each: renormalised, they are what they were."""
    assert scored("reap", 0.5) == pytest.approx([0.6, 1.0, 0.0], abs=1e-6)
    assert scored("reap", 0.5, renormalise=False) == pytest.approx([0.3, 0.5, 0.0], abs=1e-6)


def test_a_criterion_of_experts_returns_one_number_each() -> None:
    registry = Registry()
    plugin = registry.add("criterion", "short", lambda routed: routed[:2], "new")
    with pytest.raises(PluginError, match=r"returned \(2,\) where \(3,\) was expected"):
        score_inputs(
            [experts()], Bound(plugin), Nothing(), {}, {"expert.1": {"routed": torch.ones(3)}}
        )


def test_a_statistic_has_one_source() -> None:
    for takes in (lambda x, output: x, lambda before, gate: before, lambda state: state):
        with pytest.raises(PluginError, match="of experts"):
            Registry().add("statistic", "mixed", takes, "new")
