"""One level per module under a budget, against all choices there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress import RunError, least_error

ERRORS = ((0.0, 0.1, 0.5, 1.0), (0.0, 0.3, 0.6, 1.0))
TIMES = ((4.0, 3.0, 2.0, 0.0), (6.0, 4.0, 2.0, 0.0))


def spent(levels: list[int], costs: tuple[tuple[float, ...], ...]) -> float:
    return sum(c[k] for c, k in zip(costs, levels, strict=True))


@pytest.mark.parametrize(
    ("budget", "levels", "error"),
    [
        (10, [0, 0], 0.0),
        (9, [1, 0], 0.1),
        (8, [0, 1], 0.3),
        (7, [1, 1], 0.4),
        (6, [0, 2], 0.6),
        (5, [1, 2], 0.7),
        (4, [0, 3], 1.0),
        (2, [2, 3], 1.5),
        (0, [3, 3], 2.0),
    ],
)
def test_two_modules_by_hand(budget: float, levels: list[int], error: float) -> None:
    assert least_error(ERRORS, TIMES, budget) == levels
    assert spent(levels, ERRORS) == pytest.approx(error)
    twice = tuple(tuple(2 * t for t in times) for times in TIMES)
    assert least_error(ERRORS, twice, 2 * budget) == levels


def test_a_budget_below_the_cheapest_choice_is_refused_with_its_cost() -> None:
    costs = ((4.0, 1.5), (6.0, 1.0))
    with pytest.raises(RunError, match=r"at most 2; the least is 2\.5"):
        least_error(((0.0, 1.0),) * 2, costs, 2.0)
    assert least_error(((0.0, 1.0),) * 2, costs, 2.5) == [1, 1]


def test_a_level_dearer_than_the_whole_budget_is_passed_over() -> None:
    assert least_error(((0.0, 1.0), (0.0, 1.0)), ((100.0, 1.0), (1.0, 0.5)), 2.0) == [1, 0]


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]], int]:
    """Up to four modules of up to four levels; costs are whole, so no bucket rounds."""
    modules = draw(st.integers(1, 4))
    errors, costs = [], []
    for _ in range(modules):
        levels = draw(st.integers(1, 4))
        errors.append([draw(st.floats(0, 5)) for _ in range(levels)])
        costs.append([draw(st.integers(0, 9)) for _ in range(levels)])
    return errors, costs, draw(st.integers(1, 40))


@given(instances())
def test_no_choice_has_a_lower_error(
    instance: tuple[list[list[float]], list[list[int]], int],
) -> None:
    errors, costs, budget = instance
    choices = itertools.product(*(range(len(e)) for e in errors))
    fit = [c for c in choices if sum(x[k] for x, k in zip(costs, c, strict=True)) <= budget]
    if not fit:
        with pytest.raises(RunError, match="no choice"):
            least_error(errors, costs, budget, buckets=budget)
        return
    best = min(sum(x[k] for x, k in zip(errors, c, strict=True)) for c in fit)
    found = least_error(errors, costs, budget, buckets=budget)
    assert tuple(found) in fit
    assert sum(x[k] for x, k in zip(errors, found, strict=True)) == pytest.approx(best)


@given(st.lists(st.floats(0.01, 3), min_size=2, max_size=6), st.floats(0.1, 1), st.integers(3, 50))
def test_rounding_up_never_passes_the_budget(
    each: list[float], fraction: float, buckets: int
) -> None:
    costs = [[cost, cost / 3, 0.0] for cost in each]
    errors = [[0.0, 0.4, 1.0]] * len(each)
    budget = fraction * sum(each)
    found = least_error(errors, costs, budget, buckets=buckets)
    assert sum(c[k] for c, k in zip(costs, found, strict=True)) <= budget * (1 + 1e-9)
