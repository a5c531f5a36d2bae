"""Second moments of the inputs of linear layers, from the forward passes of training: the local
Hessian.

For a linear layer ``y = W x`` the squared error of its output under a change ``dW`` is
``tr(dW H dW^T)`` with ``H = E[x x^T]``, the same for every row of ``W``. Layers that read the same
tensor (q, k and v; gate and up) have the same ``H``, which is then kept once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from effcompress.algebra import add_gram, gram_operations, mirror
from effcompress.distributed.deal import Deal
from effcompress.distributed.world import ALONE, World
from effcompress.errors import NotFinite
from effcompress.measure.hooks import InputHooks, linears
from effcompress.measure.routes import Down
from effcompress.types import AxisMap, GroupSet


def readers(module: nn.Module, axes: AxisMap, sets: Sequence[GroupSet]) -> dict[str, int]:
    """Returns the weights of linear layers within the model's layers that lose inputs when
    mini-groups of ``sets`` go, and the dimension that their inputs run along. Embeddings and the
    head are not among them.
    """
    shrinking = {(m.param, m.dim) for s in sets for m in s.sides}
    inside = linears(module, axes.family.layer.partition("{i}")[0])
    return {param: dim for param, dim in inside.items() if (param, dim) in shrinking}


def expert_readers(axes: AxisMap, sets: Sequence[GroupSet]) -> dict[str, Down]:
    """Returns the weights of all experts of a layer that lose inputs when mini-groups of ``sets``
    within the layer go.
    """
    dim = axes.family.expert_inputs
    shrinking = [m.param for s in sets if s.layer is not None for m in s.sides if m.dim == dim]
    return {p: Down(p.rpartition(".")[2], dim) for p in shrinking if axes.stacked(p)}


@final
class Grams(InputHooks):
    """Running mean of ``x x^T`` over tokens, ``[I, I]`` in fp32 per distinct input.

    ``tokens`` per forward pass are taken, evenly spread over it and other ones every time;
    ``decay`` is the weight of the past per step, whatever its number of micro-batches. A removed
    input's row and column are zero.

    Where they are dealt out, each matrix has one holder (``distributed/deal.py``). A process keeps
    the sampled tokens of its passes until they would be larger than the largest matrix; then every
    process sends its own to the holders, which add up ``x x^T`` of them all. Of ``T`` tokens of
    ``I`` inputs it sends the ``T I`` numbers or, where that is less, the ``I^2`` of the matrix.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Mapping[str, int],
        tokens: int,
        decay: float,
        *,
        second: bool = True,
        world: World = ALONE,
        dealt: bool = False,
    ) -> None:
        """``second``: whether the matrices are wanted, or only the means. ``world``: processes that
        measure other rows of the same steps; ``read`` and ``mean`` are collective, so all processes
        have to call them in the same order. ``dealt``: deals the matrices out over them; passes
        are then collective, too, and of equally many tokens.
        """
        self.world = world
        self.params = dict(params)
        self.second = second
        self.tokens, self.decay = tokens, decay
        self.values: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self.operations = 0.0
        """Floating-point operations of the matrices in the last step that was listened to."""
        self._halves: set[str] = set()
        """Owners whose matrix has its latest passes in the upper triangle alone."""
        self._deal = Deal(world.size) if dealt and second and world.size > 1 else None
        self._pending: dict[str, Tensor] = {}
        sizes = [module.get_parameter(p).shape[dim] for p, dim in self.params.items()]
        self._sizes = dict(zip(self.params, sizes, strict=True))
        super().__init__(module, self.params, self._add)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Measures the passes of one step; what was measured before loses weight by ``decay``."""
        self.operations = 0.0
        if self.decay < 1.0:
            for owner, mean in self.means.items():
                mean.mul_(self.decay)
                if owner in self.values:
                    self.values[owner].mul_(self.decay)
                self.weights[owner] *= self.decay
        with super().listening():
            try:
                yield
            except NotFinite:  # raised by all processes; any other error may be of one alone
                self._send()
                raise
            except BaseException:
                self._pending.clear()
                raise
            self._send()

    def holder(self, param: str) -> int | None:
        """Returns the rank that holds the matrix; None where all processes have it, or none is."""
        owner = self.owner.get(param)
        return None if self._deal is None or owner is None else self._deal.holder.get(owner)

    def read(self, param: str) -> Tensor | None:
        """Returns the mean so far, ``[I, I]``; None before a pass was measured, without ``second``,
        and of dealt matrices where another rank is the holder. Raises NotFinite when it is not
        finite.
        """
        owner = self.owner.get(param, "")
        if owner in self._halves:  # read while it listens
            self._complete()
        if self._deal is not None and owner in self.weights:
            return self._held(owner)
        return self._over_all(owner, self.values[owner]) if owner in self.values else None

    def mean(self, param: str) -> Tensor | None:
        """Returns the mean input, ``[I]``; None before a pass was measured."""
        owner = self.owner.get(param)
        return None if owner is None else self._over_all(owner, self.means[owner])

    def _over_all(self, owner: str, own: Tensor) -> Tensor:
        (weight,) = self.world.sums([self.weights[owner]])
        found = self.world.total({owner: own})[owner] / weight
        if not bool(torch.isfinite(found.sum())):
            raise NotFinite("what this layer reads is not finite", where=owner)
        return found

    def _held(self, owner: str) -> Tensor | None:
        found = self.values.get(owner)
        weight, spoilt = self.world.sums([self.weights[owner], float(not _finite(found))])
        if spoilt:
            raise NotFinite("what this layer reads is not finite", where=owner)
        return None if found is None else found / (weight / self.world.size)

    def forget_unfinite(self) -> list[str]:
        """Resets the layers for which at least one process measured a value that is not finite.
        Collective; returns their names.
        """
        owners = sorted(self.means)
        spoilt = [not _finite(self.means[o], self.values.get(o)) for o in owners]
        bad = [o for o, n in zip(owners, self.world.sums(spoilt), strict=True) if n]
        for owner in bad:
            del self.means[owner], self.weights[owner]
            self.values.pop(owner, None)
        return bad

    @torch.no_grad()
    def silence(self, param: str, gone: Tensor) -> None:
        """Zeros the rows and columns of inputs that were removed."""
        if (owner := self.owner.get(param)) is not None:
            index = gone.to(self.means[owner].device)
            self.means[owner].index_fill_(0, index, 0.0)
            if owner in self.values:
                self.values[owner].index_fill_(0, index, 0.0).index_fill_(1, index, 0.0)

    @torch.no_grad()
    def shorten(self, param: str, keep: Tensor) -> None:
        """Keeps only these positions, after the weight was shortened to them."""
        if self.owner.get(param) == param:
            index = keep.to(self.means[param].device)
            self.means[param] = self.means[param].index_select(0, index)
            if param in self.values:
                value = self.values[param]
                self.values[param] = value.index_select(0, index).index_select(1, index)

    @torch.no_grad()
    def share(self) -> None:
        """Gives every process an equal part of the sum over all of them, so that a checkpoint of
        rank 0 holds all that was measured, except dealt matrices. Sums over the processes stay the
        same. Collective.
        """
        world = self.world
        if world.size == 1:
            return
        sums = {key: value for key, value in self._sums().items() if key not in self.dealt}
        for key, value in world.total(sums).items():
            kind, _, name = key.partition("/")
            (self.values if kind == "gram" else self.means)[name] = value / world.size
        weights = world.sums(list(self.weights.values()))
        self.weights = {
            name: weight / world.size for name, weight in zip(self.weights, weights, strict=True)
        }

    @property
    def dealt_out(self) -> bool:
        """Whether each matrix has one holder."""
        return self._deal is not None

    @property
    def dealt(self) -> set[str]:
        """Keys of ``state_dict`` that this process alone has."""
        return set() if self._deal is None else {f"gram/{name}" for name in self.values}

    def _sums(self) -> dict[str, Tensor]:
        found = {f"gram/{name}": value for name, value in self.values.items()}
        return found | {f"mean/{name}": value for name, value in self.means.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors, for a checkpoint."""
        found = self._sums()
        for name, weight in self.weights.items():
            found[f"weight/{name}"] = torch.tensor(weight, dtype=torch.float64)
        names = list(self.params)
        for name, owner in self.owner.items():
            found[f"owner/{name}"] = torch.tensor(names.index(owner))
        return found | {f"passes/{name}": torch.tensor(n) for name, n in self.passes.items()}

    def load_state_dict(
        self, state: Mapping[str, Tensor], device: torch.device | None = None
    ) -> None:
        """What ``state_dict`` gave, of any number of processes; to ``device`` if one is named.
        Dealt matrices are dealt out anew, and read where they are held.
        """
        names = list(self.params)
        holders: dict[str, int] = {}
        if self._deal is not None:
            held = (name for name in names if f"gram/{name}" in state)
            holders = self._deal.all((name, 4 * self._sizes[name] ** 2) for name in held)
        for key in state:
            kind, _, name = key.partition("/")
            if kind == "gram" and holders.get(name, self.world.rank) != self.world.rank:
                continue
            value = state[key] if device is None else state[key].to(device)
            if kind == "gram":
                self.values[name] = value
            elif kind == "mean":
                self.means[name] = value
            elif kind == "weight":
                self.weights[name] = float(value)
            elif kind == "passes":
                self.passes[name] = int(value)
            elif kind == "owner":
                self.owner[name] = names[int(value)]

    @torch.no_grad()
    def _add(self, owner: str, x: Tensor) -> None:
        some_TI = self._some(owner, x.flatten(0, -2))
        _add(self.means, owner, some_TI.float().mean(0))
        if self._deal is not None:
            self._keep(owner, some_TI)
        elif self.second:
            self._add_square(owner, some_TI)
            self.operations += gram_operations(*some_TI.shape)
        self.weights[owner] = self.weights.get(owner, 0.0) + 1.0

    def _keep(self, owner: str, x_TI: Tensor) -> None:
        """Keeps a contribution until it is sent: rows ``R`` with ``R^T R`` its part of the mean, or
        that part itself. Parts of all processes add up to their mean, so that a checkpoint means
        the same to any number of them.
        """
        assert self._deal is not None
        tokens, inputs = x_TI.shape
        self.operations += 2.0 * tokens * inputs**2
        self._deal.take(owner, 4 * inputs**2)
        if tokens < inputs:
            part = x_TI.float() * (tokens * self.world.size) ** -0.5
        else:
            part = _gram(x_TI).div_(self.world.size)
        waiting = sum(each.numel() for each in self._pending.values())
        if owner in self._pending or waiting + part.numel() > max(self._sizes.values()) ** 2:
            self._send()
        self._pending[owner] = part

    @torch.no_grad()
    def _send(self) -> None:
        """Sends what is kept to the holders: in each turn one matrix of every holder."""
        if self._deal is None or not self._pending:
            return
        queues: list[list[str]] = [[] for _ in range(self.world.size)]
        for owner in self._pending:
            queues[self._deal.holder[owner]].append(owner)
        with torch.autocast(next(iter(self._pending.values())).device.type, enabled=False):
            for turn in range(max(map(len, queues))):
                self._send_to([q[turn] if turn < len(q) else None for q in queues])
        self._pending.clear()

    def _send_to(self, owners: Sequence[str | None]) -> None:
        """Sends one matrix's rows to each holder, so many at a time that all that arrive are no
        larger than the matrix.
        """
        size, mine = self.world.size, owners[self.world.rank]
        parts = [None if owner is None else self._pending[owner] for owner in owners]
        at_once = [0 if p is None else max(1, p.shape[1] // size) for p in parts]
        none = next(p for p in parts if p is not None).new_empty(0)
        times = max(-(-len(p) // n) for p, n in zip(parts, at_once, strict=True) if p is not None)
        for k in range(times):
            sent = [
                none if p is None else p[k * n : (k + 1) * n]
                for p, n in zip(parts, at_once, strict=True)
            ]
            own = sent[self.world.rank]
            found = self.world.all_to_all(sent, [own.numel()] * size)
            if mine is None or not own.numel():
                continue
            inputs = own.shape[1]
            if mine not in self.values:
                self.values[mine] = own.new_zeros(inputs, inputs)
            whole = len(self._pending[mine]) == inputs
            if whole:  # rows of the matrix, not of tokens
                start = k * at_once[self.world.rank]
                into = self.values[mine][start : start + len(own)]
                for part in found:
                    into.add_(part.view(own.shape))
            else:
                rows = torch.cat(found).view(-1, inputs)
                self.values[mine].addmm_(rows.T, rows)

    def _add_square(self, owner: str, x_TI: Tensor) -> None:
        """Adds the mean of the outer products, in fp32 whatever the precision of the pass."""
        if owner not in self.values:
            width = x_TI.shape[1]
            self.values[owner] = x_TI.new_zeros(width, width, dtype=torch.float32)
        with torch.autocast(x_TI.device.type, enabled=False):
            add_gram(self.values[owner], x_TI.float(), 1.0 / x_TI.shape[0])
        self._halves.add(owner)

    def _complete(self) -> None:
        """Copies upper triangles below the diagonal."""
        for owner in self._halves:
            mirror(self.values[owner])
        self._halves.clear()

    def _reset(self) -> None:
        super()._reset()
        self._complete()

    def _some(self, param: str, x_TI: Tensor) -> Tensor:
        """Returns ``tokens`` rows, evenly spread; the first one moves on with every pass."""
        number = self.passes.get(param, 0)
        self.passes[param] = number + 1
        stride = x_TI.shape[0] // self.tokens
        return x_TI if stride <= 1 else x_TI[number % stride :: stride][: self.tokens]


@final
class Squares(InputHooks):
    """Mean of ``x^2`` over all tokens, ``[I]`` per distinct input: the diagonal of ``Grams``, where
    that is enough; sums in fp64.
    """

    def __init__(self, module: nn.Module, params: Iterable[str]) -> None:
        super().__init__(module, params, self._add)
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def read(self, param: str) -> Tensor | None:
        """``[I]`` in fp32; None before the layer has read anything."""
        owner = self.owner.get(param)
        return None if owner is None else (self._sums[owner] / self._tokens[owner]).float()

    @torch.no_grad()
    def _add(self, owner: str, x: Tensor) -> None:
        x_TI = x.flatten(0, -2)
        squares_I = x_TI.float().square().sum(0, dtype=torch.float64)
        _add(self._sums, owner, squares_I)
        self._tokens[owner] = self._tokens.get(owner, 0) + x_TI.shape[0]


def _add(into: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in into:
        into[name].add_(value)
    else:
        into[name] = value


def _finite(*tensors: Tensor | None) -> bool:
    return all(bool(torch.isfinite(t.sum())) for t in tensors if t is not None)


def _gram(x_TI: Tensor) -> Tensor:
    """Mean of the outer products, in fp32 whatever the precision of the pass."""
    tokens, width = x_TI.shape
    with torch.autocast(x_TI.device.type, enabled=False):
        into = x_TI.new_zeros(width, width, dtype=torch.float32)
        add_gram(into, x_TI.float(), 1.0 / tokens)
        return mirror(into)
