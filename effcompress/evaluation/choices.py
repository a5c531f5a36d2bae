"""Computes the log-likelihood of continuations given contexts, in batches of similar length.

``B`` sequences of a batch, ``T`` tokens, ``C`` tokens of a continuation, ``V`` vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from effcompress.distributed.world import ALONE, World, needs_all_ranks
from effcompress.errors import RunError

Pair = tuple[list[int], list[int]]
"""Tokens of a context (one at least) and of its continuation (one at least)."""


@dataclass(frozen=True)
class Likelihood:
    """``total`` is the log-probability of a continuation in nats; ``greedy`` says whether each of
    its tokens was the likeliest; ``cut`` how many tokens were left out on the left.
    """

    total: float
    greedy: bool
    cut: int


@dataclass
class _Row:
    """One sequence to run, and the continuations that it ends with (index of the pair, tokens)."""

    ids: tuple[int, ...]
    ends: list[tuple[int, list[int]]]
    cut: int

    @property
    def first(self) -> int:
        """The first position whose prediction is needed."""
        return len(self.ids) - max(len(tokens) for _, tokens in self.ends)


@torch.no_grad()
def likelihoods(
    module: nn.Module,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    max_length: int | None,
    progress: Callable[[float], None],
    world: World = ALONE,
) -> list[Likelihood]:
    """Returns one likelihood per pair, in their order. The ranks of ``world``, which pass the same
    pairs, take batches in turn, and each gets the likelihoods of all.

    Pairs longer than ``max_length`` tokens are cut on the left. Pairs that differ only in their
    last token are one row. Batches depend on the pairs only, so the same call gives the same
    numbers, whatever the number of ranks. Log-likelihoods are computed in fp32 and added in fp64.
    ``progress`` gets the fraction done.

    Raises:
        RunError: a likelihood is not finite.
    """
    rows = _rows(pairs, max_length)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    total_N, greedy_N, cut_N = ([0.0] * len(pairs) for _ in range(3))
    training = module.training
    module.eval()
    for turn in range(0, len(batches), world.size):
        at = turn + world.rank
        mine = at < len(batches)
        if mine or needs_all_ranks(module):  # ranks without a batch run the last one, unread
            batch = batches[at if mine else -1]
            logits, offset = _logits(module, batch)
            for row, logits_TV in zip(batch, logits, strict=True) if mine else ():
                for index, tokens in row.ends:
                    last, cut_N[index] = len(row.ids) - offset, row.cut
                    told = _read(logits_TV[last - len(tokens) : last], tokens)
                    total_N[index], greedy_N[index] = told
        progress(min(1.0, (turn + world.size) * batch_size / len(rows)))
    module.train(training)
    # Every pair was read by one rank; the others add 0.
    total_N, greedy_N, cut_N = (world.sums(each) for each in (total_N, greedy_N, cut_N))
    if not all(map(math.isfinite, total_N)):
        raise RunError("the likelihood of an answer is not finite")
    return [
        Likelihood(total, greedy > 0, int(cut))
        for total, greedy, cut in zip(total_N, greedy_N, cut_N, strict=True)
    ]


def _rows(pairs: Sequence[Pair], max_length: int | None) -> list[_Row]:
    """Returns the rows, longest first: what does not fit into memory fails at once."""
    rows: dict[tuple[int, ...], _Row] = {}
    for index, (context, continuation) in enumerate(pairs):
        assert context and continuation
        whole = [*context, *continuation]
        kept = whole if max_length is None else whole[-(max_length + 1) :]
        tokens = continuation[-(len(kept) - 1) :]
        ids = tuple(kept[:-1])  # the prediction after the last token is not needed
        row = rows.setdefault(ids, _Row(ids, [], len(whole) - len(kept)))
        row.ends.append((index, tokens))
    return sorted(rows.values(), key=lambda row: (-len(row.ids), row.ids))


def _logits(module: nn.Module, batch: list[_Row]) -> tuple[Tensor, int]:
    """Returns logits [B, T, V] from position ``offset`` on. Right padding needs no mask: in a
    causal model no position before it attends to it.
    """
    device = next(module.parameters()).device
    ids_BT = pad_sequence([torch.tensor(row.ids) for row in batch], batch_first=True).to(device)
    offset, keep = min(row.first for row in batch), {}
    if "logits_to_keep" in inspect.signature(module.forward).parameters:
        keep = {"logits_to_keep": ids_BT.shape[1] - offset}
    run: Any = module
    logits = run(input_ids=ids_BT, use_cache=False, **keep).logits
    return logits, ids_BT.shape[1] - logits.shape[1]


def _read(logits_CV: Tensor, tokens: list[int]) -> tuple[float, bool]:
    """Returns the log-probability of ``tokens`` in nats, and whether each was the likeliest."""
    told_C = torch.tensor(tokens, device=logits_CV.device)
    likely_CV = logits_CV.float().log_softmax(-1)
    total = float(likely_CV.gather(1, told_C[:, None]).double().sum())
    return total, bool((likely_CV.argmax(-1) == told_C).all())
