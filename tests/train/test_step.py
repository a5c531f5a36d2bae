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


def rates(spec: LearningRateSpec, *ends: int) -> list[float]:
    """The learning rates of steps of five of 100 tokens."""
    return [learning_rate(spec, end, 100, 5) for end in ends]


def test_learning_rate_by_hand() -> None:
    """Warm-up is read at the end of a step, decay at its beginning."""
    trapezoid = LearningRateSpec(peak=1.0, schedule="trapezoidal", warmup=0.1, decay=0.2, floor=0.1)
    found = rates(trapezoid, 5, 10, 15, 50, 85, 95, 105)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 0.55, 0.1])
    cosine = LearningRateSpec(peak=1.0, schedule="cosine", warmup=0.0, floor=0.0)
    assert rates(cosine, 5, 55, 105) == pytest.approx([1, 0.5, 0])
    # Behind the warm-up the cosine begins at its peak; the floor is a fraction of the peak.
    late = LearningRateSpec(peak=4.0, schedule="cosine", warmup=0.2, floor=0.1)
    assert rates(late, 10, 20, 25, 65, 105) == pytest.approx([2.0, 4.0, 4.0, 2.2, 0.4])
    constant = LearningRateSpec(peak=2.0, schedule="constant", warmup=0.5)
    assert rates(constant, 25, 50, 100) == pytest.approx([1, 2, 2])


@pytest.mark.parametrize("schedule", ["trapezoidal", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("tokens", [700, 697])
def test_no_step_has_a_rate_of_zero(schedule: str, steps: int, tokens: int) -> None:
    """Neither the first step of the warm-up nor the last one of the decay; nor a last step that
    goes beyond the tokens.
    """
    spec = LearningRateSpec(peak=1.0, schedule=schedule, floor=0.0)
    size = 700 // steps
    found = [learning_rate(spec, size * (n + 1), tokens, size) for n in range(steps)]
    assert min(found) > 0 and max(found) <= 1


@pytest.mark.parametrize("steps", [5, 20])
def test_decay_is_that_of_the_library(steps: int) -> None:
    """After the warm-up: transformers' linear and cosine schedules, step by step."""
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    weight = torch.nn.Parameter(torch.zeros(1))
    for name, published in (
        ("trapezoidal", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
    ):
        spec = LearningRateSpec(peak=0.5, schedule=name, warmup=0.0, decay=1.0)
        optimizer = torch.optim.SGD([weight], lr=0.5)
        following = published(optimizer, 0, steps)
        for n in range(steps):
            assert learning_rate(spec, n + 1, steps, 1) == pytest.approx(
                optimizer.param_groups[0]["lr"]
            )
            optimizer.step()
            following.step()
