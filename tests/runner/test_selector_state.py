"""What a selector remembers between cuts: shown once per cut, begun anew with a stage, kept by
checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from effcompress.errors import PluginError
from effcompress.registry import Bound, Registry
from effcompress.runner.measuring import Measured
from effcompress.runner.prune import _observe
from effcompress.runner.state import RunState
from effcompress.types import Due


def add(state: list[float] | None, influence: Mapping[int, float]) -> list[float]:
    return [*(state or []), sum(influence.values())]


def chooses(fraction_K: Tensor, state: list[float]) -> Tensor:
    return fraction_K * len(state)


def influence(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).norm(dim=-1)


def bound(observe: Any = add) -> Bound:
    registry = Registry()
    registry.add("statistic", "influence", influence, "test")
    return Bound(registry.add("selector", "own", chooses, "test", observe))


def run_state() -> Any:
    widths = {"ffn.0": 8}
    pruned = SimpleNamespace(ledger=SimpleNamespace(widths=lambda: dict(widths)))
    return SimpleNamespace(pruned=pruned, stage=0, begun={}, selector_state=None, now=widths)


def show(state: Any, value: float, stage: int, selector: Bound) -> None:
    prune: Any = SimpleNamespace(selector=selector)
    found = {"influence": {"layer.0": value, "layer.1": 1.0, "attention_block.0": 9.0}}
    _observe(state, prune, Due(groups=1, stage=stage), Measured({}, None, found))


def test_it_observes_layers_alone() -> None:
    """Inputs of linear layers and outputs of experts have no layer's one number."""
    registry = Registry()
    for name, of in (("input_peak", lambda x: x), ("loudness", lambda output: output.norm(dim=-1))):
        registry.add("statistic", name, of, "test")
    for observe in (lambda state, input_peak: state, lambda state, loudness: state):
        with pytest.raises(PluginError, match="is no statistic of layers"):
            registry.add("selector", "own", chooses, "test", observe)


def test_it_is_shown_layers_once_per_cut() -> None:
    state, selector = run_state(), bound()
    assert list(selector.plugin.of_layers) == ["influence"]
    show(state, 2.0, 0, selector)
    show(state, 4.0, 0, selector)
    assert state.selector_state == [3.0, 5.0] and state.begun == {}


def test_a_new_stage_begins_anew() -> None:
    state, selector = run_state(), bound()
    show(state, 2.0, 1, selector)
    state.now["ffn.0"] = 5
    show(state, 3.0, 1, selector)
    assert state.selector_state == [3.0, 4.0] and state.begun == {"ffn.0": 8}
    show(state, 7.0, 2, selector)
    assert state.selector_state == [8.0] and state.begun == {"ffn.0": 5}


def test_only_plain_json_is_kept() -> None:
    with pytest.raises(PluginError, match="not plain JSON"):
        show(run_state(), 1.0, 0, bound(lambda state, influence: torch.zeros(1)))


@pytest.mark.parametrize(
    ("values", "state", "begun"),
    [
        ({"selector": {"stage": 2, "begun": {"ffn.0": 7}, "state": [1.5]}}, [1.5], {"ffn.0": 7}),
        # As checkpoints were written before selectors had state of their own.
        (
            {"influence": {"stage": 2, "begun": {"ffn.0": 7}, "layers": {"0": [0.4, 2]}}},
            {"0": [0.4, 2]},
            {"ffn.0": 7},
        ),
        ({"influence": {"0": [0.4, 2]}}, {"0": [0.4, 2]}, {}),
        ({"influence": {"stage": 0, "begun": {}, "layers": {}}}, None, {}),
    ],
)
def test_checkpoints_keep_it(
    values: dict[str, Any], state: Any, begun: dict[str, int], tmp_path: Path
) -> None:
    held = run_state()
    RunState._restore_selector(held, values)
    assert held.selector_state == state and held.begun == begun
