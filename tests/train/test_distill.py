"""Distillation against plain formulas in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effcompress.spec import DistillSpec
from effcompress.train.loss import Distillation, divergence, next_token
from tests.conftest import tiny, tokens


def by_hand(theirs: Tensor, own: Tensor, temperature: float) -> Tensor:
    """sum p (log p - log q), one row and one token at a time."""
    rows = []
    for row in range(len(theirs)):
        total = 0.0
        for t in range(theirs.shape[1] - 1):
            p = torch.softmax(theirs[row, t].double() / temperature, -1)
            q = torch.softmax(own[row, t].double() / temperature, -1)
            total += float((p * (p.log() - q.log())).sum())
        rows.append(temperature**2 * total / (theirs.shape[1] - 1))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence(temperature: float) -> None:
    make = torch.Generator().manual_seed(0)
    theirs, own = (torch.randn(3, 5, 11, generator=make) for _ in range(2))
    found = divergence(theirs, own, temperature)
    torch.testing.assert_close(found.double(), by_hand(theirs, own, temperature), rtol=1e-5, atol=0)
    assert not divergence(own, own, temperature).any()


def test_terms_add_up_and_only_the_student_learns() -> None:
    teacher, student, ids = tiny(), tiny(), tokens(2, seed=3)
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(
                1.0 + 0.3 * torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel()))
            )
    layers = tuple(range(teacher.config.num_hidden_layers))
    plain = Distillation(teacher, DistillSpec(), layers, None)(student, ids)
    spec = DistillSpec(text_weight=0.5, hidden_weight=2.0)
    whole = Distillation(teacher, spec, layers, None)(student, ids)
    text = next_token(student, ids).text
    assert float(plain.objective.detach().min()) > 0.01
    torch.testing.assert_close(whole.text, text)
    states = [m(input_ids=ids, output_hidden_states=True).hidden_states for m in (teacher, student)]
    far = [1 - torch.cosine_similarity(*pair, dim=-1).mean(1) for pair in zip(*states, strict=True)]
    hidden = torch.stack(far[1:]).mean(0)
    torch.testing.assert_close(whole.objective, plain.objective + 0.5 * text + 2.0 * hidden)
    # A student that lost layer 0: behind its first layer stands what stood behind the teacher's
    # second. The last states are compared behind the final norms.
    short, channels = tiny(num_hidden_layers=2), torch.arange(0, 48, 2)
    fewer = tiny(num_hidden_layers=2, hidden_size=24)
    for small, those in ((short, None), (fewer, channels)):
        only = DistillSpec(hidden_weight=1.0)
        without = Distillation(teacher, DistillSpec(), (1, 2), those)(small, ids)
        found = Distillation(teacher, only, (1, 2), those)(small, ids)
        own = small(input_ids=ids, output_hidden_states=True).hidden_states
        theirs = [s if those is None else s[..., those] for s in states[0]]
        pairs = ((own[1], theirs[2]), (own[2], theirs[3]))
        far = [1 - torch.cosine_similarity(*pair, dim=-1).mean(1) for pair in pairs]
        torch.testing.assert_close(
            found.objective - without.objective, torch.stack(far).mean(0), rtol=1e-4, atol=1e-5
        )
    whole.objective.sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_hidden_states_of_the_layers_and_channels_that_are_left() -> None:
    """Layer 1 of three and six channels are gone: the student's second layer answers to the
    teacher's third, behind the final norm, its first to the teacher's first.
    """
    teacher, student, ids = tiny(), tiny(num_hidden_layers=2, hidden_size=42), tokens(2, seed=3)
    kept = torch.tensor([c for c in range(48) if c not in (0, 7, 8, 9, 30, 31)])
    spec = DistillSpec(hidden_weight=2.0)
    found = Distillation(teacher, spec, (0, 2), kept)(student, ids)
    plain = Distillation(teacher, DistillSpec(), (0, 2), kept)(student, ids)
    theirs, own = (
        m(input_ids=ids, output_hidden_states=True).hidden_states for m in (teacher, student)
    )
    pairs = [(theirs[1][..., kept], own[1]), (theirs[3][..., kept], own[2])]
    far = [1 - torch.cosine_similarity(a, b, dim=-1).mean(1) for a, b in pairs]
    torch.testing.assert_close(found.objective, plain.objective + 2.0 * torch.stack(far).mean(0))


def test_a_layer_in_the_middle_answers_to_its_own_number() -> None:
    teacher, student, ids = tiny(), tiny(num_hidden_layers=2), tokens(2, seed=3)
    loss = Distillation(teacher, DistillSpec(hidden_weight=1.0), (1, 2), None)
    theirs, own = (
        m(input_ids=ids, output_hidden_states=True).hidden_states for m in (teacher, student)
    )
    far = [
        1 - torch.cosine_similarity(theirs[k], own[j], dim=-1).mean(1) for j, k in ((1, 2), (2, 3))
    ]
    torch.testing.assert_close(loss._hidden(theirs, own), torch.stack(far).mean(0))


def test_the_last_layer_answers_to_the_end_of_the_teacher() -> None:
    """Whichever layer it descends from: both are behind the final norm."""
    teacher, student, ids = tiny(), tiny(num_hidden_layers=2), tokens(2, seed=3)
    loss = Distillation(teacher, DistillSpec(hidden_weight=1.0), (0, 1), None)
    theirs, own = (
        m(input_ids=ids, output_hidden_states=True).hidden_states for m in (teacher, student)
    )
    pairs = [(theirs[1], own[1]), (theirs[-1], own[-1])]
    far = [1 - torch.cosine_similarity(a, b, dim=-1).mean(1) for a, b in pairs]
    torch.testing.assert_close(loss._hidden(theirs, own), torch.stack(far).mean(0))
