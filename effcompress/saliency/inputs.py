"""Saliency of mini-groups from statistics of the linear layers that read them, of layers and blocks
from statistics of the residual stream, and of experts from statistics of their outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from effcompress.errors import CoverageError
from effcompress.injectable import PLACE
from effcompress.registry import Bound
from effcompress.saliency.score import require_finite
from effcompress.types import DEPTH, GroupSet, Scores


class Read(Protocol):
    """Statistics of what linear layers read (``measure/statistics.py``)."""

    params: dict[str, int]
    owner: dict[str, str]

    def parts(self, param: str, /) -> Sequence[int | None]: ...

    def read(self, param: str, part: int | None = None, /) -> dict[str, Tensor]: ...

    def shape(self, param: str, /) -> tuple[int, int]: ...

    def weight(self, param: str, part: int | None = None, /) -> Tensor: ...


class SecondMoments(Protocol):
    """Mean of ``x x^T`` of what linear layers read (``measure/grams.py``)."""

    def read(self, param: str) -> Tensor | None: ...


@torch.no_grad()
def score_inputs(
    sets: Sequence[GroupSet],
    criterion: Bound,
    read: Read,
    of_layers: Mapping[str, Mapping[str, float]],
    of_experts: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
    grams: SecondMoments | None = None,
) -> Scores:
    """``{set: score_G}`` in fp32 on the CPU, in the physical order of the units. ``of_layers``:
    statistic of the stream -> layer or block -> value; ``of_experts``: the experts of a layer ->
    statistic -> ``[E]``; ``grams``: for a criterion of whole layers.

    Raises CoverageError where no linear layer reads the mini-groups, PluginError when the criterion
    returns another shape, NotFinite when a saliency is not.
    """
    scores: Scores = {}
    for s in sets:
        if s.kind in DEPTH:
            scores[s.name] = _of_depth(s, criterion, of_layers)
        elif s.name in of_experts:
            scores[s.name] = _of_experts(s, criterion, of_experts[s.name])
        elif criterion.plugin.cumulative and grams is not None:
            scores[s.name] = _of_whole(s, criterion, read, grams)
        else:
            scores[s.name] = _of_readers(s, criterion, read)
    require_finite(scores, criterion)
    return scores


def _of_depth(
    s: GroupSet, criterion: Bound, of_layers: Mapping[str, Mapping[str, float]]
) -> Tensor:
    given: dict[str, Any] = dict.fromkeys(criterion.needs)
    given |= {"kind": s.kind, "layer": s.layer, "positions": 1}
    for name, values in of_layers.items():
        if s.name in values:
            given[name] = torch.tensor([values[s.name]])
    found = _ask(criterion, given, s)
    if not isinstance(found, float | int):
        criterion.plugin.require_shape(found, "where [1] was expected", (1,), ())
    return torch.as_tensor(found, dtype=torch.float32).reshape(1).cpu()


def _of_experts(s: GroupSet, criterion: Bound, found: Mapping[str, Tensor]) -> Tensor:
    given: dict[str, Any] = {**dict.fromkeys(criterion.needs), **found}
    given |= {"kind": s.kind, "layer": s.layer, "positions": 1}
    score_E = _ask(criterion, given, s)
    criterion.plugin.require_shape(score_E, f"where {(s.size,)} was expected", (s.size,))
    return score_E.float().cpu()


def _of_readers(s: GroupSet, criterion: Bound, read: Read) -> Tensor:
    """Sums over the layers, of mixtures over the experts, too: a channel of all experts goes as
    one.
    """
    total = torch.zeros(s.size)
    layers = _readers(s, criterion, read)
    every = ((param, at, part) for param, at in layers for part in read.parts(param))
    for param, index_GB, part in every:
        given: dict[str, Any] = {**dict.fromkeys(criterion.needs), **read.read(param, part)}
        given |= {"kind": s.kind, "layer": -1 if s.layer is None else s.layer}
        given["positions"] = index_GB.shape[1]
        if "weight" in criterion.needs:  # a sharded one is gathered for it
            given["weight"] = read.weight(param, part).float()
        found = _ask(criterion, given, s)
        shape = read.shape(param)
        wanted = f"where {shape}, or one number per column, was expected"
        criterion.plugin.require_shape(found, wanted, shape, shape[1:])
        found_I = found.sum(0) if found.dim() == 2 else found
        total += found_I.float().cpu()[index_GB].sum(1)
    return total


def _of_whole(s: GroupSet, criterion: Bound, read: Read, grams: SecondMoments) -> Tensor:
    """Scores a set by the one layer that reads it, with columns in the order of its mini-groups."""
    (param, index_GB), *others = _readers(s, criterion, read)
    gram_II = grams.read(param)
    if others or gram_II is None:
        raise CoverageError(
            f"more than one linear layer reads the mini-groups of '{s.name}'",
            where=param,
            fix="Use a criterion of weights (taylor, magnitude), or leave this space out.",
        )
    columns = index_GB.flatten().to(gram_II.device)
    measured = {name: value[columns] for name, value in read.read(param).items()}
    given: dict[str, Any] = {**dict.fromkeys(criterion.needs), **measured}
    given |= {"kind": s.kind, "layer": -1 if s.layer is None else s.layer}
    given |= {"positions": index_GB.shape[1], "gram": gram_II[columns][:, columns]}
    if "weight" in criterion.needs:
        given["weight"] = read.weight(param).float()[:, columns]
    found = criterion(**given)
    criterion.plugin.require_shape(found, f"where ({s.size},) was expected", (s.size,))
    return found.float().cpu()


def _readers(s: GroupSet, criterion: Bound, read: Read) -> Iterator[tuple[str, Tensor]]:
    """Layers that read the mini-groups, with the inputs of each, ``[G, B]``; of those that read the
    same tensor only one, if the weight plays no part.
    """
    found = s.reading(read.params)
    if not found:
        raise CoverageError(
            f"no linear layer reads the mini-groups of '{s.name}' alone",
            fix="Use a criterion of weights (taylor, magnitude), or leave this space out.",
        )
    seen: set[str] = set()
    for param, index_GB in found.items():
        owner = param if "weight" in criterion.needs else read.owner[param]
        if owner not in seen:
            seen.add(owner)
            yield param, index_GB


def _ask(criterion: Bound, given: dict[str, Any], s: GroupSet) -> Any:
    """The criterion's answer. One that takes statistics of inputs and of the stream gets None for
    those that this kind does not have.

    Raises PluginError where all of them are None, or the criterion fails.
    """
    measured = [need for need in criterion.needs if need not in PLACE]
    if measured and all(given[need] is None for need in measured):
        said = f"takes {measured[-1]}, which '{s.kind}' has not"
        raise criterion.plugin.error(said, "Use another criterion, or leave this space out.")
    return criterion(**given)
