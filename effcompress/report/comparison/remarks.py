"""Flags that do not come from a fact that all should share: what a method's own runs say, and how
they lie beside each other.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence

from effcompress.report.comparison.facts import Attempt, Method
from effcompress.report.comparison.flags import Flag, Found

SLACK = 2.0
"""Seconds by which two runs may seem to overlap: a record tells whole seconds."""


def remarks(methods: Sequence[Method]) -> Found:
    """(label, flag) for seeds that others have not or that gave nothing, for weights that are
    zero, and for runs that shared the machine. None keeps a method from being ranked.
    """
    yield from _other_seeds(methods)
    yield from _together(methods)
    for method in methods:
        for flag in (_zeroed(method), _failed(method)):
            if flag is not None:
                yield method.label, flag


def _other_seeds(methods: Sequence[Method]) -> Found:
    seeds = {m.label: tuple(sorted({a.seed for a in m.attempts})) for m in methods}
    if not seeds:
        return
    usual = Counter(seeds.values()).most_common(1)[0][0]
    for label, own in seeds.items():
        if own != usual:
            ours, theirs = (", ".join(map(str, some)) for some in (own, usual))
            yield label, Flag("seeds", f"has seeds {ours}; the others {theirs}", unfair=False)


def _zeroed(method: Method) -> Flag | None:
    """Weights that are zero take as much room and time as any other."""
    most = max((f.zeroed for f in method.done), default=0)
    if not most:
        return None
    params = max(f.params for f in method.done)
    said = (
        f"has {most:,} weights that are zero but still there: file, memory and speed are those of "
        f"{params:,} parameters"
    )
    return Flag("zeroed", said, unfair=False)


def _failed(method: Method) -> Flag | None:
    """Seeds that gave nothing, where others did."""
    reasons = [f"seed {a.seed}: {a.reason}" for a in method.attempts if not a.done]
    if not reasons or not method.done:
        return None
    of = f"{len(reasons)} of {len(method.attempts)} runs"
    return Flag("failed", f"has no result of {of} ({'; '.join(reasons)})", unfair=False)


def _together(methods: Sequence[Method]) -> Found:
    """Runs that were under way at the same time."""
    spans = [(m.label, _span(a)) for m in methods for a in m.attempts]
    known = [(label, span) for label, span in spans if span is not None]
    said = "ran at the same time as others: do not compare times"
    for label in dict.fromkeys(label for label, _ in known):
        ours = [(k, span) for k, (name, span) in enumerate(known) if name == label]
        if any(
            start < stop_ - SLACK and start_ < stop - SLACK
            for k, (start, stop) in ours
            for n, (_, (start_, stop_)) in enumerate(known)
            if n != k
        ):
            yield label, Flag("together", said, unfair=False)


def _span(attempt: Attempt) -> tuple[float, float] | None:
    """When a run began and ended, in seconds."""
    facts = attempt.facts
    if facts is None or not facts.started or facts.seconds is None:
        return None
    begin = datetime.datetime.fromisoformat(facts.started).timestamp()
    return begin, begin + facts.seconds
