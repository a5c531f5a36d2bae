"""Dynamic batch loading by hand: the update of the authors' code, and that of their paper."""

from __future__ import annotations

import math

import pytest
import torch

from effcompress.registry import REGISTRY, Bound


def changed(name: str, *given: list[float], **knobs: object) -> list[float]:
    inputs = dict(zip(("weights", "losses", "reference"), given, strict=True))
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in inputs.items()}
    plugin = REGISTRY.get("mixture", name)
    defaults = {k.name: k.default for k in plugin.knobs.values()}
    return Bound(plugin, {**defaults, **knobs})(**tensors).tolist()


@pytest.mark.parametrize(
    ("weights", "losses", "reference", "code", "paper"),
    [
        ([0.5, 0.5], [2.5, 2.0], [2.0, 2.0], [0.62244709, 0.37755291], [0.62244709, 0.37755291]),
        ([0.5, 0.5], [1.5, 2.0], [2.0, 2.0], [0.37755291, 0.62244709], [0.5, 0.5]),
        ([0.8, 0.2], [3.0, 2.2], [2.5, 2.5], [0.89897207, 0.10102793], [0.86829561, 0.13170439]),
    ],
)
def test_one_update(
    weights: list[float],
    losses: list[float],
    reference: list[float],
    code: list[float],
    paper: list[float],
) -> None:
    given = weights, losses, reference
    assert changed("dynamic", *given) == pytest.approx(code, abs=5e-9)
    assert changed("dynamic", *given, clip=True) == pytest.approx(paper, abs=5e-9)


def test_log_odds_add_up() -> None:
    weights = [0.9, 0.1]
    for _ in range(3):
        weights = changed("dynamic", weights, [2.0, 3.0], [2.0, 2.0])
    assert weights == pytest.approx([0.30941482, 0.69058518], abs=5e-9)


def test_no_domain_falls_below_the_floor_and_eta_scales_the_gap() -> None:
    weights = [0.5, 0.3, 0.2]
    for _ in range(200):
        weights = changed("dynamic", weights, [9.0, 2.0, 2.0], [2.0, 2.0, 2.0], floor=0.03)
    assert weights == pytest.approx([0.98, 0.01, 0.01], abs=1e-4)
    assert min(weights) >= 0.01 and sum(weights) == pytest.approx(1.0)
    half = changed("dynamic", [0.5, 0.5], [3.0, 2.0], [2.0, 2.0], eta=0.5, floor=0.0)
    assert half[0] / half[1] == pytest.approx(math.exp(0.5))
    still = changed("dynamic", [0.7, 0.3], [3.0, 2.0], [2.0, 2.0], eta=0.0, floor=0.0)
    assert still == pytest.approx([0.7, 0.3])


def test_the_bandit_forgets_and_constant_stays() -> None:
    given = [0.8, 0.2], [2.5, 2.0], [2.0, 2.0]
    one = 0.9999 / (1 + math.exp(-(0.8 + 0.5 - 0.2))) + 0.00005
    assert changed("bandit", *given) == pytest.approx([one, 1 - one])
    assert changed("constant", *given) == [0.8, 0.2]
