"""What sizes of dimensions that are never cut suggest: hidden channels, experts, their channels.

Guesses for names alone. In a small model no two sizes are the same number.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from effcompress.groups.tracing.anatomy import Anatomy
from effcompress.groups.tracing.draft import Draft
from effcompress.types import axis_kind

EXPERT, CHANNEL, HIDDEN = "expert", "expert_ffn", "hidden"
_PLAIN = ("vocab", "positions")
"""Kinds that no family cuts."""


def roles(draft: Draft, anatomy: Anatomy) -> Iterator[tuple[str, tuple[tuple[str, int], ...]]]:
    """Yields, for kinds that are never cut, the name that their size suggests, and how many times
    in a row an axis of that name is on the dimension (gate and up in one matrix: twice).
    """
    hidden = anatomy.hidden
    mixtures = _mixtures(anatomy)
    for axis in draft.axes:
        kind = axis_kind(axis.name)
        if "/" in axis.name or kind not in draft.kept or kind in _PLAIN:
            continue
        sizes = {
            anatomy.shapes[p][axis.dim] for p in anatomy.shapes if anatomy.pattern(p) == axis.param
        }
        alone = sum(
            1 for a in draft.axes if (a.param, a.dim, a.when) == (axis.param, axis.dim, axis.when)
        )
        if len(sizes) != 1 or alone > 1:
            continue
        size = next(iter(sizes))
        module = axis.param.rpartition(".")[0]
        experts = next((e for e in mixtures if module == e.module or axis.param in e.routers), None)
        if experts is not None and axis.dim == 0 and size == experts.count:
            yield kind, ((EXPERT, 1),)
        elif size == hidden and (HIDDEN in draft.kept or HIDDEN not in draft.kinds):
            yield kind, ((HIDDEN, 1),)
        elif experts is not None and module == experts.module and size % experts.channels == 0:
            yield kind, ((CHANNEL, size // experts.channels),)


@dataclass(frozen=True)
class Experts:
    """The experts of a layer: the module that holds them, how many they are and how wide, and the
    parameters of their router.
    """

    module: str
    count: int
    channels: int
    routers: tuple[str, ...]


def _mixtures(anatomy: Anatomy) -> list[Experts]:
    """The mixtures of a model (patterns): modules with matrices of three dimensions, of which one
    is the hidden size.
    """
    hidden = anatomy.hidden
    found: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for param, shape in anatomy.shapes.items():
        if len(shape) == 3 and hidden in shape[1:] and anatomy.layer_of(param) is not None:
            found[anatomy.pattern(param).rpartition(".")[0]].append(shape)
    mixtures = []
    for module, shapes in found.items():
        counts = {shape[0] for shape in shapes}
        if len(counts) == 1 and len(shapes) > 1:
            channels = min(n for shape in shapes for n in shape[1:] if n != hidden)
            beside = module.rpartition(".")[0]
            count = counts.pop()
            places = [(p, s) for p, s in anatomy.shapes.items() if s[0] == count and len(s) < 3]
            near = {anatomy.pattern(p) for p, _ in places if anatomy.pattern(p).startswith(beside)}
            mixtures.append(Experts(module, count, channels, tuple(sorted(near))))
    return mixtures


def mixture(anatomy: Anatomy) -> dict[str, str]:
    """The paths of router and experts, where there is one of each."""
    for found in _mixtures(anatomy):
        routers = [p for p in found.routers if p.endswith("weight")]
        if routers:
            return {"router": routers[0].rpartition(".")[0], "experts": found.module}
    return {}
