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
from effcompress.distributed.world import ALONE, World
from effcompress.errors import NotFinite
from effcompress.measure.hooks import InputHooks, linears
from effcompress.types import AxisMap, GroupSet


def readers(module: nn.Module, axes: AxisMap, sets: Sequence[GroupSet]) -> dict[str, int]:
    """Returns the weights of linear layers within the model's layers that lose inputs when
    mini-groups of ``sets`` go, and the dimension that their inputs run along. Embeddings and the
    head are not among them.
    """
    shrinking = {(m.param, m.dim) for s in sets for m in s.sides}
    inside = linears(module, axes.family.layer.partition("{i}")[0])
    return {param: dim for param, dim in inside.items() if (param, dim) in shrinking}


@final
class Grams(InputHooks):
    """Running mean of ``x x^T`` over tokens, ``[I, I]`` in fp32 per distinct input.

    ``tokens`` per forward pass are taken, evenly spread over it and other ones every time;
    ``decay`` is the weight of the past per step, whatever its number of micro-batches. A removed
    input's row and column are zero.
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
    ) -> None:
        """``second``: whether the matrices are wanted, or only the means. ``world``: processes that
        measure other rows of the same steps; ``read`` and ``mean`` are collective, so all processes
        have to call them in the same order.
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
            yield

    def read(self, param: str) -> Tensor | None:
        """Returns the mean so far, ``[I, I]``; None before a pass was measured, or without
        ``second``. Raises NotFinite when it is not finite.
        """
        owner = self.owner.get(param, "")
        if owner in self._halves:  # read while it listens
            self._complete()
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
        rank 0 holds all that was measured. Sums over the processes stay the same. Collective.
        """
        world = self.world
        if world.size == 1:
            return
        for key, value in world.total(self._sums()).items():
            kind, _, name = key.partition("/")
            (self.values if kind == "gram" else self.means)[name] = value / world.size
        weights = world.sums(list(self.weights.values()))
        self.weights = {
            name: weight / world.size for name, weight in zip(self.weights, weights, strict=True)
        }

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

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What ``state_dict`` gave."""
        names = list(self.params)
        for key, value in state.items():
            kind, _, name = key.partition("/")
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
        if self.second:
            self._add_square(owner, some_TI)
            self.operations += gram_operations(*some_TI.shape)
        self.weights[owner] = self.weights.get(owner, 0.0) + 1.0

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
