"""What a run leaves, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effcompress.runner.state import RunState
from effcompress.sparsity.hold import count, require_held


@dataclass(frozen=True)
class Report:
    """What a run leaves: its folder, and the size and the perplexities of the result."""

    folder: Path
    params: int
    perplexity: dict[str, float]
    removed: int = 0
    """Parameters that the source model had more."""
    zeroed: int = 0
    """Zeros in the linear layers that the recipe made sparse."""
    sparse: int = 0
    """All weights of those layers."""


def result(state: RunState, folder: Path, domains: Any) -> Report:
    """``domains``: name -> what its evaluation found. Raises RunError if a zero is gone."""
    require_held(state.module, state.zeros)
    held: Mapping[str, Any] = state.pruned.parameters()
    return Report(
        folder,
        state.params,
        {name: found["perplexity"] for name, found in domains.items()},
        removed=state.parent_params - state.params,
        zeroed=count(state.module, state.sparse),
        sparse=sum(held[name].numel() for name in state.sparse),
    )
