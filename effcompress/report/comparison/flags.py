"""Flags: what keeps a method from being compared with the others, or its numbers from being read as
they stand.

The usual value is that of most methods, one vote each; of equally many, the first given.
"""

import datetime
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from effcompress.record import readable
from effcompress.report.comparison.facts import CALIBRATION, Attempt, Facts, Method, Tokens
from effcompress.report.comparison.sizes import SAME_SIZE, Size, effective

SAME_DENSE = 1e-3
"""Relative difference of two perplexities of one dense model that rounding explains."""
SLACK = 2.0
"""Seconds by which two runs may seem to overlap: a record has whole seconds."""
SHOWN = 8
"""Digits of a hash that are shown."""
_OF_THE_TEXT = ("continuation",)
"""Keys of the protocol that perplexity does not depend on."""


@dataclass(frozen=True)
class Flag:
    """``words`` say what differs. A method with an ``unfair`` flag is shown, but not ranked."""

    kind: str
    words: str
    unfair: bool = True


Found = Iterator[tuple[str, Flag]]
Value = Hashable
NOT_RECORDED, DOES_NOT_APPLY = "not recorded", "does not apply"


@dataclass(frozen=True)
class Check:
    """Something that all methods must have in common. ``of`` gives it, or one of the two words
    above; ``words`` say how one differs from the usual. ``by_seed``: seeds may change it.
    """

    kind: str
    name: str
    of: Callable[[Facts], Value]
    words: Callable[[Facts, Facts], str]
    by_seed: bool = False
    unfair: bool = True


def short(hash: str | None) -> str:
    """Returns the first digits of a hash."""
    return hash[:SHOWN] if hash else "not recorded"


def heldout(some: Mapping[str, Tokens]) -> str:
    """``letters 93 tokens (hash 1f2e3d4c), ...``."""
    return ", ".join(f"{n} {t.number:,} tokens (hash {short(t.hash)})" for n, t in some.items())


def mixture(facts: Facts) -> str:
    """``letters 33.3 %, numbers 66.7 %``, and whether that follows losses."""
    parts = (f"{name} {readable.percent(part)}" for name, part in (facts.shares or {}).items())
    return ", ".join(parts) + ", then by held-out losses" * facts.follows_losses


def protocol(facts: Facts) -> dict[str, Any]:
    """How perplexity was measured."""
    return {k: v for k, v in (facts.protocol or {}).items() if k not in _OF_THE_TEXT}


def _items(mapping: Mapping[str, Any] | None) -> Value:
    """A mapping as something to compare and to count."""
    return tuple(sorted((k, str(v)) for k, v in (mapping or {}).items())) or NOT_RECORDED


def _heldout(facts: Facts) -> Value:
    found = facts.heldout or {}
    if not found or any(t.hash is None for t in found.values()):
        return NOT_RECORDED
    return tuple(sorted((name, t.hash, t.number) for name, t in found.items()))


def _other_heldout(one: Facts, usual: Facts) -> str:
    a, b = dict(one.heldout or {}), dict(usual.heldout or {})
    ours = {name: t for name, t in a.items() if b.get(name) != t}
    theirs = {name: t for name, t in b.items() if a.get(name) != t}
    return (
        f"was evaluated on other held-out text: {heldout(ours) or 'none'} instead of "
        f"{heldout(theirs) or 'none'}"
    )


def _calibration(facts: Facts) -> Value:
    if facts.measures is None:
        return NOT_RECORDED
    return facts.calibration if facts.measures == CALIBRATION else DOES_NOT_APPLY


def _texts(facts: Facts) -> str:
    """``4,096 (hash 1f2e3d4c)``."""
    said = sorted(facts.calibration, key=lambda t: (t.number, t.hash or ""))
    return ", ".join(f"{t.number:,} (hash {short(t.hash)})" for t in said) or "none"


def _instead(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> str:
    """``window 2048 instead of 512, ...``: where two mappings differ."""
    ours, theirs = ours or {}, theirs or {}
    return ", ".join(
        f"{key.replace('_', ' ')} {ours.get(key, 'not stated')} instead of "
        f"{theirs.get(key, 'not stated')}"
        for key in dict.fromkeys((*theirs, *ours))
        if ours.get(key) != theirs.get(key)
    )


def _mixture(facts: Facts) -> Value:
    if facts.shares is None:
        return NOT_RECORDED
    shares = sorted((name, round(share, 9)) for name, share in facts.shares.items())
    return (facts.follows_losses, *shares)


CHECKS = (
    Check(
        "checkpoint",
        "the weights it starts from",
        lambda f: f.source_hash or NOT_RECORDED,
        lambda a, b: (
            f"starts from other weights: {a.source} (hash {short(a.source_hash)}) instead of "
            f"{b.source} (hash {short(b.source_hash)})"
        ),
        by_seed=True,
    ),
    Check(
        "protocol",
        "its evaluation protocol",
        lambda f: _items(protocol(f)),
        lambda a, b: f"was evaluated by another protocol: {_instead(protocol(a), protocol(b))}",
    ),
    Check("held-out", "its held-out tokens", _heldout, _other_heldout),
    Check(
        "calibration",
        "its calibration tokens",
        _calibration,
        lambda a, b: f"was calibrated on other tokens: {_texts(a)} instead of {_texts(b)}",
        by_seed=True,
    ),
    Check(
        "training",
        "its training tokens",
        lambda f: f.trained,
        lambda a, b: f"was trained on {a.trained:,} tokens instead of {b.trained:,}",
    ),
    Check(
        "mixture",
        "its mixture of text",
        _mixture,
        lambda a, b: f"reads another mixture: {mixture(a)} instead of {mixture(b)}",
    ),
    Check(
        "tasks",
        "how it solved its tasks",
        lambda f: DOES_NOT_APPLY if f.tasks_after is None else _items(f.tasks_protocol),
        lambda a, b: (
            "solved its tasks by another protocol, "
            f"{_instead(a.tasks_protocol, b.tasks_protocol)}: do not compare accuracies"
        ),
        unfair=False,
    ),
    Check(
        "environment",
        "where it ran",
        lambda f: _items(f.environment),
        lambda a, b: (
            f"ran elsewhere ({_instead(a.environment, b.environment)}): do not compare times and "
            "memory"
        ),
        unfair=False,
    ),
)


def flags(methods: Sequence[Method], sizes: Sequence[Size]) -> Found:
    """Yields (label, flag): what is unusual, then other sizes, then what a method's runs say."""
    yield from _differences(methods)
    yield from _other_size(methods, sizes)
    yield from _other_seeds(methods)
    yield from _together(methods)
    for method in methods:
        if any(f.on_the_way for f in method.done):
            said = (
                "is a size on the way of a run: its wall time is not measured apart from the run's"
            )
            yield method.label, Flag("on the way", said, unfair=False)
        # Weights that are zero take as much memory and time as any other.
        if most := max((f.zeroed for f in method.done), default=0):
            said = (
                f"has {most:,} weights that are zero but still there: file, memory and speed are "
                f"those of {max(f.params for f in method.done):,} parameters"
            )
            yield method.label, Flag("zeroed", said, unfair=False)
        reasons = [f"seed {a.seed}: {a.reason}" for a in method.attempts if not a.done]
        if reasons and method.done:
            said = f"{len(reasons)} of {len(method.attempts)} runs ({'; '.join(reasons)})"
            yield method.label, Flag("failed", f"has no result of {said}", unfair=False)


def _differences(methods: Sequence[Method]) -> Found:
    """Flags for everything in which finished runs of a method differ from the usual."""
    missing: dict[str, list[str]] = {}
    flagged: dict[str, set[str]] = {}
    for check in CHECKS:
        for label, flag in _unusual(methods, check, missing):
            flagged.setdefault(label, set()).add(check.kind)
            yield label, flag
    yield from _other_text(methods, flagged)
    yield from _other_dense(methods, flagged)
    for label, names in missing.items():
        said = f"does not record {', '.join(names)}, so that cannot be checked"
        yield label, Flag("not recorded", said, unfair=False)


def _unusual(methods: Sequence[Method], check: Check, missing: dict[str, list[str]]) -> Found:
    everything = [(m.label, facts) for m in methods for facts in m.done]
    said: set[str] = set()
    for label, facts in everything:
        if label in said:
            continue
        value = check.of(facts)
        if value == NOT_RECORDED:
            said.add(label)
            missing.setdefault(label, []).append(check.name)
        if value in (NOT_RECORDED, DOES_NOT_APPLY):
            continue
        peers = [(n, f) for n, f in everything if not check.by_seed or f.seed == facts.seed]
        if len({n for n, _ in peers}) < 2:  # no other has this seed: all of theirs will do
            peers = everything
        usual = _usual(check.of, peers)
        if usual is not None and check.of(usual) != value:
            theirs = [check.of(f) for n, f in peers if n != label]
            if peers is everything and check.by_seed and value in theirs:
                continue
            said.add(label)
            yield label, Flag(check.kind, check.words(facts, usual), check.unfair)


def _usual(of: Callable[[Facts], Value], peers: Sequence[tuple[str, Facts]]) -> Facts | None:
    """Facts with the value that most methods have: one vote for each method."""
    votes = Counter[Value]()
    first: dict[Value, Facts] = {}
    for label, value in dict.fromkeys((label, of(facts)) for label, facts in peers):
        if value not in (NOT_RECORDED, DOES_NOT_APPLY):
            votes[value] += 1
            first.setdefault(value, next(f for n, f in peers if n == label and of(f) == value))
    return first[votes.most_common(1)[0][0]] if votes else None


def _other_text(methods: Sequence[Method], flagged: Mapping[str, set[str]]) -> Found:
    """Other text in the same amounts, by the hashes of all text, if nothing else changes them."""
    changes = {"training", "mixture", "held-out", "protocol"}
    alike = [m for m in methods if not changes & flagged.get(m.label, set())]

    def words(one: Facts, usual: Facts) -> str:
        ours, theirs = one.text or {}, usual.text or {}
        named = ", ".join(name for name in ours if ours[name] != theirs.get(name))
        return f"reads other text in {named}"

    yield from _unusual(alike, Check("text", "its text", lambda f: _items(f.text), words), {})


def _other_dense(methods: Sequence[Method], flagged: Mapping[str, set[str]]) -> Found:
    """One dense model, one protocol, one text: every run must have measured the same."""
    changes = {"checkpoint", "protocol", "held-out"}
    seen: dict[int, tuple[str, Facts]] = {}
    for m in methods:
        if changes & flagged.get(m.label, set()):
            continue
        for facts in m.done:
            label, first = seen.setdefault(facts.seed, (m.label, facts))
            moved = [
                f"{domain} {readable.decimal(value)} instead of {readable.decimal(had)}"
                for domain, value in (facts.before or {}).items()
                if (had := (first.before or {}).get(domain)) is not None
                and abs(value / had - 1) > SAME_DENSE
            ]
            if moved:
                said = f"measured another perplexity of the dense model than {label}"
                yield m.label, Flag("dense", f"{said}: {', '.join(moved)}")
                break


def _other_size(methods: Sequence[Method], sizes: Sequence[Size]) -> Found:
    """Flags for methods that are larger or smaller than their size, or alone at it."""
    by_label = {m.label: m for m in methods}
    for size in sizes:
        for label in size.labels:
            done = by_label[label].done
            off = [effective(f) / size.params - 1 for f in done if size.params]
            most = max(off, key=abs, default=0.0)
            if abs(most) > SAME_SIZE:
                amount = f"{readable.percent(abs(most))} {'more' if most > 0 else 'fewer'}"
                said = f"has {amount} than the {size.words} that it is compared at"
                yield label, Flag("parameters", said)
            if len(sizes) > 1 and len(size.labels) == 1 and done:
                yield label, Flag("alone", "has a size that no other method has", unfair=False)


def _other_seeds(methods: Sequence[Method]) -> Found:
    seeds = {m.label: tuple(sorted({a.seed for a in m.attempts})) for m in methods}
    for label, own in seeds.items():
        usual = Counter(seeds.values()).most_common(1)[0][0]
        if own != usual:
            ours, theirs = (", ".join(map(str, some)) for some in (own, usual))
            yield label, Flag("seeds", f"has seeds {ours}; the others {theirs}", unfair=False)


def _together(methods: Sequence[Method]) -> Found:
    """Flags for methods whose runs were under way at the same time as others."""
    spans = [(m.label, span) for m in methods for a in m.attempts if (span := _span(a))]
    overlapping = {
        label
        for (one, (start, stop)), (other, (start_, stop_)) in combinations(spans, 2)
        if start < stop_ - SLACK and start_ < stop - SLACK
        for label in (one, other)
    }
    said = "ran at the same time as others: do not compare times"
    for method in methods:
        if method.label in overlapping:
            yield method.label, Flag("together", said, unfair=False)


def _span(attempt: Attempt) -> tuple[float, float] | None:
    """When a run began and ended, in seconds."""
    facts = attempt.facts
    if facts is None or not facts.started or facts.seconds is None:
        return None
    begin = datetime.datetime.fromisoformat(facts.started).timestamp()
    return begin, begin + facts.seconds
