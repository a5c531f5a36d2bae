"""When layers run as compiled code, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from effcompress.log import Log
from effcompress.runner.state import RunState
from effcompress.train.compiled import GRAPHS


@contextmanager
def compiled(state: RunState, log: Log) -> Iterator[None]:
    """While training computes its gradients, where the recipe wants it and nobody listens to the
    layers: what listens is Python, which compiled code does not run.
    """
    spec = state.recipe.loop
    if spec is None or not spec.compile or state.grams is not None or state.taps is not None:
        yield
        return
    code, before = state.compiled, state.compiled.graphs
    with code.running(state.layers):
        yield
    if code.graphs > before:
        log.event("compiled", step=state.step, graphs=code.graphs)
    if before <= GRAPHS < code.graphs:
        log.warn(f"{GRAPHS} graphs are compiled; layers that fit none of them run uncompiled")
