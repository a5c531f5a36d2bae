"""Reference losses by a scaling law: the published ones, and another solver's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from effcompress.data import predicted
from effcompress.data.scaling_law import fitted
from effcompress.spec import MeasuredSpec

SIZES = (6_738_415_616, 13_015_864_320, 68_976_648_192)
"""LLaMA-2 7B, 13B and 70B."""
MEASURED = {
    "cc": (1.7520, 1.6680, 1.4621),
    "github": (0.6216, 0.5791, 0.4890),
    "book": (1.9063, 1.8242, 1.6450),
    "stackexchange": (1.4482, 1.3936, 1.2805),
    "wiki": (1.4844, 1.3945, 1.2118),
    "arxiv": (1.2637, 1.2109, 1.1148),
    "c4": (1.9219, 1.8486, 1.6848),
}
PUBLISHED = {
    1_345_423_360: (1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251),
    2_701_560_320: (1.8712, 0.6883, 2.0325, 1.5353, 1.6297, 1.3560, 2.0328),
    373_867_520: (2.1401, 0.8694, 2.3625, 1.7791, 2.0470, 1.6637, 2.3139),
}
"""Of Sheared-LLaMA at 1.3B, 2.7B and 370M, in the order of the domains."""
FITS = {
    "cc": (8.634, 0.02830, -2.7980),
    "github": (14.640, 0.15507, 0.1837),
    "wiki": (58.911, 0.19251, 0.7292),
    "arxiv": (220.901, 0.29134, 0.9612),
}


@pytest.mark.parametrize("params", PUBLISHED)
def test_the_published_losses(params: int) -> None:
    models = [
        MeasuredSpec(params=size, losses={name: row[k] for name, row in MEASURED.items()})
        for k, size in enumerate(SIZES)
    ]
    found = predicted(models, params)
    assert tuple(found) == tuple(MEASURED)
    assert tuple(round(loss, 4) for loss in found.values()) == PUBLISHED[params]


@pytest.mark.parametrize("domain", FITS)
def test_the_published_laws(domain: str) -> None:
    law, (a, b, c) = fitted(SIZES, MEASURED[domain]), FITS[domain]
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), abs=1.0), "as printed below"
    assert (round(law.a, 3), round(law.b, 5), round(law.c, 4)) == (a, b, c)
    assert [law(n) for n in SIZES] == pytest.approx(MEASURED[domain], abs=1e-13)


def test_the_order_of_the_models_is_no_matter() -> None:
    order = (2, 0, 1)
    turned = fitted([SIZES[k] for k in order], [MEASURED["cc"][k] for k in order])
    assert turned(10**9) == pytest.approx(fitted(SIZES, MEASURED["cc"])(10**9), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_more_than_three_are_fitted_by_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in 10 ** np.linspace(7, 9.5, 6)]
    losses = [1.4 + 90 * n**-0.27 + rng.normal(0, 0.01) for n in sizes]

    def errors(p: np.ndarray) -> np.ndarray:
        return p[0] + p[1] * (np.asarray(sizes) / 1e8) ** -p[2] - losses

    best = least_squares(errors, [1.0, 1.0, 0.3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    law = fitted(sizes, losses)
    ours = sum((law(n) - y) ** 2 for n, y in zip(sizes, losses, strict=True))
    assert ours == pytest.approx(2 * best.cost, rel=1e-9)
    assert law.b == pytest.approx(best.x[2], rel=1e-5)
    assert law(3 * 10**9) == pytest.approx(best.x[0] + best.x[1] * 30 ** -best.x[2], rel=1e-6)


def test_a_law_without_curvature_is_a_logarithm() -> None:
    law = fitted([10**6, 10**7, 10**8], [3.0, 2.5, 2.0])
    assert law(10**9) == pytest.approx(1.5, abs=1e-9) and law(10**5) == pytest.approx(3.5, abs=1e-9)


@pytest.mark.parametrize(
    "losses", [(2.0, 2.1, 1.5), (2.0, 1.5, 1.6), (2.0, 2.0, 2.0), (1.0, 2.0, 3.0), (2.0, 1.5, 1.5)]
)
def test_losses_that_do_not_fall_are_refused(losses: tuple[float, ...]) -> None:
    models = [MeasuredSpec(params=n, losses={"web": y}) for n, y in zip(SIZES, losses, strict=True)]
    with pytest.raises(ValueError, match=r"domain 'web': the losses .* do not fall with size"):
        predicted(models, 10**9)


def test_a_law_that_gives_no_loss_there_is_refused() -> None:
    steep = [(10**9, 2.0), (10**9 + 10**6, 1.9), (10**9 + 2 * 10**6, 1.85)]
    models = [MeasuredSpec(params=n, losses={"web": y}) for n, y in steep]
    with pytest.raises(ValueError, match="domain 'web': at 1,000,000 parameters the law gives"):
        predicted(models, 10**6)
