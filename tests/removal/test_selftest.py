"""How far logits may move in a commit: the tolerance itself, and what rounding excuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effcompress.errors import SurgeryError
from effcompress.estimate.memory import PROBE, TESTED
from effcompress.removal.selftest import TOLERANCE, logits_of, rounding, same_function
from effcompress.runner import prune
from tests.conftest import tiny, tokens


@pytest.mark.parametrize(("times", "caught"), [(0.3, False), (3.0, True)])
def test_a_thousandth_of_a_logit_is_noticed(times: float, caught: bool) -> None:
    """A change is let through below a ten-thousandth of the largest logit, and caught above."""
    model, ids = tiny(), tokens()
    logits = logits_of(model, ids)
    assert 30 * rounding(model, ids, logits) < 1e-4 * max(float(logits.abs().max()), 1.0)
    far = times * 1e-4 * max(float(logits.abs().max()), 1.0)
    row = int(logits.abs().amax((0, 1)).argmax())
    factor = 1 + far / float(logits[..., row].abs().max())
    try:
        with same_function(model, ids, None) as proof, torch.no_grad():
            model.lm_head.weight[row] *= factor
    except SurgeryError as error:
        assert caught and "logits moved" in str(error)
    else:
        assert not caught and proof.max_logit_difference == pytest.approx(far, rel=0.1)


@pytest.mark.parametrize(("mixtures", "count"), [((), 8), (("expert.0",), 48)])
def test_how_many_tokens_a_commit_is_tested_on(
    monkeypatch: pytest.MonkeyPatch, mixtures: tuple[str, ...], count: int
) -> None:
    """Where a router sends each token to a few experts only, all of the probe."""

    class Asked(Exception):
        pass

    def caught(_module: object, ids_BT: torch.Tensor, *_: object) -> None:
        raise Asked(tuple(ids_BT.shape))

    monkeypatch.setattr(prune, "same_function", caught)
    axes = SimpleNamespace(axes=lambda kind: mixtures if kind == "expert" else ())
    ledger = SimpleNamespace(pending=lambda: True)
    state: Any = SimpleNamespace(
        pruned=SimpleNamespace(ledger=ledger, axes=axes),
        device=torch.device("cpu"),
        probe_BT=tokens(1, PROBE),
        module=None,
        optimizer=None,
    )
    with pytest.raises(Asked, match=rf"\(1, {count}\)"):
        prune.commit_event(state, None)  # type: ignore[arg-type]


def test_eight_tokens_see_what_all_of_the_probe_see() -> None:
    """What can go wrong in a commit is a wrong index: somewhere a unit takes its neighbour's place.
    Every token is multiplied with every weight, so each fault moves logits of 8 tokens a thousand
    times as far as is let through, and nearly as far as those of 48. One token would not do: alone
    it attends to itself, whatever queries and keys are.
    """
    model, ids = tiny(), tokens(1, PROBE)
    model.model.embed_tokens.weight.requires_grad_(False)
    names = [name for name, _ in model.named_parameters()]

    @torch.no_grad()
    def moved(name: str, dim: int, count: int) -> float:
        p, some = model.get_parameter(name), ids[:, :count]
        before, kept = logits_of(model, some), p.detach().clone()
        p.copy_(kept.roll(1, dim))
        after = logits_of(model, some)
        p.copy_(kept)
        return float((after - before).abs().max() / before.abs().max().clamp(min=1.0))

    faults = [
        (name, dim)
        for name in names
        for dim in range(model.get_parameter(name).dim())
        if (name, dim) != ("model.embed_tokens.weight", 0)  # words do not go
    ]
    assert len(faults) > 2 * 3 * 7  # both sides of seven matrices in three layers
    for name, dim in faults:
        few, many = (moved(name, dim, count) for count in (TESTED, PROBE))
        assert few > 1000 * TOLERANCE and few > many / 4, (name, dim, few, many)
        unseen = ("q_proj" in name or "k_proj" in name) and moved(name, dim, 1) < TOLERANCE
        assert unseen == ("q_proj" in name or "k_proj" in name), (name, dim)


def test_logits_that_are_no_number_are_noticed() -> None:
    model = tiny()
    with (
        pytest.raises(SurgeryError, match="logits moved by nan"),
        same_function(model, tokens(), None),
        torch.no_grad(),
    ):
        model.lm_head.weight[0, 0] = torch.nan


def test_the_mode_is_put_back_and_rounding_is_small() -> None:
    model, ids = tiny().train(), tokens()
    logits = logits_of(model, ids)
    assert model.training
    assert 0 < rounding(model, ids, logits) < 1e-5 * float(logits.abs().max())
