"""The seven lines above the table: what most methods have in common, and which differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from effcompress.report import words
from effcompress.report.comparison import flags
from effcompress.report.comparison.facts import CALIBRATION, NOTHING, TRAINING, Facts, Method
from effcompress.report.comparison.flags import Flag, short
from effcompress.report.comparison.sizes import SAME_SIZE, Size

Found = Mapping[str, Sequence[Flag]]


def conditions(
    methods: Sequence[Method], sizes: Sequence[Size], found: Found
) -> tuple[tuple[str, str], ...]:
    """Returns (title, words): checkpoint, calibration, parameters, layers, recovery, evaluation,
    seeds. ``found``: label -> flags.
    """
    return (
        ("checkpoint", _common(methods, found, _checkpoint, "checkpoint")),
        ("calibration", _calibration(methods, found)),
        ("parameters", _parameters(sizes, found)),
        ("layers", _layers(methods)),
        ("recovery", _common(methods, found, _recovery, "training", "mixture", "text")),
        ("evaluation", _common(methods, found, _evaluation, "protocol", "held-out", "dense")),
        ("seeds", _seeds(methods, found)),
    )


def _flagged(found: Found, *kinds: str) -> list[str]:
    """Labels with a flag of one of the kinds."""
    return [label for label, some in found.items() if any(f.kind in kinds for f in some)]


def _common(
    methods: Sequence[Method],
    found: Found,
    say: Callable[[Sequence[Facts]], str],
    *kinds: str,
) -> str:
    """``say`` on the methods without a flag of these kinds, and the names of those with one."""
    other = _flagged(found, *kinds)
    usual = [f for m in methods if m.label not in other for f in m.done]
    return (say(usual) if usual else "not known: no run ended well") + _except(other)


def _except(labels: Sequence[str]) -> str:
    return f"; otherwise: {', '.join(labels)}" if labels else ""


def _checkpoint(facts: Sequence[Facts]) -> str:
    names = dict.fromkeys(f.source for f in facts)
    hashes = _by_seed({f.seed: short(f.source_hash) for f in facts})
    return f"{_few(list(names))}, hash of the weights {hashes}"


def _few(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and by the seed)"


def _by_seed(values: Mapping[int, str]) -> str:
    """One value, or one for each seed."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} (seed {seed})" for seed, value in sorted(values.items()))


def _calibration(methods: Sequence[Method], found: Found) -> str:
    other = _flagged(found, "calibration")
    parts: list[str] = []
    done = [(m.label, f) for m in methods if m.label not in other for f in m.done]
    taken = {f.seed: f for _, f in done if f.measures == CALIBRATION}
    if taken:
        amount = max(sum(t.number for t in f.calibration) for f in taken.values())
        hashes = {
            seed: "+".join(sorted(short(t.hash) for t in f.calibration))
            for seed, f in taken.items()
        }
        parts.append(f"{amount:,} tokens, hash {_by_seed(hashes)}")
    said = {
        TRAINING: "measured on the text of training: {}",
        NOTHING: "none needed: {}",
        None: "not recorded: {}",
    }
    for measures, text in said.items():
        if labels := dict.fromkeys(n for n, f in done if f.measures == measures):
            parts.append(text.format(", ".join(labels)))
    return "; ".join(parts or ["not known: no run ended well"]) + _except(other)


def _parameters(sizes: Sequence[Size], found: Found) -> str:
    other = _flagged(found, "parameters")
    parts = [size.words.removesuffix(" parameters") for size in sizes if size.params]
    if not parts:
        return "not known"
    tolerance = f"within {SAME_SIZE:.1%}".replace("%", " %")
    return f"{words.join(parts)}, {tolerance}{_except(sorted(other))}"


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


def _recovery(facts: Sequence[Facts]) -> str:
    one = facts[0]
    if not one.trained:
        return "none"
    mixture = f" of {flags.mixture(one.shares)}" if one.shares else ""
    return f"{one.trained:,} tokens{mixture}"


def _evaluation(facts: Sequence[Facts]) -> str:
    one = facts[0]
    rest = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in flags.protocol(one).items())
    return f"{flags.tokens(one.heldout or {})}; {rest}"


def _seeds(methods: Sequence[Method], found: Found) -> str:
    other = _flagged(found, "seeds")
    usual = [m for m in methods if m.label not in other]
    seeds = sorted({a.seed for m in usual for a in m.attempts})
    return ", ".join(map(str, seeds)) + _except(other)
