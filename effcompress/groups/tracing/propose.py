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
from effcompress.groups.tracing.draft import Draft, own_length, when_of
from effcompress.types import Axis

HIDDEN, ATTENTION, QUERY, FFN = "hidden", "attention", "query", "ffn"
KINDS = (HIDDEN, ATTENTION, QUERY, FFN)


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
    own: bool = False
    """Whether a head's stretches have lengths of their own, not multiples of one width."""

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
    for look, by_layer in found.items():
        sets = {layer: _ordered(held, anatomy) for layer, held in by_layer.items()}
        if None in sets:
            if (anatomy.embedding, 1) in {(p, dim) for p, dim, _ in look}:
                yield (Candidate(HIDDEN, 1, sets),)
        elif plain := _whole_kinds(sets, anatomy):
            as_channels = Candidate(FFN, 1, plain)
            head = anatomy.head_dim or 0
            heads = head and all(len(held) % head == 0 for held in plain.values())
            yield (as_channels, Candidate(ATTENTION, head, plain)) if heads else (as_channels,)


def returns(candidate: Candidate, anatomy: Anatomy) -> bool:
    """Whether a matrix leads from the candidate's positions back to the residual stream. In a small
    model no other size is that of the stream.
    """
    hidden = anatomy.hidden
    places = {place for sets in candidate.sets.values() for place in sets[0]}
    return any(dim == 1 and anatomy.shapes[param][0] == hidden for param, dim in places)


def stream_by_size(anatomy: Anatomy, taken: Iterable[Place]) -> Candidate:
    """Returns the residual stream where no coupling led through it (routed experts stop the
    tracing): every dimension as long as the embedding is wide, except those in ``taken``. Only a
    guess, for the proofs to decide; in a small model no other size is the same number.
    """
    hidden, known = anatomy.hidden, set(taken)
    places = [
        (param, dim)
        for param, shape in anatomy.shapes.items()
        for dim, size in enumerate(shape)
        if size == hidden and (param, dim) not in known
    ]
    sets = tuple(dict.fromkeys(places, (k,)) for k in range(hidden))
    return Candidate(HIDDEN, 1, {None: sets})


def channels_by_size(anatomy: Anatomy, taken: Iterable[Place]) -> Iterator[Candidate]:
    """Yields feed-forward channels that no coupling led to, one candidate per module that has one
    projection back to the residual stream, from as many channels as the others make of it, or half
    as many (gate and up in one matrix, one behind the other). Modules with a dimension in ``taken``
    are passed over. Only a guess, for the proofs to decide.
    """
    known = set(taken)
    found: dict[str, dict[int | None, tuple[Coupled, ...]]] = defaultdict(dict)
    for layer in range(anatomy.layers):
        for path, places in _projections(anatomy, layer).items():
            sizes = {place: anatomy.shapes[place[0]][place[1]] for place in places}
            back = [size for (_, dim), size in sizes.items() if dim == 1]
            if len(back) != 1 or len(places) < 2 or not known.isdisjoint(places):
                continue
            if set(sizes.values()) <= {back[0], 2 * back[0]}:
                biases = {_bias(p): size for p, size in sizes.items() if p[1] == 0}
                sizes |= {p: size for p, size in biases.items() if p[0] in anatomy.shapes}
                found[anatomy.pattern(f"{path}.")][layer] = tuple(
                    {place: tuple(range(k, size, back[0])) for place, size in sizes.items()}
                    for k in range(back[0])
                )
    for sets in found.values():
        if whole := _whole_kinds(sets, anatomy):
            yield Candidate(FFN, 1, whole)


def _projections(anatomy: Anatomy, layer: int) -> dict[str, list[Place]]:
    """Module of a layer -> the sides of its linear layers that are not the residual stream."""
    hidden = anatomy.hidden
    inside: dict[str, list[Place]] = defaultdict(list)
    for param, shape in anatomy.shapes.items():
        if anatomy.layer_of(param) == layer and param.endswith(".weight") and len(shape) == 2:
            inside[param.rsplit(".", 2)[0]].append((param, 1 if shape[0] == hidden else 0))
    return inside


def _bias(place: Place) -> Place:
    return f"{place[0].removesuffix('weight')}bias", 0


def heads_by_size(anatomy: Anatomy, taken: Iterable[Place]) -> Iterator[Candidate]:
    """Yields heads that no coupling led to, two candidates per module with projections: every
    output that KV heads divide belongs to them in equal stretches, and so does the input of the
    projection back to the residual stream. That covers gates beside queries, and (the second
    candidate) latent attention, whose queries, keys and values have widths of their own. Modules
    with a dimension in ``taken`` are passed over. Only a guess, for the proofs to decide.
    """
    known = set(taken)
    found: dict[str, dict[int | None, tuple[Coupled, ...]]] = defaultdict(dict)
    for layer in range(anatomy.layers):
        for path, places in _projections(anatomy, layer).items():
            held = [p for p in places if anatomy.shapes[p[0]][p[1]] % anatomy.heads == 0]
            back = [p for p in held if p[1] == 1]
            free = known.isdisjoint(places)
            if free and anatomy.heads > 1 and len(back) == 1 and len(held) > 2:
                found[anatomy.pattern(f"{path}.")][layer] = tuple(_equal_parts(held, anatomy))
    for sets in found.values():
        if whole := _whole_kinds(sets, anatomy):
            yield Candidate(ATTENTION, 1, whole)
            yield Candidate(ATTENTION, 1, whole, own=True)


def _equal_parts(places: Sequence[Place], anatomy: Anatomy) -> Iterator[Coupled]:
    """One coupling per KV head: its stretch of every place, and of the bias with it."""
    biases = [_bias(place) for place in places if place[1] == 0]
    everywhere = [*places, *(place for place in biases if place[0] in anatomy.shapes)]
    for k in range(anatomy.heads):
        yield {
            (param, dim): tuple(range(k * length, (k + 1) * length))
            for param, dim in everywhere
            for length in [anatomy.shapes[param][dim] // anatomy.heads]
        }


def _whole_kinds(
    sets: Mapping[int | None, tuple[Coupled, ...]], anatomy: Anatomy
) -> dict[int | None, tuple[Coupled, ...]]:
    """The couplings of those kinds of layers of which every layer has equally many."""
    found: dict[int | None, tuple[Coupled, ...]] = {}
    for look in anatomy.first():
        alike = [i for i, other in enumerate(anatomy.looks) if other == look]
        if len({len(sets.get(i, ())) for i in alike}) == 1 and alike[0] in sets:
            found |= {i: sets[i] for i in alike}
    return found


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
    totals: dict[int | None, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for candidate in chosen:
        for layer, unit, coupled in candidate.units():
            totals[layer][candidate.kind] = max(totals[layer][candidate.kind], unit + 1)
            for place, positions in coupled.items():
                for position in positions:
                    mine = (candidate.kind, unit)
                    if labels[place].setdefault(position, mine) != mine:
                        torn.add(place)
    own = any(candidate.own for candidate in chosen)
    per_unit = {"one": 1} | ({"head": anatomy.head_dim} if anatomy.head_dim else {})
    numbers = {layer: kind for kind, layer in enumerate(anatomy.first().values())}
    found: dict[str, dict[int | None, list[Axis]]] = defaultdict(dict)
    for param, shape in anatomy.shapes.items():
        layer = anatomy.layer_of(param)
        if layer is not None and layer not in numbers:
            continue  # the first of a kind stands for all; ``verify`` checks the others
        number = None if layer is None else numbers[layer]
        named = found[anatomy.pattern(param)].setdefault(number, [])
        for dim, size in enumerate(shape):
            place = (param, dim)
            units = None if place in torn else {**totals[None], **totals[layer]}
            runs = _runs(labels[place], size, place, units, matrices)
            named += _named(runs, place, anatomy, per_unit, own=own)
    looks = tuple(anatomy.first())
    draft = Draft(
        anatomy.model_type,
        anatomy.layer,
        tuple(axis for by_kind in found.values() for axis in _by_kind(by_kind, len(looks))),
        (),
        per_unit,
        aliases=anatomy.aliases,
        looks=looks,
        layers=tuple(map(looks.index, anatomy.looks)),
    )
    return replace(draft, kept=draft.kinds)


def _by_kind(found: Mapping[int | None, Sequence[Axis]], kinds: int) -> Iterator[Axis]:
    """The axes of one parameter, each once for all kinds of layers (numbers; None: outside of the
    layers) in which it is the same.
    """
    alike: dict[tuple[Axis, ...], list[int]] = defaultdict(list)
    for kind, axes in found.items():
        alike[tuple(axes)] += [] if kind is None else [kind]
    for axes, of in alike.items():
        everywhere = len(of) in (0, kinds)
        for axis in axes:
            yield axis if everywhere else replace(axis, when=when_of(of))


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
    runs: Sequence[Run], place: Place, anatomy: Anatomy, per_unit: dict[str, int], *, own: bool
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
            yield Axis(pattern, dim, *_heads(kind, length, place, anatomy, per_unit, own=own))


def _heads(
    kind: str, length: int, place: Place, anatomy: Anatomy, per_unit: dict[str, int], *, own: bool
) -> tuple[str, str]:
    """Axis name and ``positions_per_unit`` of a run of heads."""
    head = anatomy.head_dim or 0
    times, rest = divmod(length, head) if head else (0, 1)
    if kind != ATTENTION:
        raise Irregular(f"{place[0]}: units of {length} positions on dimension {place[1]}")
    if (rest or own) and length * anatomy.heads == anatomy.shapes[place[0]][place[1]]:
        name = own_length(anatomy.pattern(place[0]), place[1])
        per_unit[name] = length
        return f"{kind}.{{i}}", name
    if rest:
        raise Irregular(f"{place[0]}: units of {length} positions on dimension {place[1]}")
    if times == 1:
        return f"{kind}.{{i}}", "head"
    slots, more = divmod(times, anatomy.queries)
    if anatomy.queries > 1 and not more:  # a query head, or one with its gate
        name = "head" if slots == 1 else f"head_{slots}"
        per_unit[name] = slots * head
        return f"{kind}.{{i}}/{QUERY}.{{i}}", name
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
