"""Couplings -> named axes. Pure data without torch; ``verify`` proves or refutes the result.

Couplings on the same dimensions are units of one axis. An axis within a layer is tried as channels
of the feed-forward (one position each), then as heads (``head_dim`` neighbours each); the proofs
decide. A dimension that no axis explains gets a name of its own and is never cut.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from effcompress.groups.tracing.anatomy import Anatomy, Coupled, Place
from effcompress.groups.tracing.draft import Draft
from effcompress.types import Axis

HIDDEN, ATTENTION, QUERY, FFN = "hidden", "attention", "query", "ffn"


class Irregular(Exception):
    """A dimension that is not a sequence of equally long units."""


@dataclass(frozen=True)
class Candidate:
    """A possible axis: its couplings, in order, by layer (``None``: outside of layers or across
    them), of which ``per_unit`` neighbours make a unit.
    """

    kind: str
    per_unit: int
    sets: Mapping[int | None, tuple[Coupled, ...]]

    def units(self) -> Iterator[tuple[int | None, int, Coupled]]:
        """Yields layer, number of the unit, and a coupling that belongs to it."""
        for layer, sets in self.sets.items():
            for k, coupled in enumerate(sets):
                yield layer, k // self.per_unit, coupled


class Run(NamedTuple):
    """A stretch of a dimension: units of an axis, ``length`` positions each; kind None: no axis."""

    kind: str | None
    length: int


def candidates(
    coupled: Iterable[Coupled], matrices: frozenset[Place], anatomy: Anatomy
) -> Iterator[tuple[Candidate, ...]]:
    """Yields for every axis that was found the candidates to try, in order."""
    found: dict[frozenset[tuple[str, int, int]], dict[int | None, list[Coupled]]] = {}
    for one in coupled:
        held = {place: at for place, at in one.items() if place in matrices}
        if len({param for param, _ in held if len(anatomy.shapes[param]) > 1}) < 2:
            continue  # a single matrix is coupled to nothing
        layers = {anatomy.layer_of(param) for param, _ in held}
        layer = next(iter(layers)) if len(layers) == 1 else None
        look = frozenset((anatomy.pattern(p), dim, len(at)) for (p, dim), at in held.items())
        found.setdefault(look, {}).setdefault(layer, []).append(one)
    everywhere = set(range(anatomy.layers))
    for look, by_layer in found.items():
        sets = {layer: _ordered(held, anatomy) for layer, held in by_layer.items()}
        if None in sets and (anatomy.embedding, 1) in {(p, dim) for p, dim, _ in look}:
            yield (Candidate(HIDDEN, 1, sets),)
        elif set(sets) == everywhere and len({len(s) for s in sets.values()}) == 1:
            as_channels = Candidate(FFN, 1, sets)
            head = anatomy.head_dim or 0
            heads = head and len(sets[0]) % head == 0
            yield (as_channels, Candidate(ATTENTION, head, sets)) if heads else (as_channels,)


def _ordered(sets: Sequence[Coupled], anatomy: Anatomy) -> tuple[Coupled, ...]:
    """Sorts couplings by position, on the matrix dimension where each has the fewest positions."""
    wide = [place for place in sets[0] if len(anatomy.shapes[place[0]]) > 1]
    narrow = min(wide, key=lambda place: len(sets[0][place]))
    return tuple(sorted(sets, key=lambda one: min(one.get(narrow, (0,)))))


def assemble(chosen: Sequence[Candidate], matrices: frozenset[Place], anatomy: Anatomy) -> Draft:
    """Writes the chosen candidates as axes on every dimension of every parameter, with the sizes of
    the small model.

    Raises Irregular naming a dimension that cannot be written so.
    """
    labels: dict[Place, dict[int, tuple[str, int]]] = defaultdict(dict)
    torn: set[Place] = set()
    totals: dict[str, int] = {}
    for candidate in chosen:
        for _, unit, coupled in candidate.units():
            totals[candidate.kind] = max(totals.get(candidate.kind, 0), unit + 1)
            for place, positions in coupled.items():
                for position in positions:
                    mine = (candidate.kind, unit)
                    if labels[place].setdefault(position, mine) != mine:
                        torn.add(place)
    per_unit = {"one": 1} | ({"head": anatomy.head_dim} if anatomy.head_dim else {})
    axes: list[Axis] = []
    for param, shape in anatomy.shapes.items():
        if anatomy.layer_of(param):
            continue  # layer 0 stands for all layers; ``verify`` checks the others
        for dim, size in enumerate(shape):
            place = (param, dim)
            runs = _runs(labels[place], size, place, None if place in torn else totals, matrices)
            axes += _named(runs, place, anatomy, per_unit)
    aliases = anatomy.aliases
    draft = Draft(anatomy.model_type, anatomy.layer, tuple(axes), (), per_unit, aliases=aliases)
    return replace(draft, kept=draft.kinds)


def _runs(
    labels: Mapping[int, tuple[str, int]],
    size: int,
    place: Place,
    totals: Mapping[str, int] | None,
    matrices: frozenset[Place],
) -> list[Run]:
    try:
        if totals is None:
            raise Irregular(f"{place[0]}: two units own one position of dimension {place[1]}")
        return list(_parse([labels.get(position) for position in range(size)], totals, place))
    except Irregular:
        if place in matrices:
            raise
        return [Run(None, size)]  # a vector that all units share, such as a gain per head channel


def _parse(
    labels: Sequence[tuple[str, int] | None], totals: Mapping[str, int], place: Place
) -> Iterator[Run]:
    stretches = [(label, len(list(run))) for label, run in itertools.groupby(labels)]
    while stretches:
        first, length = stretches[0]
        kind = first[0] if first else None
        wanted = [((kind, u), length) for u in range(totals[kind])] if kind else stretches[:1]
        if stretches[: len(wanted)] != wanted:
            raise Irregular(
                f"{place[0]}: dimension {place[1]} is no row of units of equal size ('{kind}')"
            )
        yield Run(kind, length)
        del stretches[: len(wanted)]


def _named(
    runs: Sequence[Run], place: Place, anatomy: Anatomy, per_unit: dict[str, int]
) -> Iterator[Axis]:
    param, dim = place
    pattern = anatomy.pattern(param)
    suffix = ".{i}" if "{i}" in pattern else ""
    for k, (kind, length) in enumerate(runs):
        if kind is None:
            rest = f"_{k}" if len(runs) > 1 else ""
            yield Axis(pattern, dim, _kept_name(place, length, anatomy, suffix, rest))
        elif kind == HIDDEN and length == 1:
            yield Axis(pattern, dim, kind)
        elif kind == FFN and length == 1:
            yield Axis(pattern, dim, kind + suffix)
        else:
            yield Axis(pattern, dim, *_heads(kind, length, place, anatomy, per_unit))


def _heads(
    kind: str, length: int, place: Place, anatomy: Anatomy, per_unit: dict[str, int]
) -> tuple[str, str]:
    """Axis name and ``positions_per_unit`` of a run of heads."""
    head = anatomy.head_dim or 0
    times, rest = divmod(length, head) if head else (0, 1)
    if rest or kind != ATTENTION:
        raise Irregular(f"{place[0]}: units of {length} positions on dimension {place[1]}")
    if times == 1:
        return f"{kind}.{{i}}", "head"
    if times == anatomy.queries:
        return f"{kind}.{{i}}/{QUERY}.{{i}}", "head"
    per_unit[f"head_{times}"] = length
    return f"{kind}.{{i}}", f"head_{times}"


def _kept_name(place: Place, size: int, anatomy: Anatomy, suffix: str, rest: str) -> str:
    """Names a dimension that is never cut; the same for a weight and its bias."""
    if not rest:
        for kind, known in anatomy.sizes.items():
            if size == known:
                return kind
    param, dim = place
    module, _, leaf = anatomy.pattern(param).rpartition(".")
    inside = module.removeprefix(anatomy.layer + ".")
    own = "" if leaf in ("weight", "bias") and dim == 0 else f"_{leaf}"
    return f"{inside}{own}_{dim}{rest}".replace(".", "_") + suffix
