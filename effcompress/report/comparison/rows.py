"""Methods with their runs -> one ``Comparison``, from which page, tables and files are made."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from effcompress.report import words
from effcompress.report.comparison.columns import QUALITY, Column, columns
from effcompress.report.comparison.conditions import conditions
from effcompress.report.comparison.facts import CALIBRATION, Attempt, Facts, Method
from effcompress.report.comparison.flags import Flag, flags
from effcompress.report.comparison.sizes import Size, sizes
from effcompress.report.comparison.spread import BEST, TIED, Spread, marks, spread

DENSE = "dense"


@dataclass(frozen=True)
class Row:
    """One line of the table. ``size`` numbers the group of equal size (None: the dense model);
    ``notes`` are letters of footnotes; ``mark`` is ``best``, ``tied`` or nothing; ``reason`` says
    why there is no result.
    """

    label: str
    size: int | None
    attempts: tuple[Attempt, ...]
    values: Mapping[str, Spread]
    """Key of a column -> mean and spread over the seeds."""
    calibration: str = ""
    notes: tuple[str, ...] = ()
    unfair: bool = False
    mark: str = ""
    reason: str = ""

    @property
    def done(self) -> list[Facts]:
        """Facts of the runs that ended well."""
        return Method(self.label, self.attempts).done


@dataclass(frozen=True)
class Comparison:
    """All that is shown. ``conditions`` are the lines above the table, ``notes`` the footnotes
    (letter, words), ``claims`` what may be said of who is best.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sizes: tuple[Size, ...]
    conditions: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()
    claims: tuple[str, ...] = ()


def compare(name: str, methods: Sequence[Method]) -> Comparison:
    """Put methods side by side. Labels must be unique."""
    everyone = [a.facts for m in methods for a in m.attempts if a.facts is not None]
    shown, groups = columns(everyone), sizes(methods)
    found: dict[str, list[Flag]] = {m.label: [] for m in methods}
    for label, flag in flags(methods, groups):
        found[label].append(flag)
    order = [m for size in groups for m in methods if m.label in size.labels]
    letters = _letters(found[m.label] for m in order)
    rows: list[Row] = []
    for number, size in enumerate(groups):
        here = [_row(m, number, shown, found, letters) for m in methods if m.label in size.labels]
        rows += _ranked(here)
    return Comparison(
        name,
        shown,
        (*_dense(methods, found, shown), *rows),
        tuple(groups),
        conditions(methods, groups, found),
        tuple((letter, f"{text[0].upper()}{text[1:]}.") for text, letter in letters.items()),
        tuple(_claims(rows, groups)),
    )


def _letters(flagged: Iterable[Sequence[Flag]]) -> dict[str, str]:
    """Words of a flag -> its letter: a to z, then aa, ab, ..."""
    alphabet = string.ascii_lowercase
    letters = (*alphabet, *(a + b for a in alphabet for b in alphabet))
    texts = dict.fromkeys(flag.words for some in flagged for flag in some)
    return dict(zip(texts, letters, strict=False))


def _row(
    method: Method,
    size: int,
    shown: Sequence[Column],
    found: Mapping[str, Sequence[Flag]],
    letters: Mapping[str, str],
) -> Row:
    reasons = dict.fromkeys(a.reason for a in method.attempts if a.reason)
    return Row(
        method.label,
        size,
        method.attempts,
        _known((c.key, spread(c.of(f) for f in method.done)) for c in shown),
        _calibration(method.done),
        tuple(letters[flag.words] for flag in found[method.label]),
        any(flag.unfair for flag in found[method.label]),
        reason="" if method.done else "; ".join(reasons),
    )


def _known(values: Iterable[tuple[str, Spread | None]]) -> dict[str, Spread]:
    return {key: value for key, value in values if value is not None}


def _calibration(done: Sequence[Facts]) -> str:
    """``4,096``, where text was set apart for it; else what took its place."""
    if not done:
        return ""
    measures = done[0].measures
    if measures != CALIBRATION:
        return measures or "?"
    amounts = {sum(t.number for t in f.calibration) for f in done}
    return " to ".join(f"{n:,}" for n in dict.fromkeys((min(amounts), max(amounts))))


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """With marks, from the lowest perplexity up; what has none at the end."""
    ranked = [None if row.unfair else row.values.get(QUALITY) for row in rows]
    marked = [replace(row, mark=mark) for row, mark in zip(rows, marks(ranked), strict=True)]
    worst = float("inf")
    return sorted(marked, key=lambda r: r.values[QUALITY].mean if QUALITY in r.values else worst)


def _dense(
    methods: Sequence[Method], found: Mapping[str, Sequence[Flag]], shown: Sequence[Column]
) -> list[Row]:
    """The dense model as most measured it, and once more for each method that measured another."""
    apart = {"checkpoint", "protocol", "held-out", "dense"}
    usual = [m for m in methods if not apart & {flag.kind for flag in found[m.label]}]
    others = [m for m in methods if m not in usual and m.done]
    groups = [(DENSE, usual or list(methods))]
    groups += [(f"{DENSE} ({m.label})", [m]) for m in others if usual]
    rows = []
    for label, some in groups:
        by_seed: dict[int, Attempt] = {}
        for attempt in (a for m in some for a in m.attempts):
            if attempt.facts is not None and attempt.facts.before:
                by_seed.setdefault(attempt.seed, Attempt(attempt.seed, "", attempt.facts))
        facts = [a.facts for a in by_seed.values() if a.facts]
        rows.append(
            Row(
                label,
                None,
                tuple(by_seed.values()),
                _known((c.key, spread(c.dense(f) for f in facts)) for c in shown),
                reason="" if facts else "no run got as far as measuring it",
            )
        )
    return rows


def _claims(rows: Sequence[Row], groups: Sequence[Size]) -> Iterable[str]:
    """One sentence for each size: who is best, who is tied, or why nothing is said."""
    for number, size in enumerate(groups):
        here = [row for row in rows if row.size == number]
        where = f"At {size.words}: " if len(groups) > 1 else ""
        said = _claim(here)
        yield where + said if where else said[0].upper() + said[1:]


def _claim(here: Sequence[Row]) -> str:
    best = next((row for row in here if row.mark == BEST), None)
    left = [row.label for row in here if row.unfair and row.done]
    rest = f" Not ranked, because of what their footnotes say: {words.join(left)}." if left else ""
    fair = [row for row in here if row.done and not row.unfair]
    if best is None:
        if len(fair) < 2:
            return f"none is called best: fewer than two methods can be compared.{rest}"
        return (
            "none is called best: of single runs the spread is not known. Give several --seeds."
            f"{rest}"
        )
    ties = [row.label for row in here if row.mark == TIED]
    also = f" Tied with it: {words.join(ties)}." if ties else ""
    few = [row.label for row in fair if len(row.done) < 2]
    alone = f" A single result, and so not ranked: {words.join(few)}." if few else ""
    return f"the lowest perplexity is that of {best.label}.{also}{alone}{rest}"
