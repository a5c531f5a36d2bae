"""How far logits may move in a commit: the tolerance itself, and what rounding excuses."""

from __future__ import annotations

import pytest
import torch

from effcompress.errors import SurgeryError
from effcompress.removal.selftest import logits_of, rounding, same_function
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
