"""Another scale of the residual stream, which gives the norms over it another epsilon."""

from collections.abc import Iterator

from effcompress.types import AxisMap, Family


def of_stream(family: Family, then: AxisMap, scale: float) -> Iterator[tuple[str, float]]:
    """Yields the factors of a residual stream that is ``scale`` times as large.

    ``g s x / sqrt(s^2 m + e)`` equals ``g x / sqrt(m + e / s^2)``: all norms over the stream get
    the epsilon ``e / s^2``, and what they return is the same. The embedding and all that is added
    to the stream grow, and the last norm shrinks if the embedding is also the output matrix.
    """
    tables = [p for p in then.shapes if "vocab" in {n for s in then.by_param[p] for n in s.names}]
    yield tables[0], scale
    if len(tables) == 1:
        yield family.final_norm, 1 / scale
    gains = {g.replace("{i}", str(j)) for g in family.norms for j in range(len(then.depth.layers))}
    for param, shape in then.shapes.items():
        outputs = 3 - family.expert_inputs if len(shape) == 3 else 1 - family.inputs
        on_stream = {s.dim for s in then.by_param[param] if s.names == ("hidden",)}
        written = {0, outputs} if param.endswith("bias") else {outputs}
        if then.gates[param] and param not in gains and on_stream & written:
            yield param, scale
