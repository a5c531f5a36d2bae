"""Calibration statistics against one backward per sequence, added up in fp64."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from effcompress.errors import RunError
from effcompress.measure.stats import TrainingStats, collect
from effcompress.registry import REGISTRY, Bound
from tests.conftest import tiny, tokens

FISHER = Bound(REGISTRY.get("hessian", "fisher_diag"))


def test_mean_gradient_and_fisher() -> None:
    model, reference = tiny(), tiny(dtype=torch.float64)
    ids = tokens(3)
    told: list[tuple[int, int]] = []
    needs = ("weight", "grad", "hess")
    stats = collect(model, ids, needs, FISHER, tell=lambda *counts: told.append(counts))
    assert told == [(0, 3), (1, 3), (2, 3)]
    grads: dict[str, list[torch.Tensor]] = {}
    for row in ids:
        reference.zero_grad()
        reference(input_ids=row[None], labels=row[None]).loss.backward()
        for name, p in reference.named_parameters():
            grads.setdefault(name, []).append(p.grad.clone())
    for name, values in grads.items():
        found = stats.rows(name, 0, stats.shape(name)[0])
        mean = torch.stack(values).mean(0)
        fisher = torch.stack(values).square().mean(0)
        torch.testing.assert_close(found["grad"].double(), mean, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found["hess"].double(), fisher, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_nothing_is_measured_that_nobody_needs() -> None:
    model = tiny()
    model.forward = None  # a pass would fail
    found = collect(model, tokens(), ("weight",), None).rows("model.norm.weight", 0, 4)
    assert set(found) == {"weight"} and found["weight"].shape == (4,)


def test_a_pass_for_hooks_alone_leaves_the_output_matrix_out() -> None:
    """Next to it: the last token of every sequence is multiplied, whatever the class."""
    model, shapes, layers = tiny(), list[tuple[int, ...]](), list[tuple[int, ...]]()
    model.lm_head.register_forward_hook(lambda _m, _args, out: shapes.append(tuple(out.shape)))
    model.model.layers[-1].register_forward_hook(
        lambda _m, args, _out: layers.append(tuple(args[0].shape))
    )
    ids = tokens(3)
    collect(model, ids, ("weight",), None, listening=[nullcontext()])
    length, vocabulary = ids.shape[1], model.config.vocab_size
    assert shapes == [(1, 1, vocabulary)] * 3
    assert layers == [(1, length, model.config.hidden_size)] * 3
    model.forward = lambda input_ids, use_cache: SimpleNamespace(logits=shapes.append(()))
    collect(model, ids, ("weight",), None, listening=[nullcontext()])
    assert shapes[3:] == [()] * 3, "a class without the argument runs, too"


def test_training_stats_read_the_gradients_that_are_there() -> None:
    model = tiny()
    stats = TrainingStats(model, ("weight", "grad", "hess"), FISHER)
    with pytest.raises(RunError, match=r"model\.norm\.weight: no gradient"):
        stats.rows("model.norm.weight", 0, 4)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    rows = stats.rows("model.layers.0.mlp.up_proj.weight", 3, 5)
    assert torch.equal(rows["hess"], rows["grad"].square()) and rows["grad"].shape == (2, 48)


def test_the_optimizers_hessian_is_the_mean_of_what_it_saw() -> None:
    """Squared gradients weighted by ``beta2`` to the power of their age; the weights sum to one, so
    that after few steps the mean is not too small.
    """
    model = tiny()
    beta2, name = 0.95, "model.layers.1.mlp.up_proj.weight"
    p = model.get_parameter(name)
    optimizer = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, beta2))
    adam = Bound(REGISTRY.get("hessian", "adam"))
    stats = TrainingStats(model, ("weight", "hess"), adam, optimizer)
    with pytest.raises(RunError, match="no step yet"):
        stats.rows(name, 0, 4)
    squares: list[torch.Tensor] = []
    for seed in range(3):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        squares.append(p.grad.double().square())
        optimizer.step()
        age = [beta2**k for k in range(len(squares))]
        mean = sum(w * g for w, g in zip(age, reversed(squares), strict=True)) / sum(age)
        found = stats.rows(name, 3, 9)["hess"]
        torch.testing.assert_close(found.double(), mean[3:9], rtol=1e-5, atol=1e-9)
