"""Sizes and conditions as expressions of a configuration, right in every model that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from effcompress.groups.tracing.formula import Models

CONFIGS: list[dict[str, Any]] = [
    {"a": 6, "b": 2, "n_layer": 3, "layer_types": ["x", "y", "x"], "first_k_dense_replace": 1},
    {"a": 15, "b": 5, "n_layer": 2, "layer_types": ["y", "x"], "first_k_dense_replace": 1},
    {
        "a": 28,
        "b": 7,
        "n_layer": 4,
        "layer_types": ["x", "x", "y", "z"],
        "first_k_dense_replace": 3,
    },
]
MODELS = Models(tuple(CONFIGS), (3, 2, 4), frozenset(CONFIGS[0]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('c["a"]', lambda c: c["a"]),
        ('c["a"] // c["b"]', lambda c: c["a"] // c["b"]),
        ('3 * c["b"]', lambda c: 3 * c["b"]),
        ('c["a"] * c["b"]', lambda c: c["a"] * c["b"]),
        ('c["a"] + c["b"]', lambda c: c["a"] + c["b"]),
        ('c["a"] + c["a"] * c["b"]', lambda c: c["a"] * (c["b"] + 1)),
    ],
)
def test_a_number_is_the_simplest_expression(
    text: str, value: Callable[[dict[str, Any]], int]
) -> None:
    wanted: dict[tuple[int, int | None], int] = {(m, None): value(c) for m, c in enumerate(CONFIGS)}
    assert MODELS.number(wanted) == text
    assert [eval(text, {"c": c}) for c in CONFIGS] == [*wanted.values()]


def test_a_number_that_is_right_in_one_model_alone_is_none() -> None:
    assert MODELS.number({(0, None): 6, (1, None): 15, (2, None): 1009}) is None


@pytest.mark.parametrize(
    "text",
    [
        'c["layer_types"][i] == "x"',
        'i >= c["first_k_dense_replace"]',
        'c["layer_types"][i] == "x" and i >= c["first_k_dense_replace"]',
    ],
)
def test_a_condition_is_read_from_lists_and_counts(text: str) -> None:
    pairs = list(zip(CONFIGS, MODELS.layers, strict=True))
    wanted = [[bool(eval(text, {"c": c, "i": i})) for i in range(n)] for c, n in pairs]
    found = MODELS.condition(wanted)
    assert found is not None
    again = [[bool(eval(found, {"c": c, "i": i})) for i in range(n)] for c, n in pairs]
    assert again == wanted
    assert (
        MODELS.condition([[True, False, False], [True, False], [True, False, True, False]]) is None
    )
