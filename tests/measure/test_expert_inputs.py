"""Statistics of what the down projections of experts read, and the saliency of their channels,
against the same by hand in fp64.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from effcompress.measure.grams import expert_readers, readers
from effcompress.measure.routes import Call, Down, channels
from effcompress.measure.statistics import InputStatistics
from effcompress.registry import REGISTRY, Bound
from effcompress.saliency.inputs import score_inputs
from tests.conftest import tokens
from tests.measure.test_taps import MIXTURES, inner, mixture

Read = dict[int, list[Tensor]]
"""Expert -> what its down projection read in every sequence that sent tokens to it."""


def by_hand(experts: Any, calls: list[tuple[Any, ...]]) -> Read:
    found: Read = defaultdict(list)
    for x, *routed in calls:
        for e in range(len(experts.down_proj)):
            if routed:
                token = (routed[0] == e).any(-1)
                sent = x[token]
            else:  # Llama 4: all read all, times their weight
                own = x.unflatten(0, (len(experts.down_proj), -1))[e]
                sent = own[own.abs().sum(-1) > 0]
            if len(sent):
                found[e].append(inner(experts, e, sent).detach())
    return found


def wifv(experts: Any, read: Read) -> Tensor:
    """FLAP of every channel: within an expert the variance times the squared column, brought to
    mean 0 and deviation 1; the sum over experts.
    """
    total = torch.zeros((), dtype=torch.float64)
    transposed = hasattr(experts, "down_proj_bias") or hasattr(experts, "expert_dim")
    for e, parts in read.items():
        x_NF = torch.cat(parts)
        w = experts.down_proj[e].detach()
        value = x_NF.var(0, correction=0) * w.square().sum(1 if transposed else 0)
        total = total + (value - value.mean()) / value.std().clamp(min=1e-30)
    return total


@pytest.mark.parametrize("family", MIXTURES)
def test_fluctuation_of_channels(family: str) -> None:
    model, ids = mixture(family, "ffn"), tokens(3)
    criterion = Bound(REGISTRY.get("criterion", "flap"))
    sets = [s for s in model.sets if s.kind == "expert_ffn"]
    of = readers(model.module, model.axes, sets), criterion.needs, criterion.plugin.of_inputs
    read = InputStatistics(model.module, *of, expert_readers(model.axes, sets))
    calls: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    paths = {s.name: model.family.experts.replace("{i}", str(s.layer)) for s in sets}
    for name, path in paths.items():
        model.module.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, named, name=name: calls[name].append((*args, *named.values())),
            with_kwargs=True,
        )
    with torch.no_grad(), read.listening():
        for row in ids:
            model.module(input_ids=row[None], use_cache=False)
    read.close()
    found = score_inputs(sets, criterion, read, {})
    for s in sets:
        experts = model.module.get_submodule(paths[s.name])
        hand = by_hand(experts, calls[s.name])
        (m,) = [m for m in s.members if read.params.get(m.param) == m.dim]
        assert list(read.parts(m.param)) == sorted(hand)
        for e, parts in hand.items():
            mean = read.read(m.param, e)["input_norm"].double()
            want = torch.cat(parts).square().mean(0).sqrt()
            torch.testing.assert_close(mean, want, rtol=1e-5, atol=1e-7)
        want = wifv(experts, hand)
        torch.testing.assert_close(found[s.name].double(), want, rtol=1e-3, atol=1e-3)


def test_more_channels_than_outputs() -> None:
    """The identity that reads them has room for a few at a time."""
    model = mixture("gpt_oss", "ffn")
    experts: Any = model.module.get_submodule(model.family.experts.replace("{i}", "0"))
    for name, shape in (("gate_up_proj", (5, 48, 260)), ("gate_up_proj_bias", (5, 260))):
        setattr(experts, name, torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)))
    down = torch.randn(5, 130, 48, dtype=torch.float64)
    experts.down_proj = torch.nn.Parameter(down)
    x, index = torch.randn(7, 48, dtype=torch.float64), torch.full((7, 1), 2)
    call = Call(experts, x, index, torch.full((7, 1), 0.3, dtype=torch.float64))
    found = channels(call, Down("down_proj", 1))
    torch.testing.assert_close(found, inner(experts, 2, x).detach())
    assert experts.down_proj.data_ptr() == down.data_ptr() and experts.down_proj.requires_grad
