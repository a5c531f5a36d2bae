"""Scores against plain sums over the weights a mini-group owns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from effcompress import groups
from effcompress.distributed.rows import shard_rows
from effcompress.errors import PluginError, RunError
from effcompress.measure.stats import TrainingStats
from effcompress.model.families.llama import LLAMA
from effcompress.registry import REGISTRY, Bound, Plugin
from effcompress.saliency import score as module
from effcompress.saliency.score import alike, score
from effcompress.spec import ReduceSpec
from effcompress.types import GroupSet
from tests.conftest import shape, tiny, tokens

FISHER = Bound(REGISTRY.get("hessian", "fisher_diag"))


def measured(name: str = "gqa_untied") -> tuple[nn.Module, list[GroupSet]]:
    model = tiny(name)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    axes = groups.axes_of(model, LLAMA, shape(name))
    kinds = ("ffn", "attention", "hidden")
    return model, groups.find(axes, [Bound(REGISTRY.get("space", k)) for k in kinds])


def by_hand(model: nn.Module, s: GroupSet, saliency) -> Tensor:
    """Double-precision loop over units and members."""
    params = dict(model.named_parameters())
    total = torch.zeros(s.size, dtype=torch.float64)
    for g in range(s.size):
        for m in s.members:
            p = params[m.param]
            value = saliency(p.detach().double(), p.grad.double())
            total[g] += value.index_select(m.dim, m.index_GB[g]).sum()
    return total


FORMULAS = {
    "magnitude": lambda w, g: w.abs(),
    "taylor": lambda w, g: (w * g).abs(),
    "taylor_second": lambda w, g: w**2 * g**2 / 2,
    "taylor_mixed": lambda w, g: (w * g - w**2 * g**2 / 2).abs(),
}


@pytest.mark.parametrize("block", [1 << 18, 100])
@pytest.mark.parametrize("name", FORMULAS)
def test_scores_equal_sums_over_members(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    model, sets = measured()
    criterion = Bound(REGISTRY.get("criterion", name))
    scores = score(sets, criterion, TrainingStats(model, criterion.needs, FISHER))
    for s in sets:
        expected = by_hand(model, s, FORMULAS[name])
        torch.testing.assert_close(scores[s.name].double(), expected, rtol=1e-5, atol=1e-12)


def test_random_is_seeded() -> None:
    model, sets = measured()
    criterion = Bound(REGISTRY.get("criterion", "random"))
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(score(sets, criterion, TrainingStats(model, (), None)))
    for s in sets:
        assert torch.equal(found[0][s.name], found[1][s.name])
        assert not torch.equal(found[0][s.name], found[2][s.name])
        assert len(found[0][s.name].unique()) > 1


@pytest.mark.parametrize("block", [1 << 18, 100])
def test_random_numbers_are_those_of_one_process(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever rows a process holds, and however many at a time: its sums are a part of the sums of
    one alone, and the next draw is that of one alone.
    """
    model, sets = measured()
    criterion = Bound(REGISTRY.get("criterion", "random"))
    params = dict(model.named_parameters())
    torch.manual_seed(3)
    drawn = {
        name: torch.empty(params[name].shape).uniform_()
        for name in dict.fromkeys(m.param for s in sets for m in s.members)
    }
    following = torch.rand(1)
    found: list[dict[str, Tensor]] = []
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    for rank in range(3):
        stats = TrainingStats(model, (), None)
        monkeypatch.setattr(stats, "held", partial(held, stats, rank))
        torch.manual_seed(3)
        found.append(score(sets, criterion, stats))
        assert torch.equal(torch.rand(1), following)
    for s in sets:
        expected = torch.zeros(s.size, dtype=torch.float64)
        for m in s.members:
            along = (
                drawn[m.param].double().movedim(m.dim, 0).reshape(drawn[m.param].shape[m.dim], -1)
            )
            expected += along.sum(1)[m.index_GB].sum(1)
        total = torch.stack([scores[s.name] for scores in found]).double().sum(0)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-12)


def held(stats: TrainingStats, rank: int, param: str) -> range:
    """The rows of one of three processes."""
    rows = stats.shape(param)[0]
    return range(rows)[shard_rows(rows, rank, 3)]


def plugin(function) -> Bound:
    return Bound(Plugin("criterion", "bad", function, ("weight",), {}, "test", "here.py:1"))


def test_a_criterion_that_changes_the_shape_is_named() -> None:
    model, sets = measured()
    with pytest.raises(PluginError, match=r"here\.py:1: criterion 'bad' returned \(\)"):
        score(sets, plugin(lambda w: w.sum()), TrainingStats(model, (), None))


def test_a_saliency_that_is_not_finite_is_named() -> None:
    model, sets = measured()
    with pytest.raises(RunError, match=r"ffn\.0: criterion 'bad'"):
        score(sets, plugin(lambda w: w / 0), TrainingStats(model, (), None))


@pytest.mark.parametrize("name", ["weight", "grad", "hess"])
def test_a_criterion_that_changes_its_inputs_is_named(name: str) -> None:
    def spoils(weight, grad, hess):
        {"weight": weight, "grad": grad, "hess": hess}[name].mul_(0)
        return weight.abs()

    needs = ("weight", "grad", "hess")
    bad = Bound(Plugin("criterion", "bad", spoils, needs, {}, "test", "here.py:1"))
    model, sets = measured()
    with pytest.raises(PluginError, match=rf"here\.py:1: criterion 'bad' changes its {name}"):
        score(sets, bad, TrainingStats(model, needs, FISHER))


def test_a_hessian_that_changes_the_gradient_is_named() -> None:
    spoils = Plugin("hessian", "bad", lambda grad: grad.zero_(), ("grad",), {}, "test", "h.py:1")
    model, sets = measured()
    criterion = Bound(REGISTRY.get("criterion", "taylor_second"))
    with pytest.raises(PluginError, match=r"h\.py:1: hessian 'bad' changes its grad"):
        score(sets, criterion, TrainingStats(model, criterion.needs, Bound(spoils)))


@pytest.mark.parametrize("function", [lambda w: 1.0, lambda w: w @ w @ w, lambda w: w.nothing])
def test_a_criterion_that_fails_or_returns_no_tensor_is_named(function) -> None:
    model, sets = measured()
    with pytest.raises(PluginError, match=r"here\.py:1: criterion 'bad' (fails|returned)"):
        score(sets, plugin(function), TrainingStats(model, (), None))


def test_memory_does_not_grow_with_a_graph() -> None:
    """Whatever a criterion reads besides what it is given."""
    model, sets = measured()
    gate = torch.ones((), requires_grad=True)
    criterion = plugin(lambda w: w.abs() * gate)
    for value in score(sets, criterion, TrainingStats(model, (), None)).values():
        assert not value.requires_grad


def reduced_by_hand(model: nn.Module, s: GroupSet, channel: str, members: str) -> Tensor:
    """Position by position, the longer matrices folded by the unit they belong to, in fp64."""
    params = dict(model.named_parameters())
    each = min(m.index_GB.shape[1] for m in s.members)
    total = torch.zeros(s.size, dtype=torch.float64)
    for g in range(s.size):
        for b in range(each):
            values = []
            for m in s.members:
                p = params[m.param]
                product = p.detach().double() * p.grad.double()
                value = torch.zeros((), dtype=torch.float64)
                for position in m.index_GB[g][b::each]:
                    one = product.select(m.dim, int(position)).sum()
                    value += one.abs() if channel == "abs" else one
                values.append(value)
            stacked = torch.stack(values)
            over = {"mean": stacked.mean(), "max": stacked.max(), "prod": stacked.prod()}
            total[g] += {**over, "sum": stacked.sum(), "last": stacked[-1]}[members]
    return total


@pytest.mark.parametrize("members", ["sum", "mean", "max", "prod", "last"])
@pytest.mark.parametrize("channel", ["sum", "abs"])
def test_reductions(channel: str, members: str) -> None:
    model, sets = measured()
    criterion = Bound(REGISTRY.get("criterion", "taylor"), {"signed": True})
    bound = Bound(REGISTRY.get("reduction", members))
    spec = ReduceSpec(channel=channel, members=bound)  # type: ignore[arg-type]
    scores = score(sets, criterion, TrainingStats(model, criterion.needs, None), spec)
    for s in sets:
        expected = reduced_by_hand(model, s, channel, members)
        torch.testing.assert_close(scores[s.name].double(), expected, rtol=2e-4, atol=1e-9)


def test_a_query_head_counts_for_its_own_group() -> None:
    """LLM-Pruner's published code puts the score of query head 1 on KV head 1 (two KV heads with
    two query heads each); here it belongs to KV head 0.
    """
    model, sets = measured()
    heads = next(s for s in sets if s.kind == "attention")
    with torch.no_grad():
        params = dict(model.named_parameters())
        for m in heads.members:
            params[m.param].zero_()
        queries = max(heads.members, key=lambda m: m.index_GB.shape[1] if m.dim == 0 else 0)
        width = min(m.index_GB.shape[1] for m in heads.members)
        params[queries.param][width : 2 * width] = 1.0  # query head 1
    criterion = Bound(REGISTRY.get("criterion", "magnitude"))
    for members in ("sum", "mean", "max"):
        spec = ReduceSpec(members=Bound(REGISTRY.get("reduction", members)))
        found = score([heads], criterion, TrainingStats(model, criterion.needs, None), spec)
        assert found[heads.name][0] > 0.0
        assert not found[heads.name][1:].any()
        # As published, on request: head h of all counts for group h mod G.
        as_published = replace(spec, compat=True)
        found = score([heads], criterion, TrainingStats(model, criterion.needs, None), as_published)
        assert (found[heads.name] > 0).tolist() == [g == 1 for g in range(heads.size)]


def test_compat_changes_nothing_without_grouped_queries() -> None:
    model, sets = measured("mha_untied")
    criterion = Bound(REGISTRY.get("criterion", "taylor"))
    stats = TrainingStats(model, criterion.needs, None)
    one, two = (score(sets, criterion, stats, ReduceSpec(compat=c)) for c in (False, True))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_saliency_does_not_tell_apart_is_named_by_kind():
    def sets(kind: str, *sizes: int) -> list[GroupSet]:
        return [GroupSet(f"{kind}.{i}", kind, i, size, ()) for i, size in enumerate(sizes)]

    inf = float("inf")
    scores = {
        **{"ffn.0": torch.tensor([2.0, inf, 2.0]), "ffn.1": torch.tensor([1.0, 1.0, 3.0])},
        **{"layer.0": torch.tensor([0.5]), "layer.1": torch.tensor([0.5])},
        **{"query.0": torch.tensor([4.0, inf]), "query.1": torch.tensor([4.0, 5.0])},
    }
    found = alike([*sets("ffn", 3, 3), *sets("layer", 1, 1), *sets("query", 2, 2)], scores)
    assert found.keys() == {"ffn", "layer"}
    assert "the 2 mini-groups of 'ffn.0' have the same saliency (2)" in found["ffn"]
    assert "the 2 mini-groups of 'layer'" in found["layer"]
    scores["layer.1"] = torch.tensor([0.6])
    assert alike(sets("layer", 1, 1), scores) == {}
