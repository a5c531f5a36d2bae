"""Agreement and divergence against an independent reference of a few lines, in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from effcompress.errors import RunError
from effcompress.evaluation import agreement
from tests.conftest import tiny, tokens


def two() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model, and the same with other weights in its last layer."""
    source, other = tiny().eval(), tiny().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.model.layers[-1].parameters():
            p.add_(0.3 * torch.randn_like(p))
    return source, other


def reference(
    source: torch.nn.Module, other: torch.nn.Module, ids_NT: torch.Tensor, counted: torch.Tensor
) -> tuple[float, float]:
    same, total, count = 0, 0.0, 0
    for row, counts in zip(ids_NT, counted, strict=True):
        ours, theirs = (m(input_ids=row[None]).logits[0].double() for m in (source, other))
        for t in range(len(row) - 1):
            if not counts[t + 1]:
                continue
            p, q = (torch.exp(z[t] - torch.logsumexp(z[t], 0)).tolist() for z in (ours, theirs))
            same += p.index(max(p)) == q.index(max(q))
            total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
            count += 1
    return same / count, total / count


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("some", [False, True])
def test_agrees_with_the_reference(batch_size: int, some: bool) -> None:
    (source, other), ids = two(), tokens(7, 13)
    counted = torch.ones_like(ids, dtype=torch.bool)
    if some:
        counted[:, 5:9], counted[2] = False, False
    with torch.no_grad():
        fraction, divergence = reference(source, other, ids, counted)
    found = agreement(source, other, ids, batch_size, counted if some else None)
    assert 0 < fraction < 1 and divergence > 0.01
    assert found.fraction == pytest.approx(fraction)
    assert found.divergence == pytest.approx(divergence, rel=1e-4)
    assert found.tokens == int(counted[:, 1:].sum())


def test_the_divergence_is_that_of_the_source_to_the_other() -> None:
    (source, other), ids = two(), tokens(3, 9)
    there, back = agreement(source, other, ids, 2), agreement(other, source, ids, 2)
    assert there.fraction == back.fraction and there.divergence != pytest.approx(back.divergence)


def test_a_model_agrees_with_itself_and_modes_are_restored() -> None:
    model, other = tiny().train(), tiny().eval()
    found = agreement(model, model, tokens(), 2)
    assert (found.fraction, found.divergence) == (1.0, 0.0)
    agreement(model, other, tokens(), 2)
    assert model.training and not other.training


def test_other_vocabularies_and_no_token_are_errors() -> None:
    with pytest.raises(RunError, match="tokens"):
        agreement(tiny(), tiny(vocab_size=300), tokens(), 2)
    with pytest.raises(RunError, match="no token"):
        agreement(tiny(), tiny(), tokens(), 2, torch.zeros_like(tokens(), dtype=torch.bool))
