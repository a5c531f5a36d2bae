"""Methods with their runs -> one ``Comparison``, from which page, tables and files are made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from string import ascii_lowercase

from effcompress.report import words
from effcompress.report.comparison.columns import QUALITY, Column, columns
from effcompress.report.comparison.facts import CALIBRATION, Attempt, Facts, Method
from effcompress.report.comparison.flags import Flag, flags, heldout, mixture, protocol, short
from effcompress.report.comparison.names import shortened
from effcompress.report.comparison.sizes import SAME_SIZE, Size, sizes
from effcompress.report.comparison.spread import BEST, TIED, Spread, marks, spread

DENSE = "dense"
Found = Mapping[str, Sequence[Flag]]
"""Label of a method -> its flags."""
UNCALIBRATED = {
    "training": "measured on the text of training",
    "nothing": "none needed",
    None: "not recorded",
}
"""What saliency is measured on, but for calibration -> in words."""


@dataclass(frozen=True)
class Row(Method):
    """One line of the table. ``size`` numbers the group of equal size (None: the dense model);
    ``notes`` are letters of footnotes; ``mark`` is ``best``, ``tied`` or nothing; ``reason`` says
    why there is no result.
    """

    size: int | None = None
    values: Mapping[str, Spread] = field(default_factory=dict[str, Spread])
    """Key of a column -> mean and spread over the seeds."""
    calibration: str = ""
    notes: tuple[str, ...] = ()
    unfair: bool = False
    mark: str = ""
    reason: str = ""


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
    """Puts methods side by side, by names without the words that all labels share. Labels must be
    unique.
    """
    names = shortened([m.label for m in methods])
    methods = [replace(m, label=names[m.label], full=m.label) for m in methods]
    everyone = [a.facts for m in methods for a in m.attempts if a.facts is not None]
    shown, groups = columns(everyone), sizes(methods)
    found: dict[str, list[Flag]] = {m.label: [] for m in methods}
    for label, flag in flags(methods, groups):
        found[label].append(flag)
    order = [m for size in groups for m in methods if m.label in size.labels]
    texts = dict.fromkeys(flag.words for m in order for flag in found[m.label])
    # a to z, then aa, ab, ...
    alphabet = (*ascii_lowercase, *map("".join, product(ascii_lowercase, repeat=2)))
    letters = dict(zip(texts, alphabet, strict=False))
    rows: list[Row] = []
    claims: list[str] = []
    for number, size in enumerate(groups):
        here = [_row(m, number, shown, found, letters) for m in methods if m.label in size.labels]
        ranked = [None if row.unfair else row.values.get(QUALITY) for row in here]
        here = [replace(row, mark=mark) for row, mark in zip(here, marks(ranked), strict=True)]
        # From the lowest perplexity up; what has none at the end.
        worst = float("inf")
        here.sort(key=lambda r: r.values[QUALITY].mean if QUALITY in r.values else worst)
        rows += here
        said = _claim(here)
        where = f"At {size.words}: " if len(groups) > 1 else ""
        claims.append(where + said if where else said[0].upper() + said[1:])
    return Comparison(
        name,
        shown,
        (*_dense(methods, found, shown), *rows),
        tuple(groups),
        conditions(methods, groups, found),
        tuple((letter, f"{text[0].upper()}{text[1:]}.") for text, letter in letters.items()),
        tuple(claims),
    )


def _row(
    method: Method, size: int, shown: Sequence[Column], found: Found, letters: Mapping[str, str]
) -> Row:
    reasons = dict.fromkeys(a.reason for a in method.attempts if a.reason)
    return Row(
        method.label,
        method.attempts,
        method.full,
        size,
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


def _dense(methods: Sequence[Method], found: Found, shown: Sequence[Column]) -> list[Row]:
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
                tuple(by_seed.values()),
                label,
                None,
                _known((c.key, spread(c.dense(f) for f in facts)) for c in shown),
                reason="" if facts else "no run got as far as measuring it",
            )
        )
    return rows


def _claim(here: Sequence[Row]) -> str:
    """Who is best at a size, who is tied, or why nothing is said."""
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


def conditions(
    methods: Sequence[Method], sizes: Sequence[Size], found: Found
) -> tuple[tuple[str, str], ...]:
    """Returns (title, words) of what the methods have in common. ``found``: label -> flags."""
    parts = [size.words.removesuffix(" parameters") for size in sizes if size.params]
    parameters = "not known"
    if parts:
        tolerance = f"within {SAME_SIZE:.1%}".replace("%", " %")
        other = _except(sorted(_flagged(found, "parameters")))
        parameters = f"{words.join(parts)}, {tolerance}{other}"
    seeded = _flagged(found, "seeds")
    seeds = sorted({a.seed for m in methods if m.label not in seeded for a in m.attempts})
    return (
        ("checkpoint", _common(methods, found, _checkpoint, "checkpoint")),
        ("calibration", _calibrated(methods, found)),
        ("parameters", parameters),
        ("layers", _layers(methods)),
        ("recovery", _common(methods, found, _trained, "training", "mixture", "text")),
        ("evaluation", _common(methods, found, _evaluated, "protocol", "held-out", "dense")),
        ("seeds", ", ".join(map(str, seeds)) + _except(seeded)),
    )


def _flagged(found: Found, *kinds: str) -> list[str]:
    """Labels with a flag of one of the kinds."""
    return [label for label, some in found.items() if any(f.kind in kinds for f in some)]


def _common(
    methods: Sequence[Method], found: Found, say: Callable[[Sequence[Facts]], str], *kinds: str
) -> str:
    """``say`` on the methods without a flag of these kinds, and the names of those with one."""
    other = _flagged(found, *kinds)
    usual = [f for m in methods if m.label not in other for f in m.done]
    return (say(usual) if usual else "not known: no run ended well") + _except(other)


def _except(labels: Sequence[str]) -> str:
    return f"; otherwise: {', '.join(labels)}" if labels else ""


def _checkpoint(facts: Sequence[Facts]) -> str:
    first, *others = dict.fromkeys(f.source for f in facts)
    hashes = _by_seed({f.seed: short(f.source_hash) for f in facts})
    return f"{first}{' (and by the seed)' if others else ''}, hash of the weights {hashes}"


def _by_seed(values: Mapping[int, str]) -> str:
    """One value, or one for each seed."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} (seed {seed})" for seed, value in sorted(values.items()))


def _calibrated(methods: Sequence[Method], found: Found) -> str:
    other = _flagged(found, "calibration")
    parts: list[str] = []
    done = [(m.label, f) for m in methods if m.label not in other for f in m.done]
    taken = {f.seed: f for _, f in done if f.measures == CALIBRATION}
    if taken:
        amount = max(sum(t.number for t in f.calibration) for f in taken.values())
        each = {seed: sorted(short(t.hash) for t in f.calibration) for seed, f in taken.items()}
        hashes = {seed: "+".join(some) for seed, some in each.items()}
        parts.append(f"{amount:,} tokens, hash {_by_seed(hashes)}")
    for measures, text in UNCALIBRATED.items():
        if labels := dict.fromkeys(n for n, f in done if f.measures == measures):
            named = "" if len(labels) == len({n for n, _ in done}) else f": {', '.join(labels)}"
            parts.append(text + named)
    return "; ".join(parts or ["not known: no run ended well"]) + _except(other)


def _layers(methods: Sequence[Method]) -> str:
    """How many layers lost something (seeds may choose others)."""
    said: dict[str, list[str]] = {}
    for method in methods:
        touched = {f.layers for f in method.done}
        if not touched:
            continue
        every = max(f.all_layers for f in method.done)
        if None in touched:
            text = "not recorded"
        else:
            counts = sorted({len(t) for t in touched if t is not None})
            some = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
            text = f"all {every}" if counts == [every] else f"{some} of {every}"
        said.setdefault(text, []).append(method.label)
    if not said:
        return "not known: no run ended well"
    usual = max(said, key=lambda text: len(said[text]))
    parts = [f"{text} in {', '.join(labels)}" for text, labels in said.items() if text != usual]
    return "; ".join([f"{usual} lose something", *parts])


def _trained(facts: Sequence[Facts]) -> str:
    one = facts[0]
    if not one.trained:
        return "none"
    return f"{one.trained:,} tokens{f' of {mixture(one)}' if one.shares else ''}"


def _evaluated(facts: Sequence[Facts]) -> str:
    one = facts[0]
    rest = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in protocol(one).items())
    return f"{heldout(one.heldout or {})}; {rest}"
