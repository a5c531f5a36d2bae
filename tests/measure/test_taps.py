"""Mask gradients against autograd through masks that are really there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.errors import CoverageError
from effcompress.measure.taps import MaskGradients
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import MIXTURES as OF_TESTS
from tests.conftest import shape, tiny, tokens
from tests.contract.zoo import config_of


def pruned(*names: str, family: str = "", **knobs: Any) -> PrunedModel:
    model = tiny("gqa_tied", torch.float64, **({"model_type": family} if family else {}))
    space = [Bound(REGISTRY.get("space", name), knobs) for name in names]
    return PrunedModel(model, model.config.to_dict(), space)


def measure(model: PrunedModel, ids: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    taps = MaskGradients(model.module, model.axes, model.sets)
    with taps.handing_to(lambda name, effect: found.__setitem__(name, effect)):
        model.module(input_ids=ids, labels=ids).loss.backward()
    model.module.zero_grad(set_to_none=True)
    taps.close()
    return found


def by_masks(model: PrunedModel, ids: Tensor, kind: str) -> Tensor:
    """d loss / d mask, per token and unit of the first set of a kind: masks as leaves of the graph
    on the input of the down or output projection.
    """
    layer = model.module.model.layers[0]
    linear = {"ffn": layer.mlp.down_proj, "attention": layer.self_attn.o_proj}[kind]
    s = next(s for s in model.sets if s.kind == kind)
    mask = torch.ones(ids.numel(), s.size, dtype=torch.float64, requires_grad=True)
    each = linear.in_features // s.size

    def apply(_m: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0] * mask.repeat_interleave(each, 1).view(args[0].shape),)

    handle = linear.register_forward_pre_hook(apply)
    loss = model.module(input_ids=ids, labels=ids).loss
    handle.remove()
    (grad,) = torch.autograd.grad(loss, mask)
    return grad


@pytest.mark.parametrize("kind", ["ffn", "attention"])
def test_channels_and_heads(kind: str) -> None:
    model, ids = pruned("ffn", "attention"), tokens(2)
    found = measure(model, ids)[f"{kind}.0"]
    want = by_masks(model, ids, kind)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-8)


def test_hidden_channel() -> None:
    """A mask on everything that is written into the residual stream: autograd on scaled writers."""
    model, ids = pruned("hidden"), tokens(2)
    found = measure(model, ids)["hidden"]
    size = model.sets[0].size
    mask = torch.ones(ids.numel(), size, dtype=torch.float64, requires_grad=True)

    def apply(_m: Any, _args: Any, out: Tensor) -> Tensor:
        return out * mask.view(out.shape)

    inner = model.module.model
    writers = [inner.embed_tokens]
    writers += [w for la in inner.layers for w in (la.mlp.down_proj, la.self_attn.o_proj)]
    handles = [w.register_forward_hook(apply) for w in writers]
    loss = model.module(input_ids=ids, labels=ids).loss
    for handle in handles:
        handle.remove()
    (want,) = torch.autograd.grad(loss, mask)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox", "opt", "gemma2"])
def test_other_families(family: str) -> None:
    """The sum over tokens is the derivative by the scale of the unit's weights on one side."""
    model, ids = pruned("ffn", "attention", family=family), tokens(2)
    found = measure(model, ids)
    model.module(input_ids=ids, labels=ids).loss.backward()
    params = dict(model.module.named_parameters())
    for s in model.sets:
        reader = [m for m in s.members if _reads(model, m.param) == m.dim]
        (m,) = reader
        p = params[m.param]
        assert p.grad is not None
        other = 1 - m.dim
        want = (p * p.grad).sum(other)[m.index_GB].sum(1)
        torch.testing.assert_close(found[s.name].sum(0).double(), want, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["gemma4_text", "codegen"])
def test_heads_that_are_read_in_several_places(family: str) -> None:
    """By more than one layer that attends to them, or in several stretches of one layer."""
    ids, config = tokens(2), AutoConfig.for_model(**config_of(family))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: Any = AutoModelForCausalLM.from_config(config).double()
    model = PrunedModel(built, config.to_dict(), [Bound(REGISTRY.get("space", "attention"), {})])
    found = measure(model, ids)
    built(input_ids=ids, labels=ids).loss.backward()
    params, readers = dict(built.named_parameters()), list[int]()
    for s in model.sets:
        there = [m for m in s.members if _reads(model, m.param) == m.dim]
        want = torch.zeros(s.size, dtype=torch.float64)
        for p, m in ((params[m.param], m) for m in there):
            assert p.grad is not None
            want += (p * p.grad).sum(0)[m.index_GB].sum(1).detach()
        torch.testing.assert_close(found[s.name].sum(0).double(), want, rtol=1e-3, atol=1e-7)
        readers.append(len(there))
    assert max(readers) > 1


MIXTURES = ("gpt_oss", "glm4_moe", "deepseek_v3", "qwen3_5_moe_text", "llama4_text")


def mixture(family: str, *spaces: str) -> PrunedModel:
    fields = shape("gqa_untied", model_type=family) if family in OF_TESTS else config_of(family)
    config = AutoConfig.for_model(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: Any = AutoModelForCausalLM.from_config(config).double()
        for p in built.parameters():
            p.data.normal_(1.0 if p.dim() == 1 else 0.0, 0.3)
    built.set_experts_implementation("eager")  # grouped kernels know no fp64
    space = [Bound(REGISTRY.get("space", name), {}) for name in spaces]
    return PrunedModel(built, config.to_dict(), space)


def inner(experts: Any, e: int, x_ND: Tensor) -> Tensor:
    """What the down projection of expert ``e`` reads, by hand."""
    w = experts.gate_up_proj[e]
    if hasattr(experts, "down_proj_bias"):  # gpt-oss: clamped, gate and up in turns
        both = x_ND @ w + experts.gate_up_proj_bias[e]
        gate, up = both[:, 0::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        return (up + 1.0) * gate * torch.sigmoid(1.702 * gate)
    gate, up = (x_ND @ (w if hasattr(experts, "expert_dim") else w.T)).chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def outer(experts: Any, e: int, inner_NF: Tensor) -> Tensor:
    w = experts.down_proj[e]
    if hasattr(experts, "down_proj_bias"):
        return inner_NF @ w + experts.down_proj_bias[e]
    return inner_NF @ (w if hasattr(experts, "expert_dim") else w.T)


def with_masks(experts: Any, of_experts_TE: Tensor, of_channels_TF: Tensor) -> Any:
    """A mixture by hand, whose masks are leaves of the graph."""
    count = len(experts.down_proj)

    def forward(x: Tensor, index_TK: Any = None, weight_TK: Any = None) -> Tensor:
        if index_TK is None:  # Llama 4: weighed inputs of all experts
            parts = [
                outer(experts, e, inner(experts, e, x_TD) * of_channels_TF) * of_experts_TE[:, [e]]
                for e, x_TD in enumerate(x.unflatten(0, (count, -1)))
            ]
            return torch.cat(parts)
        total = torch.zeros_like(x)
        for e in range(count):
            token, slot = (index_TK == e).nonzero(as_tuple=True)
            made = outer(experts, e, inner(experts, e, x[token]) * of_channels_TF[token])
            weight = weight_TK[token, slot, None] * of_experts_TE[token, e, None]
            total = total.index_add(0, token, made * weight)
        return total

    return forward


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_and_their_channels(family: str) -> None:
    """In fp64, by autograd through masks on every expert and channel of a mixture by hand."""
    model, ids = mixture(family, "expert", "ffn"), tokens(2)
    found = measure(model, ids)
    layer = max(s.layer for s in model.sets if s.kind == "expert" and s.layer is not None)
    path = model.family.experts.replace("{i}", str(layer))
    experts: Any = model.module.get_submodule(path)
    widths = model.axes.widths
    sizes = [widths[f"{kind}.{layer}"] for kind in ("expert", "expert_ffn")]
    of_experts, of_channels = (
        torch.ones(ids.numel(), size, dtype=torch.float64, requires_grad=True) for size in sizes
    )
    experts.forward = with_masks(experts, of_experts, of_channels)
    loss = model.module(input_ids=ids, labels=ids).loss
    del experts.forward
    want_TE, want_TF = torch.autograd.grad(loss, (of_experts, of_channels))
    assert (want_TE == 0).any(), "every expert reads every token"
    torch.testing.assert_close(found[f"expert.{layer}"].double(), want_TE, rtol=1e-4, atol=1e-8)
    found_TF = found[f"expert_ffn.{layer}"].double()
    torch.testing.assert_close(found_TF, want_TF, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text"])
def test_channels_of_the_stream_that_experts_write(family: str) -> None:
    """The sum over tokens is the derivative by a scale of the channel in all that is written."""
    model, ids = mixture(family, "hidden"), tokens(2)
    found = measure(model, ids)["hidden"].sum(0).double()
    params = dict(model.module.named_parameters())
    model.module(input_ids=ids, labels=ids).loss.backward()
    want = torch.zeros_like(found)
    for name, p in params.items():
        writes = name.endswith(("o_proj.weight", "o_proj.bias", "down_proj.weight"))
        dim = 2 if name.endswith("experts.down_proj") else 0
        dim = 1 if name.endswith(("embed_tokens.weight", "down_proj_bias")) else dim
        if (writes or dim) and p.grad is not None:
            other = [d for d in range(p.dim()) if d != dim]
            want += ((p * p.grad).sum(other) if other else p * p.grad).detach()
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-7)


def _reads(model: PrunedModel, param: str) -> int | None:
    module = model.module.get_submodule(param.rpartition(".")[0])
    name = type(module).__name__
    if param.endswith(".bias") or name not in ("Linear", "Conv1D"):
        return None
    return 1 if name == "Linear" else 0


def test_micro_batches_arrive_one_by_one() -> None:
    model, ids = pruned("hidden"), tokens(4)
    seen: list[Tensor] = []
    taps = MaskGradients(model.module, model.axes, model.sets)
    with taps.handing_to(lambda _name, effect: seen.append(effect)):
        for half in ids.split(2):
            model.module(input_ids=half, labels=half).loss.backward()
    assert len(seen) == 2
    model.module(input_ids=ids, labels=ids).loss.backward()
    assert len(seen) == 2  # nobody listens


@pytest.mark.parametrize("space", ["layer", "mlp_block"])
def test_modules_have_no_mask_here(space: str) -> None:
    model = pruned(space)
    with pytest.raises(CoverageError, match="no one tensor"):
        MaskGradients(model.module, model.axes, model.sets)
