"""Default lengths of a run: sequences, tokens, stages, batches, learning rate. Rules of thumb, each
with its reason in words; docs/own_model.md has them as a table.
"""

import math
from dataclasses import dataclass

from effcompress.record.readable import count

LONGEST = 2048
"""Tokens of a sequence, unless documents are shorter or the model has fewer positions."""
SHORTEST = 128
PER_STEP = 2**19
"""Tokens of a step at most."""
LEAST_STEPS = 40
PASSES = 4
"""Passes over the text that are worth their time (arXiv:2305.16264)."""
PER_PARAMETER = 20
"""Tokens for each parameter; more are trained on only if asked for (arXiv:2203.15556)."""
FEW_TOKENS = 50_000
"""Below, too little is learned between two cuts to decide them by, and every step must change
little (docs/results/quickstart.md; docs/own_model.md has the rule).
"""
FEW_RATE = 0.35
"""Fraction of the learning rate with fewer tokens than that."""
RATES = ((5e8, 2e-4), (3e9, 1e-4), (math.inf, 5e-5))
"""Parameters up to which a peak learning rate is proposed."""


@dataclass(frozen=True)
class Lengths:
    """In tokens, but for ``batch`` and ``micro`` (sequences) and ``every`` (steps)."""

    sequence: int
    sequence_why: str
    total: int
    total_why: str
    batch: int
    batch_why: str
    rate: float
    rate_why: str

    @property
    def few(self) -> bool:
        """Whether there are too few tokens to prune while training (``FEW_TOKENS``)."""
        return self.total < FEW_TOKENS

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.total // (self.batch * self.sequence)

    def stages(self, keep: float) -> tuple[int, int, int]:
        """Returns the tokens of warm-up, pruning and continued training: a tenth, three or four
        tenths (where less than 60 % stays), and the rest.
        """
        warmup, pruning = self.total // 10, self.total * (3 if keep >= 0.6 else 4) // 10
        return warmup, pruning, self.total - warmup - pruning

    def every(self, pruning: int) -> int:
        """Returns the steps from one cut to the next: at least eight cuts, at most one in four
        steps.
        """
        steps = pruning // (self.batch * self.sequence)
        return max(1, min(4, steps // 8))


def sequence_of(positions: int | None, document: int) -> tuple[int, str]:
    """Returns the length of a sequence and why: a power of two that holds the usual document of
    ``document`` tokens, as far as the model's ``positions`` allow.
    """
    wanted = 1 << max(0, math.ceil(math.log2(max(1, document))))
    length = min(max(wanted, SHORTEST), LONGEST)
    if positions is not None and length > positions:
        return 1 << int(math.log2(positions)), f"the model has {positions:,} positions"
    if wanted > LONGEST:
        return length, f"documents have about {count(document)} tokens; longer ones are split"
    return length, f"documents have about {count(document)} tokens"


def total_of(asked: int | None, afford: float, text: float, params: int) -> tuple[int, str]:
    """Returns the tokens to train on and why: those ``asked`` for, those that a budget pays for
    (``afford``; 0 without a budget), or one pass over the ``text`` (its number of tokens; infinite
    where it is not known). Without ``asked``, at most ``PER_PARAMETER`` for each of ``params``.
    """
    if asked is not None:
        passes = f", {asked / text:.2g} times the text" if 0 < text < math.inf else ""
        return asked, f"as asked{passes}"
    most = min(PER_PARAMETER * params, PASSES * text if afford else text)
    if afford and afford <= most:
        return int(afford), "what the budget pays for, at 40 % utilisation"
    if most == PER_PARAMETER * params:
        return int(most), f"{PER_PARAMETER} for each parameter that stays"
    return int(most), f"{PASSES} passes over the text" if afford else "one pass over the text"


def lengths_of(
    sequence: tuple[int, str], total: tuple[int, str], params: int, processes: int
) -> Lengths:
    """Returns all lengths. The batch grows with the tokens: 512 tokens of 60,000, half a million of
    a billion and more, a multiple of the ``processes``.
    """
    length, tokens = sequence[0], total[0]
    each = min(PER_STEP, tokens**0.75 / 7.5, tokens / LEAST_STEPS)
    rows = max(1.0, each / length / processes)
    batch = processes * (1 << int(math.log2(rows)))
    rate = next(rate for most, rate in RATES if params <= most)
    why = f"for {count(params)} parameters, of a model that must not forget"
    if tokens < FEW_TOKENS:
        rate, why = rate * FEW_RATE, f"{why}; lower, as fewer than {FEW_TOKENS:,} tokens follow"
    batch_why = f"{count(batch * length)} tokens a step"
    return Lengths(*sequence, *total, batch, batch_why, rate, why)
