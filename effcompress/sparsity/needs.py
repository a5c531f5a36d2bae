"""What a method has to know, asked before torch is there: `plan` prices recipes without it."""

from __future__ import annotations

from effcompress.registry import Bound

INPUTS = frozenset({"input_norm", "gram"})
"""What only passes over text can tell."""


def reads_inputs(method: Bound) -> bool:
    """Whether the method looks at what layers read."""
    return bool(INPUTS.intersection(method.needs))
