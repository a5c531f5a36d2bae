"""Couplings found by torch-pruning's dependency graph, as sets of positions. The only file that
imports it.

torch-pruning may name positions that do not exist, and on some models it never returns. So every
query has a time limit, an answer with an impossible position is discarded, and the rest is a
proposal that ``verify`` has to prove.

It runs in a process of its own: the time limit is a signal, and the dependency graph keeps a
reference to every weight.
"""

import copy
import gc
import itertools
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effcompress.errors import CoverageError
from effcompress.groups.tracing.anatomy import Coupled, Place

SECONDS_PER_QUERY = 0.5
"""CPU seconds. An answer takes a millisecond on a small model; a query that takes this long does
not terminate.
"""


class TracingTimeout(Exception):
    """A query that exceeded its time limit."""


@dataclass(frozen=True)
class Trace:
    """The couplings, one per smallest set of positions, and the modules that gave none."""

    coupled: tuple[Coupled, ...]
    silent: Mapping[str, str]
    """Path of a module -> why its output rows could not be traced."""
    matrices: frozenset[Place]
    """Dimensions of linear layers and embeddings, which couplings run through. Other parameters
    (gains, biases) follow them.
    """


class Graph:
    """torch-pruning's dependency graph of a small model."""

    def __init__(self, module: nn.Module, ids_BT: torch.Tensor) -> None:
        """Builds the graph by a forward pass. Raises what the model or torch-pruning raise."""
        from torch_pruning.dependency import DependencyGraph  # noqa: TID251

        self.module = module
        # A tied weight has one name; the modules that share it are nodes of their own.
        self._names = {id(p): name for name, p in module.named_parameters()}
        self._shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        self._graph: Any = DependencyGraph()
        with warnings.catch_warnings(action="ignore"), _traceable_operations():
            self._graph.build_dependency(
                module,
                {"input_ids": ids_BT, "use_cache": False},
                output_transform=lambda output: output.logits,
                verbose=False,
            )
        self.matrices = frozenset(
            place
            for _, child, _ in self.sources()
            for side in ("out", "in")
            for place in self._places(child, side)
        )

    def sources(self) -> Iterator[tuple[str, nn.Module, int]]:
        """Yields path, module and output width of every linear layer and embedding in the graph."""
        for path, child in self.module.named_modules():
            if child in self._graph.module2node and isinstance(child, nn.Linear | nn.Embedding):
                yield path, child, child.weight.shape[self.rows(child)[1]]

    def rows(self, source: Any) -> Place:
        """Parameter and dimension of the outputs of a module of ``sources``."""
        return next(self._places(source, "out"))

    def together(self, source: nn.Module, position: int) -> Coupled:
        """Asks what is coupled to this output of a module of ``sources``.

        Raises TracingTimeout, ValueError for an impossible position, or what torch-pruning raises.
        """
        pruner = self._graph.get_pruner_of_module(source)
        with warnings.catch_warnings(action="ignore"), _at_most(SECONDS_PER_QUERY):
            group = self._graph.get_pruning_group(source, pruner.prune_out_channels, [position])
        found: dict[Place, set[int]] = {}
        for dependency, indices in group:
            node = dependency.target
            which = "in" if "in_channels" in dependency.handler.__name__ else "out"
            for place in self._places(node.module, which, node.pruning_dim):
                _add(found, {place: indices})
        return {place: at for place, some in found.items() if (at := self._possible(place, some))}

    def _places(self, module: Any, side: str, dim: int = -1) -> Iterator[Place]:
        if isinstance(module, nn.Parameter):
            if id(module) in self._names:
                yield self._names[id(module)], dim % module.dim()
        elif isinstance(module, nn.Linear):
            yield self._names[id(module.weight)], 0 if side == "out" else 1
            if side == "out" and module.bias is not None:
                yield self._names[id(module.bias)], 0
        elif isinstance(module, nn.Embedding):
            yield self._names[id(module.weight)], 1
        elif isinstance(module, nn.Module):  # norms with a module of their own
            for p in module.parameters(recurse=False):
                if p.dim() == 1:
                    yield self._names[id(p)], 0

    def _possible(self, place: Place, positions: Iterable[int]) -> tuple[int, ...]:
        """Sorts the positions. torch-pruning misreads some vectors (a gain per head channel, the
        same for all heads): those are left out.
        """
        size = self._shapes[place[0]][place[1]]
        if all(0 <= position < size for position in positions):
            return tuple(sorted(positions))
        if place not in self.matrices:
            return ()
        raise Misread(
            "what it is coupled to cannot be told: torch-pruning names more channels of "
            f"{place[0]} than there are"
        )


class Misread(Exception):
    """An answer of torch-pruning that cannot be right."""


def trace(
    module: nn.Module, ids_BT: torch.Tensor, tell: Callable[[str], None] = lambda _: None
) -> Trace:
    """Queries every output that no earlier answer named, and merges answers with a position of a
    matrix in common. ``tell`` gets the path of each module before it is queried.

    Raises CoverageError when no graph can be built.
    """
    try:
        # A copy, because a graph that cannot be built leaves its hooks behind.
        graph = Graph(copy.deepcopy(module), ids_BT)
    except ImportError as error:
        raise CoverageError(
            "an architecture that is not declared is traced with torch-pruning, which is missing",
            fix="pip install torch-pruning",
        ) from error
    except Exception as error:  # noqa: BLE001 (it has no errors of its own)
        # Guesses from sizes, and their proofs, need no graph.
        linear = [f"{path}.weight" for path, m in module.named_modules() if type(m) is nn.Linear]
        places = frozenset((name, dim) for name in linear for dim in (0, 1))
        return Trace((), {type(module).__name__: f"no graph: {_first_line(error)}"}, places)
    answers: list[Coupled] = []
    named: dict[Place, set[int]] = {}
    silent: dict[str, str] = {}
    for path, source, width in graph.sources():
        tell(path)
        try:
            rows = graph.rows(source)
            for k in range(width):
                if k not in named.get(rows, ()):
                    answers.append(graph.together(source, k))
                    _add(named, answers[-1])
        except TracingTimeout:
            silent[path] = "torch-pruning does not come back"
        except Misread as error:
            silent[path] = str(error)
        except Exception as error:  # noqa: BLE001 (it has no errors of its own)
            silent[path] = f"torch-pruning cannot follow it: {_first_line(error)}"
    return Trace(tuple(_merged(answers, graph.matrices)), silent, graph.matrices)


def _add(found: dict[Place, set[int]], more: Mapping[Place, Iterable[int]]) -> None:
    for place, positions in more.items():
        found.setdefault(place, set()).update(positions)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _merged(answers: Sequence[Coupled], matrices: frozenset[Place]) -> Iterator[Coupled]:
    """Merges answers that have a position of a matrix in common (union-find); positions of other
    parameters are carried along but merge nothing.
    """
    owner: dict[tuple[Place, int], int] = {}
    parent = list(range(len(answers)))

    def root(k: int) -> int:
        while parent[k] != k:
            # Path halving keeps the trees flat.
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for k, answer in enumerate(answers):
        for place in answer.keys() & matrices:
            for position in answer[place]:
                parent[root(k)] = root(owner.setdefault((place, position), k))
    merged: dict[int, dict[Place, set[int]]] = {}
    for k, answer in enumerate(answers):
        _add(merged.setdefault(root(k), {}), answer)
    for held in merged.values():
        yield {place: tuple(sorted(positions)) for place, positions in held.items()}


class _Inside(torch.autograd.Function):
    """A concatenation that torch-pruning treats as an element-wise operation."""

    @staticmethod
    def forward(ctx: Any, dim: int, *parts: torch.Tensor) -> torch.Tensor:
        return _CAT(parts, dim)


_CAT, _CHUNK, _SPLIT = torch.cat, torch.Tensor.chunk, torch.Tensor.split


def _cat(parts: Any, dim: int = 0, **more: Any) -> torch.Tensor:
    parts = tuple(parts)
    if not more and parts[0].dim() == 4 and dim % 4 == 3:
        return _Inside.apply(dim, *parts)
    return _CAT(parts, dim, **more)


def _chunk(whole: torch.Tensor, chunks: int, dim: int = 0) -> tuple[torch.Tensor, ...]:
    return _split(whole, -(-whole.shape[dim] // chunks), dim)


def _split(whole: torch.Tensor, size: Any, dim: int = 0) -> tuple[torch.Tensor, ...]:
    if dim % whole.dim() != whole.dim() - 1:
        return _SPLIT(whole, size, dim)
    width = whole.shape[-1]
    sizes = [min(size, width - k) for k in range(0, width, size)] if isinstance(size, int) else size
    ends = list(itertools.accumulate(sizes))
    return tuple(whole[..., b - n : b] for n, b in zip(sizes, ends, strict=True))


@contextmanager
def _traceable_operations() -> Iterator[None]:
    """Replaces operations that torch-pruning follows wrongly.

    Rotary embeddings concatenate within each head; taken for a concatenation of features, the
    positions of one answer then grow without end. It cannot follow ``chunk`` and ``split`` of the
    last dimension, but it can follow slices.
    """
    own: Any = torch  # for the type checker: these are builtin functions
    own.cat, own.Tensor.chunk, own.Tensor.split = _cat, _chunk, _split
    try:
        yield
    finally:
        own.cat, own.Tensor.chunk, own.Tensor.split = _CAT, _CHUNK, _SPLIT


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TracingTimeout after so many CPU seconds of this process. Garbage collection is off
    meanwhile. Python discards exceptions raised inside ``__del__``, so there the timer just fires
    again.
    """

    def stop(_number: int, frame: Any) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                return
            frame = frame.f_back
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        raise TracingTimeout

    collecting = gc.isenabled()
    gc.disable()
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        if collecting:
            gc.enable()
