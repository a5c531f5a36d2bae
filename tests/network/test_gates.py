"""Learned gates: masking equals cutting, in every family; and the published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from effcompress.network.gates import LearnedGates
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import GatesSpec, PruneSpec, TargetSpec
from effcompress.types import DEPTH, Plan
from tests.conftest import FAMILIES, PLAIN, tiny, unrounded

KINDS = ("hidden", "layer", "attention", "ffn", "attention_block", "mlp_block", "query")


def bound(kind: str, name: str, **given: Any) -> Bound:
    plugin = REGISTRY.get(kind, name)
    return Bound(plugin, {k.name: given.get(k.name, k.default) for k in plugin.knobs.values()})


def space(kind: str) -> Bound:
    if kind == "query":
        return bound("space", "attention", unit="q_per_group")
    return bound("space", kind)


def spec(kinds: tuple[str, ...], target: TargetSpec, **more: Any) -> PruneSpec:
    gates = GatesSpec(
        gate=bound("gate", "hard_concrete"), constraint=bound("constraint", "lagrangian"), **more
    )
    return PruneSpec(
        target=target,
        space=tuple(space(kind) for kind in kinds),
        criterion=bound("criterion", "learned_gates"),
        schedule=bound("schedule", "at_end"),
        gates=gates,
    )


def in_fp64(module: nn.Module) -> None:
    """Root-mean-square norms of transformers compute in fp32 whatever they are given; here in
    fp64.
    """

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        gain = norm.weight + (1 if "Gemma" in type(norm).__name__ else 0)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain

    for child in module.modules():
        if "RMSNorm" in type(child).__name__:
            stock = type(child)
            child.__class__ = type(f"Wide{stock.__name__}", (stock,), {"forward": forward})


def gated(
    name: str, kinds: tuple[str, ...], seed: int = 0, **more: Any
) -> tuple[PrunedModel, LearnedGates]:
    """A tiny model in fp64 under gates that are all over the place, none of them trivial."""
    module = tiny(name, torch.float64, **more)
    module.eval()
    in_fp64(module)
    module.config._experts_implementation = "eager"  # kernels of mixtures take no fp64
    prune = spec(kinds, TargetSpec(keep=0.5))
    pruned = PrunedModel(module, module.config.to_dict(), prune.space)
    gates = LearnedGates(pruned, prune, round(pruned.params * 0.5), seed, torch.device("cpu"))
    with torch.no_grad():
        gates.logit_N.copy_(2 * torch.randn(gates.logit_N.shape))
    return pruned, gates


def plan_of(pruned: PrunedModel, gates: LearnedGates) -> Plan:
    """The lowest third of every row goes, and at most one of all layers and blocks."""
    plan: Plan = {}
    depth = [r for r in gates.rows if r.kind in DEPTH]
    for row in gates.rows:
        values = gates.logit_N[row.start : row.stop].detach()
        order = values.argsort().tolist()
        if row.kind in DEPTH:
            plan[row.names[order[0] if row is depth[0] else order[-1]]] = [0]
        else:
            plan[row.names[0]] = sorted(order[: max(1, len(order) // 3)])
    if len(depth) > 1:  # no layer without both blocks, and always one left
        for row in depth[1:]:
            for name in row.names:
                plan.pop(name, None)
    return plan


def kinds_of(model_type: str) -> list[tuple[str, ...]]:
    there = [k for k in KINDS if not (k == "query" and model_type in PLAIN)]
    return [*((kind,) for kind in there), tuple(there)]


@pytest.mark.parametrize("model_type", [*FAMILIES, "granite", "hyperclovax"])
@pytest.mark.parametrize("tied", ["gqa_tied", "gqa_untied"])
def test_masked_equals_cut(model_type: str, tied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unrounded(monkeypatch)
    torch.manual_seed(1)
    ids_BT = torch.randint(0, 61, (2, 9))
    for kinds in kinds_of(model_type):
        pruned, gates = gated(tied, kinds, model_type=model_type)
        plan = plan_of(pruned, gates)
        values = gates.values(plan)
        with torch.no_grad():
            plain = pruned.module(ids_BT).logits
            with gates.forward.using(values):
                masked = pruned.module(ids_BT).logits
            torch.testing.assert_close(pruned.module(ids_BT).logits, plain, rtol=0, atol=0)
            assert (masked - plain).abs().max() > 1e-3, kinds
            gates.forward.absorb(values)
            gates.forward.close()
            pruned.mask(plan)
            assert (pruned.module(ids_BT).logits - masked).abs().max() < 1e-9, kinds
            pruned.commit()
            assert (pruned.module(ids_BT).logits - masked).abs().max() < 1e-9, kinds


def gate(name: str = "hard_concrete", **given: Any) -> Bound:
    return bound("gate", name, **given)


def fp64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_probability_of_being_open() -> None:
    """Published numbers; and temperature 0.83, which the paper states."""
    logit = fp64(4.60517, 2, 1, 0, -1, -2, -4.60517)
    _, open_N = gate()(logit=logit, uniform=None)
    wanted = fp64(0.9979823, 0.9733667, 0.9307712, 0.8318222, 0.6453352, 0.4009753, 0.0471298)
    torch.testing.assert_close(open_N, wanted, rtol=0, atol=5e-8)
    _, (other,) = gate(temperature=0.83)(logit=fp64(0), uniform=None)
    assert float(other) == pytest.approx(0.8797699, abs=5e-8)


def test_drawn_values_and_how_often_they_are_0_or_1() -> None:
    uniform, logit = fp64(0.5, 0.5, 0.25, 0.2, 0.168, 0.9), fp64(0, 1, 0, 1, 0, 0)
    value_N, _ = gate()(logit=logit, uniform=uniform)
    wanted = fp64(0.5, 0.8810894, 0.0936686, 0.3308733, 0, 1)
    torch.testing.assert_close(value_N, wanted, rtol=0, atol=5e-8)
    many = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    for logit, shut, whole in ((0.0, 0.1681778, 0.1681778), (4.60517, 0.0020177, 0.9528702)):
        value_N, _ = gate()(logit=torch.full_like(many, logit), uniform=many)
        assert float((value_N == 0).double().mean()) == pytest.approx(shut, abs=2e-6)
        assert float((value_N == 1).double().mean()) == pytest.approx(whole, abs=2e-6)


def test_gates_without_noise() -> None:
    """Of a row of four, the one expected to be shut is 0; for a shape, exactly as many as go."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    _, gates = gated("gqa_tied", ("attention",), **heads)
    row = gates.rows[0]
    with torch.no_grad():
        gates.logit_N[row.start : row.stop] = torch.tensor([2.0, 1.0, 0.0, -1.0])
    name = row.names[0]
    by_rule = gates.values(None)[name]
    torch.testing.assert_close(by_rule, torch.tensor([0.9168273, 0.7685248, 0.5, 0.0]))
    by_plan = gates.values({name: [2, 3]})[name]
    torch.testing.assert_close(by_plan, torch.tensor([0.9168273, 0.7685248, 0.0, 0.0]))
    # The pass inside sees the same gates.
    with gates.deterministic():
        seen = gates.forward._values[name]
    torch.testing.assert_close(seen, by_rule)


def test_the_penalty_is_a_mean_of_penalties() -> None:
    _, open_N = gate()(logit=fp64(2, -1, 0, 0), uniform=None)
    expected = 1 - open_N.view(2, 2).mean(1)
    torch.testing.assert_close(expected, fp64(0.1906491, 0.1681778), rtol=0, atol=5e-8)
    asked = {"expected": expected, "target": torch.full_like(expected, 0.25)}
    constraint = bound("constraint", "lagrangian")
    penalty = constraint(**asked, linear=fp64(-0.5)[0], quadratic=fp64(2)[0])
    assert float(penalty) == pytest.approx(0.0455107, abs=5e-8)


def test_the_first_step_of_the_multipliers() -> None:
    """Adam's first step is the rate times the sign of the gradient: below the target the linear one
    falls, the quadratic one rises.
    """
    prune = spec(("ffn",), TargetSpec(shape={"ffn": 20}))
    module = tiny("gqa_tied")
    pruned = PrunedModel(module, module.config.to_dict(), prune.space, target=prune.target)
    gates = LearnedGates(pruned, prune, 0, 0, torch.device("cpu"))
    with torch.no_grad():
        gates.logit_N.fill_(4.60517)
    found = gates.learn(progress=1.0, factor=1.0)
    assert found["ffn"].expected == pytest.approx(0.0020177, abs=1e-6)
    first, second = gates.multipliers_F2[0].tolist()
    assert first == pytest.approx(-1.0, abs=1e-4) and second == pytest.approx(1.0, abs=1e-4)
    assert (found["ffn"].linear, found["ffn"].quadratic) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("fraction", "at_floor"), [(0.25, 0.2608), (0.375, 0.3923), (0.5, 0.5237), (0.75, 0.7866)]
)
def test_shares_at_the_floor_when_all_are_clamped(fraction: float, at_floor: float) -> None:
    _, (high, low) = gate()(logit=fp64(4.60517, -4.60517), uniform=None)
    share = (fraction - (1 - float(high))) / (float(high) - float(low))
    assert share == pytest.approx(at_floor, abs=5e-5)


@pytest.mark.parametrize(("fraction", "fits"), [(0.9528, True), (0.953, False), (0.001, False)])
def test_what_gates_cannot_expect_is_said(fraction: float, fits: bool) -> None:
    said = gate().companion(fractions={"ffn": fraction}, limit=4.60517)
    assert (said is None) == fits
    if said:
        assert "'ffn'" in said[0] and "95.29%" in said[0]


def test_expected_sizes_of_coarse_and_fine_gates() -> None:
    """Two layers of 4 channels, 2 heads of 2, 3 FFN channels: all logits 0."""
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2}
    sizes |= {"intermediate_size": 3, "num_hidden_layers": 2}
    fine = ("attention", "attention_block", "ffn", "mlp_block")
    wanted = {fine: 1 - 0.69192813, fine[::2]: 1 - 0.8318222}
    for kinds, removed in wanted.items():  # a coarse gate that is not there is open
        _, gates = gated("mha_untied", kinds, **sizes)
        _, open_N = gate()(logit=torch.zeros_like(gates.logit_N), uniform=None)
        assert gates.size is not None and gates.size.all == 2 * 100
        found = float(gates.size.removed(gates._by_set(open_N)))
        assert found == pytest.approx(removed, abs=5e-7)
    # With hidden channels the embedding counts, too: per layer the published cube, and P for it.
    _, gates = gated("mha_untied", (*fine, "hidden"), **sizes)
    _, open_N = gate()(logit=torch.zeros_like(gates.logit_N), uniform=None)
    assert gates.size is not None and gates.size.all == 2 * 100 + 2 * 61 * 4
    p = 0.8318222
    found = float(gates.size.removed(gates._by_set(open_N)))
    assert found == pytest.approx(1 - (200 * p**3 + 488 * p) / 688, abs=5e-7)


def test_ffn_gates_that_begin_half_shut() -> None:
    """As the original CoFi: a run starts 16.8 % sparse in its FFN channels."""
    kinds = ("attention", "attention_block", "ffn", "mlp_block")
    prune = spec(kinds, TargetSpec(keep=0.5), start=10.0, starts={"ffn": 0.0}, limit=10, spread=0)
    module = tiny("mha_untied")
    pruned = PrunedModel(module, module.config.to_dict(), prune.space)
    gates = LearnedGates(pruned, prune, pruned.params // 2, 0, torch.device("cpu"))
    _, open_N = gates._gate(None)
    by_set = gates._by_set(open_N)
    left = float((by_set["ffn.0"].mean() * by_set["mlp_block.0"][0]).detach())
    assert 1 - left == pytest.approx(0.1681854, abs=5e-7)


@pytest.mark.parametrize("seed", range(5))
def test_a_common_offset_shuts_as_many_as_rounding(seed: int) -> None:
    """Every order of magnitude of logits; monotone: a lower offset shuts no fewer."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (seed - 2)
    rows = [scale * torch.randn(n, generator=generator, dtype=torch.float64) for n in (1, 5, 40)]
    scores = [bound("criterion", "common_offset")(logit=row) for row in rows]
    before = [-1, -1, -1]
    for offset in torch.linspace(-8, 8, 33, dtype=torch.float64).flip(0).tolist():
        for r, (row, score) in enumerate(zip(rows, scores, strict=True)):
            exact = float(len(row) - (row + offset + 1.598597).sigmoid().sum())
            shut = int((score < -offset).sum())
            if abs(exact % 1 - 0.5) > 1e-4:
                assert shut == round(exact)
            assert shut >= before[r]
            before[r] = shut
            if shut:  # the lowest ones
                assert set((score < -offset).nonzero().flatten().tolist()) == set(
                    row.argsort(stable=True)[:shut].tolist()
                )


def test_draws_are_a_function_of_their_place() -> None:
    """The same for the same step and micro-batch; another for any other; gradients add up."""
    pruned, gates = gated("gqa_tied", ("ffn", "hidden"))
    ids_BT = torch.randint(0, 61, (1, 6))

    def logits(*place: int) -> torch.Tensor:
        with gates.drawn(*place):
            return pruned.module(ids_BT).logits.detach()

    first = logits(3, 0)
    torch.testing.assert_close(logits(3, 0), first, rtol=0, atol=0)
    for other in ((4, 0), (3, 1)):
        assert not torch.equal(logits(*other), first)
    gates.forget()
    for _ in range(2):
        with gates.drawn(3, 0):
            pruned.module(ids_BT).logits.square().mean().backward()
        if gates.logit_N.grad is not None and _ == 0:
            once = gates.logit_N.grad.clone()
    torch.testing.assert_close(gates.logit_N.grad, 2 * once)
    assert float(once.abs().sum()) > 0


def test_gradients_of_gates_are_those_of_finite_differences() -> None:
    """Of the loss, through masks that act on norms, reads, writes and layers at once."""
    pruned, gates = gated("gqa_tied", ("hidden", "layer", "attention", "ffn"))
    gates.logit_N = gates.logit_N.detach().double().requires_grad_()
    ids_BT = torch.randint(0, 61, (1, 6))

    def loss() -> torch.Tensor:
        return pruned.module(ids_BT).logits.square().mean()

    gates.forget()
    with gates.drawn(0, 0):
        loss().backward()
    assert gates.logit_N.grad is not None
    analytic = gates.logit_N.grad.clone()
    ranked = analytic.abs().argsort(descending=True)[:: max(1, len(analytic) // 12)]
    for k in ranked.tolist():
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                gates.logit_N[k] += sign * 1e-4
                with gates.drawn(0, 0):
                    sides.append(float(loss()))
                gates.logit_N[k] -= sign * 1e-4
        numeric = (sides[0] - sides[1]) / 2e-4
        assert float(analytic[k]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_a_norm_over_open_channels() -> None:
    """x = (3, 4, 12), gates (1, .5, 0), gains (1, 2, 1): published numbers."""
    _, gates = gated(
        "gqa_tied",
        ("hidden",),
        hidden_size=3,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
    )
    norm = gates.forward._norms[0]
    with torch.no_grad():
        norm.module.weight.copy_(fp64(1, 2, 1))
    norm.epsilon = 0.0
    with gates.forward.using({"hidden": fp64(1, 0.5, 0)}):
        out = norm.module(fp64(3, 4, 12).view(1, 3))
    torch.testing.assert_close(out, fp64(0.8485281, 1.1313708, 0).view(1, 3), rtol=0, atol=5e-8)


def test_logits_stay_within_their_limits() -> None:
    """They are held there after every step, and may come back."""
    _, gates = gated("gqa_tied", ("ffn",))
    with torch.no_grad():
        gates.logit_N.fill_(4.6)
    for sign in (-1.0, 1.0):
        gates.logit_N.grad = sign * torch.ones_like(gates.logit_N)
        gates.learn(progress=0.0, factor=1.0)
        assert float(gates.logit_N.detach().abs().max()) <= 4.60517 + 1e-6
    assert float(gates.logit_N.detach().max()) < 4.6


@pytest.mark.parametrize("tied", ["gqa_tied", "gqa_untied"])
def test_absorption_as_in_the_authors_code(tied: str) -> None:
    """Embedding and head columns are multiplied once more, and nothing else differs."""
    made: dict[bool, dict[str, torch.Tensor]] = {}
    for compat in (False, True):
        torch.manual_seed(0)
        pruned, gates = gated(tied, ("hidden", "ffn"))
        values = gates.values(plan_of(pruned, gates))
        gates.forward.absorb(values, also_ends=compat)
        made[compat] = {n: p.detach().clone() for n, p in pruned.module.named_parameters()}
    ends = {"model.embed_tokens.weight"} | ({"lm_head.weight"} if tied == "gqa_untied" else set())
    assert ends <= made[True].keys()
    for name, exact in made[False].items():
        wanted = exact * values["hidden"] if name in ends else exact
        torch.testing.assert_close(made[True][name], wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "of_heads"), [("attention", (0.5, 0.5, 0.25, 0.25)), ("query", (0.5, 0.25, 0.5, 0.25))]
)
def test_query_heads_take_the_gate_of_their_group_or_slot(
    kind: str, of_heads: tuple[float, ...]
) -> None:
    """4 query heads of 8 on 2 KV heads: heads 0 and 1 share the first one."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    pruned, gates = gated("gqa_tied", (kind,), **heads)
    layer: Any = pruned.module.get_submodule("model.layers.0.self_attn.o_proj")
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    values = {name: torch.tensor([0.5, 0.25]) for name in gates.names}
    with torch.no_grad():
        for inside in ({}, values):
            with gates.forward.using(inside):
                pruned.module(torch.arange(6).view(1, 6))
    scale_I = torch.tensor(of_heads, dtype=torch.float64).repeat_interleave(8)
    torch.testing.assert_close(seen[1], seen[0] * scale_I, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "variant",
    [
        {"model_type": "opt", "do_layer_norm_before": False},  # the stream itself is normalised
        {"model_type": "opt", "word_embed_proj_dim": 32},  # projections into it and out of it
        {"model_type": "gpt_neox", "use_parallel_residual": False},
    ],
    ids=str,
)
def test_variants_of_a_class(variant: dict[str, Any]) -> None:
    ids_BT = torch.arange(18).view(2, 9)
    pruned, gates = gated("gqa_tied", ("hidden", "attention", "ffn"), **variant)
    plan = plan_of(pruned, gates)
    values = gates.values(plan)
    with torch.no_grad():
        with gates.forward.using(values):
            masked = pruned.module(ids_BT).logits
        gates.forward.absorb(values)
        gates.forward.close()
        pruned.mask(plan)
        assert (pruned.module(ids_BT).logits - masked).abs().max() < 1e-9
