"""One step against plain PyTorch, and failures before they do harm."""

from __future__ import annotations

import copy

import pytest
import torch

from effcompress.errors import RunError
from effcompress.spec import LearningRateSpec, TrainSpec
from effcompress.train import backward, learning_rate, optimizer, update
from effcompress.types import Batch
from tests.conftest import tiny, tokens

SPEC = TrainSpec(tokens=1000, batch_size=4, weight_decay=0.1, clip=0.5)


def batch(size: int = 4) -> Batch:
    names = tuple("ab"[i % 2] for i in range(size))
    return Batch(tokens(size), names, tuple((n, i) for i, n in enumerate(names)))


def test_gradient_and_losses_equal_the_librarys_own() -> None:
    model = tiny()
    found = backward(model, batch(), SPEC)
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    reference = model(input_ids=tokens(4), labels=tokens(4)).loss
    reference.backward()
    assert found.loss == pytest.approx(float(reference.detach()), rel=1e-6)
    assert sum(found.domain_loss.values()) / 2 == pytest.approx(found.loss, rel=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_change_nothing(size: int) -> None:
    whole, parts = tiny(), tiny()
    one = backward(whole, batch(), SPEC)
    two = backward(parts, batch(), TrainSpec(tokens=1, batch_size=4, micro_batch_size=size))
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_update_equals_adamw_by_hand() -> None:
    model = tiny()
    other = copy.deepcopy(model)
    opt = optimizer(model, SPEC)
    backward(model, batch(), SPEC)
    norm = update(model, opt, SPEC, rate=1e-2)
    other(input_ids=tokens(4), labels=tokens(4)).loss.backward()
    scale = min(1.0, 0.5 / (norm + 1e-6))
    beta1, beta2 = SPEC.betas
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is None
        g = q.grad.double() * scale
        decay = 0.1 if q.dim() > 1 else 0.0
        w = q.detach().double() * (1 - 1e-2 * decay)
        m, v = (1 - beta1) * g / (1 - beta1), (1 - beta2) * g**2 / (1 - beta2)
        expected = w - 1e-2 * m / (v.sqrt() + 1e-8)
        # Adam's first step is a sign: where a gradient is nearly zero, rounding decides.
        sure = g.abs() > 1e-6
        torch.testing.assert_close(p.detach().double()[sure], expected[sure], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_names_the_domain() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(RunError, match="domains: a, b"):
        backward(model, batch(), SPEC)


def test_a_gradient_that_is_not_finite_names_the_parameter_and_changes_nothing() -> None:
    model = tiny()
    opt = optimizer(model, SPEC)
    backward(model, batch(), SPEC)
    before = [p.detach().clone() for p in model.parameters()]
    model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = torch.nan
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        update(model, opt, SPEC, rate=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_bf16_autocast_keeps_fp32_weights_and_gradients() -> None:
    model = tiny()
    spec = TrainSpec(tokens=1, batch_size=4, precision="bf16")
    exact = backward(tiny(), batch(), SPEC).loss
    found = backward(model, batch(), spec)
    assert found.loss == pytest.approx(exact, rel=0.02) and found.loss != exact
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_learning_rate_by_hand() -> None:
    trapezoid = LearningRateSpec(peak=1.0, schedule="trapezoidal", warmup=0.1, decay=0.2, floor=0.1)
    found = [learning_rate(trapezoid, t, 100) for t in (5, 10, 50, 80, 90, 100)]
    assert found == pytest.approx([0.5, 1, 1, 1, 0.55, 0.1])
    cosine = LearningRateSpec(peak=1.0, schedule="cosine", warmup=0.0, floor=0.0)
    assert [learning_rate(cosine, t, 100) for t in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    # Behind the warm-up the cosine begins at its peak; the floor is a fraction of the peak.
    late = LearningRateSpec(peak=4.0, schedule="cosine", warmup=0.2, floor=0.1)
    found = [learning_rate(late, t, 100) for t in (10, 20, 60, 100)]
    assert found == pytest.approx([2.0, 4.0, 2.2, 0.4])
    constant = LearningRateSpec(peak=2.0, schedule="constant", warmup=0.5)
    assert [learning_rate(constant, t, 100) for t in (25, 50, 100)] == pytest.approx([1, 2, 2])
