"""A sliced model is the source model with projections in its residual stream, in fp64."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effcompress.distributed.world import ALONE
from effcompress.export.forms import form
from effcompress.measure.moments import Parts
from effcompress.model.exact import new_exact
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.rotated import Method, rotate_stream
from effcompress.network.sliced import sliced_shape
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import MeasureSpec, PruneSpec, RotateSpec, TargetSpec
from tests.conftest import shape, tiny, tokens, with_exact_norms
from tests.contract.test_mask_equals_removal import (
    _no_rounding,  # noqa: F401  a fixture
    logits,
    works,
)

ROTATING = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "phi3")
ROTATING += ("gpt_neox", "opt", "gpt2")
"""Families that a rotation leaves as they are."""


def prune_spec(width: int, *, tie: Any = "keep", **knobs: Any) -> PruneSpec:
    """A recipe's ``prune`` that slices to ``width``."""
    rotation = REGISTRY.get("rotation", "slicegpt")
    defaults = {name: knob.default for name, knob in rotation.knobs.items()}
    return PruneSpec(
        target=TargetSpec(shape={"hidden": width}),
        space=(Bound(REGISTRY.get("space", "hidden"), {}),),
        rotate=RotateSpec(method=Bound(rotation, {**defaults, **knobs}), tie=tie),
        measure=MeasureSpec(source="calibration"),
        schedule=Bound(REGISTRY.get("schedule", "once"), {"at": 0}),
    )


def sliced(
    model: nn.Module,
    config: dict[str, Any],
    ids: Tensor,
    width: int,
    fit: Any = None,
    reads: dict[str, Any] | None = None,
    **how: Any,
) -> tuple[PrunedModel, list[Tensor], float]:
    """Slices ``model``; also returns the rotations in their order, and the self-test's result.
    ``reads``: sequences, as of ``Method``.
    """
    pruned, prune = PrunedModel(model, config), prune_spec(width, **how)
    assert prune.rotate is not None
    method, draw, chosen = prune.rotate.method, torch.Generator().manual_seed(0), list[Tensor]()

    def choose(moment_DD: Tensor, kept: int) -> Tensor:
        uniform = torch.rand(len(moment_DD), len(moment_DD), generator=draw, dtype=torch.float64)
        chosen.append(method(moment=moment_DD, uniform=uniform, kept=kept))
        return chosen[-1]

    made = sliced_shape(prune, pruned.config, pruned.axes)
    rest: Any = {"world": ALONE, "tell": lambda *_: None}
    done = rotate_stream(
        pruned, made, (ids, None), Method(choose, fit=fit, **(reads or {})), **rest
    )
    assert pruned.params == made.axes.count()
    return pruned, chosen, done.max_logit_difference


def projected(model: nn.Module, family: Any, config: Any, bases: list[Tensor], ids: Tensor) -> Any:
    """Logits of the source model with projections where the sliced one is narrower, by hooks."""
    layers: Any = model.get_submodule(family.layers)
    parallel, norm = family.residual(config).parallel, family.sublayers["mlp_block"].through[0]
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def centred(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if family.centred else x

    def before(basis: Tensor) -> Any:
        return lambda _m, args: (centred(args[0]) @ basis @ basis.T, *args[1:])

    def between(i: int, basis: Tensor) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            new = centred(args[0]) @ basis @ basis.T
            seen[i] = (args[0], new.view_as(args[0]))
            return (new,)

        return hook

    def behind(i: int) -> Any:
        # What the layer added its feed-forward to is the stream before the projection.
        def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
            old, new = seen[i]
            return centred(out - old.view_as(out) + new.view_as(out))

        return hook

    with ExitStack() as hooks:
        for i, layer in enumerate(layers):
            first = bases[i if parallel else 2 * i]
            hooks.enter_context(layer.register_forward_pre_hook(before(first)))
            if not parallel:
                inside = layer.get_submodule(norm)
                hooks.enter_context(inside.register_forward_pre_hook(between(i, bases[2 * i + 1])))
                hooks.enter_context(layer.register_forward_hook(behind(i)))
        return logits(model, ids)


def case(model_type: str, tied: bool) -> tuple[nn.Module, dict[str, Any]]:
    name = "gqa_tied" if tied else "mha_untied"
    model = tiny(name, torch.float64, model_type=model_type)
    with torch.no_grad():  # gains and biases that are not 1 and 0
        for n, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))))
    with_exact_norms(model)
    return model, shape(name, model_type=model_type)


TIES = [
    (name, tie)
    for name in ROTATING
    for tie in ("keep", "split")
    if (name, tie) != ("gpt2", "split")
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("model_type", "tie"), TIES)
def test_without_a_slice_the_function_stays(model_type: str, tied: bool, tie: str) -> None:
    model, config = case(model_type, tied)
    before = logits(model, tokens())
    pruned, _, moved = sliced(model, config, tokens(), 48, tie=tie)
    assert float((logits(model, tokens()) - before).abs().max()) < 1e-9
    assert moved < 1e-9
    works(pruned.module, tokens())


@pytest.mark.parametrize(("model_type", "tie"), TIES)
def test_a_slice_is_a_projection(model_type: str, tie: str) -> None:
    model, config = case(model_type, tied=True)
    ids = tokens()
    text = torch.randint(0, 61, (8, 12), generator=torch.Generator().manual_seed(3))
    pruned, chosen, moved = sliced(model, config, text, 32, tie=tie)
    source, config = case(model_type, tied=True)
    family = PrunedModel(source, config).family
    expected = projected(source, family, config, [q[:, :32] for q in chosen], ids)
    found = logits(model, ids)
    assert float((found - logits(source, ids)).abs().max()) > 1e-3
    assert float((found - expected).abs().max()) < 1e-9
    assert moved < 1e-9
    held = pruned.parameters()
    last = [name for name in held if name.endswith("shortcut.weight")][-1]
    assert held[last].shape == (48, 32)
    works(model, ids)
    made = form(pruned, "exact")
    stored: Any = made.skeleton
    again = new_exact(stored.config.to_dict()).double().eval()
    again.load_state_dict(made.params, strict=False)
    with_exact_norms(again)
    assert {name for name, _ in again.named_parameters()} == {*made.params}
    assert float((logits(again, ids) - found).abs().max()) < 1e-9


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox", "gpt2"])
def test_a_refit_is_the_least_squares_solution(model_type: str) -> None:
    """Of the first addition: A x + T m, with the stream x and what is written, m, against an
    independent solution from the model's own tensors; and no refit moves a model without a slice.
    """
    text = torch.randint(0, 61, (16, 12), generator=torch.Generator().manual_seed(3))
    seen: list[tuple[Tensor, ...]] = []

    def exact(weight_OI: Tensor, parts: Parts) -> Tensor:
        gram_II, cross_OI = parts.all.gram, parts.all.cross
        fitted = torch.linalg.lstsq(gram_II, cross_OI.T, driver="gelsd").solution.T
        seen.append((weight_OI, gram_II, cross_OI, fitted))
        return fitted

    model, config = case(model_type, tied=True)
    before = logits(model, text)
    sliced(model, config, text, 48, fit=exact)
    assert float((logits(model, text) - before).abs().max()) < 1e-6

    plain, config = case(model_type, tied=True)
    loss = []
    for fit in (None, exact):
        model, config = case(model_type, tied=True)
        _, _, moved = sliced(model, config, text, 40, fit=fit)
        assert moved < 1e-9
        loss.append(float((logits(model, text) - logits(plain, text)).square().mean()))
    assert loss[1] < 0.9 * loss[0]
    # The normal equations hold: what is left is orthogonal to what was read.
    for _, gram_II, cross_OI, fitted in seen:
        assert float((fitted @ gram_II - cross_OI).abs().max()) < 1e-6 * float(cross_OI.abs().max())


def test_bases_and_fits_read_their_own_sequences() -> None:
    """Of eight sequences, bases two and fits six, of which two are held out."""
    text = torch.randint(0, 61, (8, 12), generator=torch.Generator().manual_seed(3))

    def led(ids: Tensor, **reads: Any) -> tuple[list[Tensor], list[Parts]]:
        seen: list[Parts] = []

        def keep(weight_OI: Tensor, parts: Parts) -> Tensor:
            seen.append(parts)
            return weight_OI

        model, config = case("llama", tied=True)
        return sliced(model, config, ids, 32, fit=keep, reads=reads)[1], seen

    held = {"held_out": {4, 5}, "measured": 2}
    bases, parts = led(text, fitted=6, **held)
    without, same = led(text[:6], **held)
    assert len(parts) == 6
    for one, other in zip(bases, without, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(parts, same, strict=True):
        assert one.seen is not None and one.held is not None
        torch.testing.assert_close(one.all.gram, other.all.gram)
        torch.testing.assert_close(one.all.cross, 2 / 3 * one.seen.cross + 1 / 3 * one.held.cross)
    first = led(text[:4], measured=2)[1][0]
    assert first.seen is None and parts[0].seen is not None
    # Inputs are scaled to a mean square of 1 over all of a run's own sequences.
    own_I = parts[0].seen.gram.diagonal().sqrt()
    torch.testing.assert_close(first.all.gram, parts[0].seen.gram / own_I / own_I[:, None])
    others = led(text, **{**held, "measured": None})[0]
    assert float((others[0] - bases[0]).abs().max()) > 1e-6
