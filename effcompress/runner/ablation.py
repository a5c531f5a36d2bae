"""Loss without each layer or block: every one is silenced once, and the loss measured."""

from functools import partial
from itertools import count

import torch
from torch import Tensor

from effcompress.evaluation import perplexity
from effcompress.network.masked import MaskedForward
from effcompress.record.log import Log
from effcompress.runner.state import RunState
from effcompress.types import DEPTH


def loss_increases(
    state: RunState, ids_NT: Tensor, positions_NT: Tensor | None, log: Log
) -> dict[str, float]:
    """Returns layer or block -> by how many nats per token the loss on this text rises without it;
    no weight is changed. The processes take sequences in turn.
    """
    names = [s.name for s in state.pruned.sets if s.kind in DEPTH]
    number, tell = count(1), partial(log.progress, "loss without a layer or block")
    forward = MaskedForward(state.pruned, names)

    def loss() -> float:
        given = {"world": state.world, "positions_NT": positions_NT}
        tell(next(number), len(names) + 1)
        return perplexity(state.to_call, ids_NT, 1, **given).loss

    try:
        whole = loss()
        found: dict[str, float] = {}
        for name in names:
            with forward.using({name: torch.zeros(1, device=state.device)}):
                found[name] = loss() - whole
    finally:
        forward.close()
    return found
