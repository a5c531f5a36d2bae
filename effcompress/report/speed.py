"""How much faster training became while the model shrank, against what its FLOPs predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from effcompress.record import readable
from effcompress.record.events import Step
from effcompress.report.gather import Record

LEAST = 3
"""Steps of the whole model, and of the final one, below which no speed is reported."""


@dataclass(frozen=True)
class Speed:
    """``before`` and ``after``: tokens per second of the whole and of the final model, medians over
    steps. ``predicted``: ``after`` at the operations per second of ``before``. ``kept``: the
    training time so predicted, over the time that steps, cuts and commits took.
    """

    before: float
    after: float
    predicted: float
    kept: float


def speed(record: Record) -> Speed | None:
    """Returns None where operations are not recorded, or the model did not shrink."""
    if not record.cuts:
        return None
    steps = [s for s in record.steps[1:] if s.flops]  # the first step includes warm-up
    whole = [s for s in steps if s.step <= record.cuts[0].step]
    last = [s for s in steps if s.step > record.cuts[-1].step]
    if min(len(whole), len(last)) < LEAST:
        return None
    before, after = (median(s.tokens_per_second for s in some) for some in (whole, last))
    rate = before * _per_token(record, whole)
    predicted = sum(s.flops for s in steps) / rate
    spent = sum(_tokens(record) / s.tokens_per_second for s in steps) + record.cutting_seconds
    return Speed(before, after, rate / _per_token(record, last), predicted / spent)


def expected(record: Record) -> list[tuple[float, float]]:
    """Returns (tokens, tokens per second) that the operations of the shrinking model predict."""
    found = speed(record)
    if found is None:
        return []
    first = next(s for s in record.steps[1:] if s.flops)
    rate = found.before * _per_token(record, [first])
    return [(float(s.tokens), rate / _per_token(record, [s])) for s in record.steps if s.flops]


def told(found: Speed) -> str:
    """Returns the speed-up and its prediction in words."""
    faster, might = found.after / found.before, found.predicted / found.before
    return (
        f"x{faster:.2f}, by operations x{might:.2f}; with cuts and commits "
        f"{readable.percent(found.kept)} of what operations predict"
    )


def _per_token(record: Record, steps: Sequence[Step]) -> float:
    """Operations per token; the same for all steps of one model size."""
    return steps[-1].flops / _tokens(record)


def _tokens(record: Record) -> int:
    """Tokens per step; the same for all steps."""
    return record.steps[0].tokens // record.steps[0].step
