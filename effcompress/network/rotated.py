"""Rotates and slices the residual stream of a model in place (arXiv:2401.15024).

A norm without gain commutes with an orthogonal matrix: norm(x Q) = norm(x) Q. So gains go into the
layers behind the norms, weights that read the stream become W Q, those that write into it Q^T W,
and the last columns of each Q, which carry least, are left out. As Q differs from block to block,
each residual addition changes the basis by a shortcut Q_before^T Q_behind.

Layers are taken front to back. Each is measured on what the sliced layers before it hand on, in the
source model's basis: a slice is there the projection onto the columns of Q that stay. All
algebra is fp64, rounded once when a weight is stored.

With a refit (not of the paper), the addition x + m, with m what a block writes, becomes A x + T m,
fitted to the stream that the source model has behind that block. A is part of the shortcut, T of
the block's last weight, so sizes stay.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from effcompress.distributed.gather import gathered, gathered_in_turn
from effcompress.distributed.repeated import by_all
from effcompress.distributed.world import World
from effcompress.isolation import placed
from effcompress.measure.blockwise import Block, blockwise
from effcompress.measure.moments import Parts, Sums
from effcompress.model.families.rotated import INPUT_MAP, writes
from effcompress.model.modeling_pruned import UnitNorm, epsilon_of, rotate_layer, untie
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.sliced import SlicedShape
from effcompress.removal.modules import agree
from effcompress.types import Family

Text = tuple[Tensor, Tensor | None]
"""Calibration tokens ``ids_NT``, and their positions where documents are isolated."""


class Choose(Protocol):
    """Returns an orthogonal matrix [D, D] for the second moment of the stream at one place, most
    important direction first, in fp64 and equal on all ranks; ``kept``: columns that stay.
    """

    def __call__(self, moment_DD: Tensor, kept: int) -> Tensor: ...


class Fit(Protocol):
    """Returns the weight [O, I] of a refit, in fp64 and equal on all ranks."""

    def __call__(self, weight_OI: Tensor, parts: Parts) -> Tensor: ...


@dataclass(frozen=True)
class Method:
    """How bases are chosen; ``normed``: second moments are those of the norms' outputs. Without
    ``fit`` nothing is refitted. Of the sequences of this process bases are measured on the first
    ``measured`` and fits on the first ``fitted`` (None: all), with those of ``held_out`` apart
    (None: none, on no process).
    """

    choose: Choose
    normed: bool = False
    fit: Fit | None = None
    measured: int | None = None
    fitted: int | None = None
    held_out: Collection[int] | None = None


@dataclass(frozen=True)
class Place:
    """The stream in front of a block, or behind the last layer: the fraction of its energy (the
    trace of its second moment) in the columns that stay.
    """

    layer: int
    block: str
    energy: float


@dataclass(frozen=True)
class Sliced:
    """What was done: the places in order, and by how much the logits of the first calibration
    sequence differ from those of the model with projections in place of slices, whose largest is
    ``largest_logit``.
    """

    places: tuple[Place, ...]
    max_logit_difference: float
    largest_logit: float


@dataclass(frozen=True)
class _Side:
    """Hidden channels on dimension ``dim`` of a parameter in a layer: what a block (0 attention, 1
    feed-forward) reads, or ``writes``.
    """

    param: str
    dim: int
    block: int
    writes: bool


@dataclass(frozen=True)
class _Addition:
    """A residual addition: from the K channels of ``before_DK`` into the source's basis by
    ``lift_DK``, and what the block writes times ``written_DD`` (None: as it is).
    """

    before_DK: Tensor
    lift_DK: Tensor
    written_DD: Tensor | None = None

    def __call__(self, x_1TD: Tensor, m_1TD: Tensor) -> Tensor:
        """Returns the stream behind it; ``x_1TD`` is projected."""
        if self.written_DD is None:
            return x_1TD + m_1TD
        like = x_1TD.dtype
        lifted = (x_1TD @ self.before_DK.to(like)) @ self.lift_DK.to(like).T
        return lifted + m_1TD @ self.written_DD.to(like).T


@torch.no_grad()
def rotate_stream(
    pruned: PrunedModel,
    shape: SlicedShape,
    text: Text,
    method: Method,
    *,
    world: World,
    tell: Callable[[int, int], object],
) -> Sliced:
    """Turns the model of ``pruned`` into its sliced form. ``tell`` is called with the layers done
    and their number. Each rank of ``world`` reads its part of ``text``.

    Raises RunError for models that cannot be run layer by layer.
    """
    module, family = pruned.module, pruned.family
    training = module.training
    ids_NT, positions_NT = text
    own = slice(world.rank, None, world.size)
    positions_NT = None if positions_NT is None else positions_NT[own]
    work = _Work(module.eval(), family, shape, method, world)
    for block in blockwise(module, family.layer, ids_NT[own], positions_NT, world):
        if block.number == 0:
            work.begin(block)
        work.layer(block)
        tell(block.number + 1, work.layers)
    with by_all(world), work.outside():
        difference, largest = work.end(ids_NT[own][:1], positions_NT)
    module.train(training)
    pruned.adopt(shape.config)
    return Sliced(tuple(work.places), difference, largest)


class _Work:
    """The model while its layers are rotated, one after the other."""

    def __init__(
        self, module: nn.Module, family: Family, shape: SlicedShape, method: Method, world: World
    ) -> None:
        self.module, self.family, self.stream = module, family, shape.stream
        self.width, self.method, self.world = shape.width, method, world
        self.layers = len(list(module.get_submodule(family.layers).children()))
        self.places: list[Place] = []
        self.basis_DK = self.into_DK = torch.empty(0)
        """The basis in front of the next block, the columns that stay, in fp64; that of the
        embedding, as weights have it.
        """
        self.sources: list[Tensor] = []
        """The source model's stream in front of the next block, for a refit."""
        self.last: Tensor | None = None
        """The stream behind the last layer for the first sequence, in the source's basis."""

    def begin(self, block: Block) -> None:
        """Chooses the basis of the embedding, and writes it into the embedding where that is not
        kept.
        """
        if self.stream["centred"]:  # the stream of LayerNorm models is kept at mean 0
            block.hand_on([x_1TD - x_1TD.mean(-1, keepdim=True) for x_1TD in block.inputs])
        self.sources = block.inputs if self.method.fit else []
        self.basis_DK = self._basis(block.inputs, 0, "attention", self.width)
        self.into_DK = self._centred(self.basis_DK, 0)
        if not self.stream["mapped"]:
            with self.outside():
                self._embed()

    def outside(self) -> AbstractContextManager[None]:
        """Gathers what is outside the layers of a sharded model."""
        return gathered(self.module, apart=self.module.get_submodule(self.family.layers))

    def _embed(self) -> None:
        """Writes the basis into the embedding."""
        model: Any = self.module
        if model.config.tie_word_embeddings:
            untie(model)
        for axis in self.family.axes:
            head = axis.param.startswith(f"{self.stream['head']}.")
            within = "{i}" in axis.param or _is_norm(self.family, axis.param)
            if axis.name != "hidden" or head or within:
                continue
            if (p := self._held(axis.param)) is not None:
                with by_all(self.world):
                    _store(p, _along(p.detach().double(), axis.dim, self.into_DK))

    def layer(self, block: Block) -> None:
        """Measures one layer on the sliced stream, and stores it in its bases."""
        held: Any = self.module.get_submodule(block.path)
        last = block.number + 1 == self.layers
        with by_all(self.world):
            folded = self._folded(block)
        rotate_layer(held, dict(self.stream), first=block.number == 0)
        for name, value in folded.items():
            _store(self.module.get_parameter(name), value)
        named = [*block.arguments(held.arguments)]
        streams, bases, additions = block.inputs, [self.basis_DK], list[_Addition]()
        together = [(0, 1)] if self.stream["parallel"] else [(0,), (1,)]
        for blocks in together:
            behind = 1 in blocks
            x = [_projected(x_1TD, bases[-1]) for x_1TD in streams]
            m = _written(held, blocks, x, named)
            if self.method.fit:
                parts = zip(self.sources, _written(held, blocks, self.sources, named), strict=True)
                self.sources = [t_1TD + m_1TD for t_1TD, m_1TD in parts]
            additions.append(self._addition(x, m, bases[-1]))
            streams = [additions[-1](*pair) for pair in zip(x, m, strict=True)]
            width = self.stream["channels"] if last and behind else self.width
            what = "attention" if behind else "feed-forward"
            bases.append(self._basis(streams, block.number + behind, what, width))
        with by_all(self.world):
            self._rotate(block, folded, bases, additions)
        block.hand_on(streams)
        self.basis_DK, self.last = bases[-1], streams[0]

    def end(self, ids_1T: Tensor, positions_NT: Tensor | None) -> tuple[float, float]:
        """Rotates what is behind the last layer. Returns by how much the logits of the first
        sequence differ from those before, of the stream that was handed on to the last norm, and
        the largest of them.
        """
        device, behind = next(self.module.parameters()).device, self.last
        how = placed(self.module, None if positions_NT is None else positions_NT[:1])
        layers: Any = self.module.get_submodule(self.stream["layers"])

        def logits() -> Tensor:
            with gathered_in_turn([*layers]):
                found = self.module(input_ids=ids_1T.to(device), use_cache=False, **how).logits
            return found.float()

        with layers[-1].register_forward_hook(lambda *_: behind):
            before = logits()
        self._tail()
        return float((logits() - before).abs().max()), float(before.abs().max())

    def _tail(self) -> None:
        path, d = self.stream["final_norm"], self.stream["channels"]
        norm: Any = self.module.get_submodule(path)
        head: Any = self.module.get_submodule(self.stream["head"])
        gain_D, bias_D = _affine(norm, d, head.weight, self.family.gain_offset)
        if bias_D is None and self.stream["centred"]:
            bias_D = torch.zeros_like(gain_D)  # a rotated LayerNorm has a place for it
        new = UnitNorm(d, epsilon_of(norm))
        if self.stream["mapped"]:
            like = head.weight
            new.map = nn.Linear(d, d, bias=bias_D is not None, device=like.device, dtype=like.dtype)
            _replace(new.map, "weight", gain_D[:, None] * self.basis_DK)
            if bias_D is not None:
                _replace(new.map, "bias", bias_D)
        else:
            weight_VD = head.weight.detach().double()
            _store(head.weight, (weight_VD * gain_D) @ self.basis_DK)
            if bias_D is not None:
                head.bias = nn.Parameter((weight_VD @ bias_D).to(head.weight.dtype))
        self.module.set_submodule(path, new)

    def _basis(self, streams: Sequence[Tensor], layer: int, what: str, kept: int) -> Tensor:
        """Returns the columns that stay of the rotation at one place, [D, kept]."""
        moment_DD = self._moment(streams)
        basis_DK = self.method.choose(moment_DD, kept)[:, :kept].contiguous()
        with by_all(self.world):
            energy = (basis_DK * (moment_DD @ basis_DK)).sum() / moment_DD.trace()
        self.places.append(Place(layer, what, min(1.0, float(energy))))
        return basis_DK

    def _moment(self, streams: Sequence[Tensor]) -> Tensor:
        """Returns the mean of x^T x over the tokens of all ranks, [D, D] in fp64."""
        streams = streams[: self.method.measured]
        d = streams[0].shape[-1]
        total_DD = streams[0].new_zeros(d, d, dtype=torch.float64)
        for x_1TD in streams:
            x_TD = x_1TD.flatten(0, 1).double()
            if self.method.normed:
                x_TD = x_TD * x_TD.square().mean(-1, keepdim=True).clamp(min=1e-30).rsqrt()
            total_DD += x_TD.T @ x_TD
        tokens = self.world.sums([sum(x_1TD.shape[1] for x_1TD in streams)])[0]
        total = self.world.total({"": total_DD.cpu()})[""] / tokens
        return total.to(total_DD.device)

    def _addition(self, x: list[Tensor], m: list[Tensor], before_DK: Tensor) -> _Addition:
        """Returns the residual addition of projected streams ``x`` and what blocks write, ``m``;
        fitted to the source model's stream behind it if that is asked for.
        """
        fit, (d, k) = self.method.fit, before_DK.shape
        if fit is None:
            return _Addition(before_DK, before_DK)
        sums = Sums(d, k + d, before_DK.device, split=self.method.held_out is not None)
        rows = zip(x, m, self.sources, strict=True)
        for n, (x_1TD, m_1TD, t_1TD) in enumerate(islice(rows, self.method.fitted)):
            r_TI = torch.cat([x_1TD @ before_DK.to(x_1TD.dtype), m_1TD], -1).flatten(0, 1)
            sums.add(r_TI, t_1TD.flatten(0, 1), held=n in (self.method.held_out or ()))
        parts = sums.means(self.world)
        # Channels differ in size by orders; each is drawn to where it was by its own.
        scale_I = parts.all.gram.diagonal().clamp(min=1e-30).sqrt()
        weight_OI = torch.cat([before_DK, torch.eye(d).to(before_DK)], 1)
        new_OI = fit(weight_OI * scale_I, parts.scaled(scale_I)) / scale_I
        return _Addition(before_DK, new_OI[:, :k], new_OI[:, k:])

    def _folded(self, block: Block) -> dict[str, Tensor]:
        """Returns the layer's parameters on the stream in fp64, gains and biases of its norms
        folded in; what LayerNorm models write loses its mean.
        """
        held, d = self.module.get_submodule(block.path), self.stream["channels"]
        like = next(held.parameters())
        norms = [held.get_submodule(name) for name, _, _ in self.stream["blocks"]]
        affine = [_affine(norm, d, like, self.family.gain_offset) for norm in norms]
        found: dict[str, Tensor] = {}
        for side in self._sides(block):
            value = self.module.get_parameter(side.param).detach().double()
            if side.writes:
                found[side.param] = self._centred(value, side.dim)
                continue
            gain_D, bias_D = affine[side.block]
            found[side.param] = _along(value, side.dim, torch.diag(gain_D))
            if bias_D is not None:
                name = side.param.removesuffix("weight") + "bias"
                old = self.module.get_parameter(name).detach().double()
                found[name] = old + value.movedim(side.dim, -1) @ bias_D
        return found

    def _centred(self, value: Tensor, dim: int) -> Tensor:
        return value - value.mean(dim, keepdim=True) if self.stream["centred"] else value

    def _rotate(
        self,
        block: Block,
        folded: Mapping[str, Tensor],
        bases: Sequence[Tensor],
        additions: Sequence[_Addition],
    ) -> None:
        """Stores a layer. ``bases``: in front of each addition, and behind the layer."""
        parallel = self.stream["parallel"]
        for side in self._sides(block):
            value, at = folded[side.param], 0 if parallel else side.block
            written_DD = additions[at].written_DD
            if side.writes and written_DD is not None:
                value = _along(value, side.dim, written_DD.T)
            new = _along(value, side.dim, bases[at + side.writes])
            _replace(self.module, side.param, new)
        held: Any = self.module.get_submodule(block.path)
        names = dict.fromkeys(shortcut for _, shortcut, _ in self.stream["blocks"])
        for name, addition, behind_DK in zip(names, additions, bases[1:], strict=True):
            _replace(held, f"{name}.weight", behind_DK.T @ addition.lift_DK)
        if block.number == 0 and self.stream["mapped"]:
            _replace(held, f"{INPUT_MAP}.weight", self.into_DK.T)
        agree(held)  # GPT-2's layers read their widths from attributes

    def _sides(self, block: Block) -> Iterator[_Side]:
        """Yields the hidden channels of a layer's parameters, without those of norms."""
        for axis in self.family.axes:
            within = axis.name == "hidden" and "{i}" in axis.param
            if not within or _is_norm(self.family, axis.param):
                continue
            name = axis.param.replace("{i}", str(block.number))
            if self._held(name) is not None:
                inside = axis.param.removeprefix(f"{self.family.layer}.")
                mlp = self.family.sublayers["mlp_block"].modules
                in_mlp = any(inside.startswith(f"{part}.") for part in mlp)
                yield _Side(name, axis.dim, int(in_mlp), writes(self.family, axis))

    def _held(self, name: str) -> nn.Parameter | None:
        path, _, leaf = name.rpartition(".")
        try:
            return getattr(self.module.get_submodule(path), leaf, None)
        except AttributeError:
            return None


def _written(
    layer: Any, blocks: Sequence[int], x: Sequence[Tensor], named: Sequence[Mapping[str, Any]]
) -> list[Tensor]:
    """Returns what these blocks of a layer add to the streams ``x``, of each sequence."""
    found: list[Tensor] = []
    for x_1TD, how in zip(x, named, strict=True):
        parts = [layer.branch(k, x_1TD, how) for k in blocks]
        found.append(parts[0] if len(parts) == 1 else parts[0] + parts[1])
    return found


def _is_norm(family: Family, param: str) -> bool:
    return f"{param.rpartition('.')[0]}.weight" in family.norms


def _affine(norm: Any, channels: int, like: Tensor, offset: float) -> tuple[Tensor, Tensor | None]:
    """Returns gain (stored less an ``offset``) and bias of a norm in fp64; a gain of 1 where it
    has none.
    """
    gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if gain is None:
        return torch.ones(channels, dtype=torch.float64, device=like.device), None
    return gain.detach().double() + offset, None if bias is None else bias.detach().double()


def _along(value: Tensor, dim: int, matrix_DK: Tensor) -> Tensor:
    """Returns ``value`` with its dimension ``dim``, of D channels, times ``matrix_DK``."""
    return (value.movedim(dim, -1) @ matrix_DK).movedim(-1, dim)


def _projected(x_1TD: Tensor, basis_DK: Tensor) -> Tensor:
    """Returns what is left of the stream after a slice, in the source's basis."""
    basis = basis_DK.to(x_1TD.dtype)
    return (x_1TD @ basis) @ basis.T


def _store(p: nn.Parameter, value: Tensor) -> None:
    """Stores fp64 values in the dtype of the parameter, which takes their shape."""
    p.data = value.to(p.dtype).contiguous()


def _replace(root: nn.Module, name: str, value: Tensor) -> None:
    _store(root.get_parameter(name), value)
