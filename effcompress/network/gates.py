"""Learned gates: one logit for each mini-group, trained with the weights towards a size or a shape
(arXiv:2310.06694, arXiv:2204.00408).

``N`` gates lie in one flat tensor, set after set; ``R`` rows: the units of one set, or all layers
(blocks) of a model. A *family* is all rows of one kind. Its expected sparsity, the mean of
``1 - P(z > 0)`` over a row, follows a target that rises from 0; the constraint (a plugin) turns the
difference into a penalty, whose multipliers ascend while gates and weights descend.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import AdamW

from effcompress.distributed.world import World
from effcompress.errors import NotFinite
from effcompress.network.masked import MaskedForward, Values
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.shapes import gated_targets
from effcompress.record.events import GateFamily
from effcompress.registry import Bound
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, AxisMap, GroupSet, Plan, Scores, axis_kind

SIZE = "size"
"""Name of the one family where the target is a number of parameters."""


@dataclass(frozen=True)
class _Row:
    """Gates ``start`` to ``stop``: the sets they belong to, and the fraction that is to go."""

    kind: str
    names: tuple[str, ...]
    start: int
    stop: int
    target: float


@final
class LearnedGates:
    """The gates of one model, their optimizers, and the masked forward pass."""

    def __init__(
        self, pruned: PrunedModel, prune: PruneSpec, params: int, seed: int, device: torch.device
    ) -> None:
        """``params``: parameters at the end. Raises CoverageError as ``MaskedForward`` and
        ``gated_targets`` do.
        """
        assert prune.gates is not None
        spec = self.spec = prune.gates
        self.seed, self.device = seed, device
        self.rows = _rows(pruned.sets, gated_targets(pruned.sets))
        self.names = [name for row in self.rows for name in row.names]
        sizes = {s.name: s.size for s in pruned.sets}
        self.sizes = [sizes[name] for name in self.names]
        self.forward = MaskedForward(pruned, self.names)
        self.size = None
        if prune.target.shape is None:
            self.size = ExpectedSize(pruned.axes, self.names, params)
        self.families = [SIZE] if self.size else [*dict.fromkeys(row.kind for row in self.rows)]
        self.logit_N = self._initial().requires_grad_()
        self.multipliers_F2 = torch.zeros(len(self.families), 2, device=device, requires_grad=True)
        betas: Any = {"betas": (0.9, 0.95), "weight_decay": 0.0}
        self.optimizer = AdamW([self.logit_N], lr=spec.learning_rate, **betas)
        self.ascent = AdamW([self.multipliers_F2], lr=spec.multiplier_rate, maximize=True, **betas)
        self._row_N = torch.cat(
            [torch.full((row.stop - row.start,), r) for r, row in enumerate(self.rows)]
        ).to(device)
        self._size_R = torch.bincount(self._row_N, minlength=len(self.rows))
        self._target_R = torch.tensor([row.target for row in self.rows], device=device)

    def _initial(self) -> Tensor:
        spec, generator = self.spec, self._generator("start")
        parts = [
            (spec.starts or {}).get(row.kind, spec.start)
            + spec.spread * torch.randn(row.stop - row.start, generator=generator)
            for row in self.rows
        ]
        return torch.cat(parts).clamp_(-spec.limit, spec.limit).to(self.device)

    def _generator(self, *place: object) -> torch.Generator:
        text = " ".join(map(str, ("gates", self.seed, *place)))
        secret = hashlib.blake2b(text.encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(secret, "little"))

    def _gate(self, uniform_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values and probabilities of being open, [N]. Raises PluginError."""
        gate: Bound = self.spec.gate
        found: Any = gate(logit=self.logit_N, uniform=uniform_N)
        if not isinstance(found, tuple) or len(found) != 2:
            said = f"returned {type(found).__name__} where a pair was expected"
            raise gate.plugin.error(said, "Return the gates' values, and how likely each is open.")
        for part in found:
            gate.plugin.require_shape(part, f"for {len(self.logit_N)} gates", self.logit_N.shape)
        return found

    def _by_set(self, value_N: Tensor) -> Values:
        return dict(zip(self.names, value_N.split(self.sizes), strict=True))

    @contextmanager
    def drawn(self, step: int, micro: int) -> Iterator[None]:
        """Masks the pass inside, backward included, by gates that are a function of seed, step and
        the number of the micro-batch within the global batch; their gradient is added to
        ``logit_N.grad``.
        """
        generator = self._generator(step, micro, 0)  # the 0: draws of one process as they ever were
        uniform_N = torch.rand(len(self.logit_N), generator=generator) * (1 - 2e-6) + 1e-6
        value_N, _ = self._gate(uniform_N.to(self.device))
        # A leaf of its own: wrappers and recomputed layers run several backward passes of their
        # own, and the graph behind the leaf is used once, here.
        leaf_N = value_N.detach().requires_grad_()
        with self.forward.using(self._by_set(leaf_N)):
            yield
        if leaf_N.grad is not None:
            value_N.backward(leaf_N.grad)

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """Masks the passes inside by the gates without noise: in a row of ``n``, as many of the
        lowest as are expected to be shut, ``round(n - sum P)``, are 0.
        """
        with self.forward.using(self.values(None)):
            yield

    @torch.no_grad()
    def values(self, plan: Plan | None) -> Values:
        """The gates without noise: 0 for the mini-groups of ``plan`` (positions in the model as it
        is), or, without a plan, for as many as expected.
        """
        value_N, open_N = self._gate(None)
        value_N = value_N.clone()
        if plan is not None:
            by_set = self._by_set(value_N)
            for name in by_set.keys() & plan.keys():
                by_set[name][plan[name]] = 0.0
            return by_set
        for row in self.rows:
            some = value_N[row.start : row.stop]
            shut = round(float(len(some) - open_N[row.start : row.stop].double().sum()))
            some[some.argsort(stable=True)[:shut]] = 0.0
        return self._by_set(value_N)

    def gather(self, world: World) -> None:
        """Adds up the gradients of all processes. Collective. Raises NotFinite where the sum is not
        finite.
        """
        if self.logit_N.grad is not None:
            self.logit_N.grad = world.total({"": self.logit_N.grad})[""]
            if not bool(torch.isfinite(self.logit_N.grad).all()):
                raise NotFinite("the gradient of the learned gates is not finite")

    def learn(self, progress: float, factor: float) -> dict[str, GateFamily]:
        """Takes one step of gates and multipliers and drops the gradients. ``progress``: fraction
        of the pruning stage behind the model, ``factor``: learning rate over its peak. Returns the
        families as they were before.
        """
        spec = self.spec
        found = self._penalised(min(1.0, progress / spec.warmup) if spec.warmup > 0 else 1.0)
        rate = factor if spec.schedule == "training" else 1.0
        for optimizer, peak in (
            (self.optimizer, spec.learning_rate),
            (self.ascent, spec.multiplier_rate),
        ):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        self.forget()
        with torch.no_grad():
            self.logit_N.clamp_(-spec.limit, spec.limit)
        return found

    def forget(self) -> None:
        """Drops the gradients: of a step that is skipped, say."""
        self.logit_N.grad = self.multipliers_F2.grad = None

    def _penalised(self, way: float) -> dict[str, GateFamily]:
        """Adds the gradient of the constraint; ``way``: how far the targets have risen."""
        _, open_N = self._gate(None)
        # Rows lie one behind the other. `index_add` would add in any order on a GPU, and ranks and
        # resumed runs would differ in the last digit.
        sums_R = torch.stack([open_G.sum() for open_G in open_N.split(self._size_R.tolist())])
        shut_R = 1.0 - sums_R / self._size_R
        found, penalties = {}, []
        for f, name in enumerate(self.families):
            if self.size:
                expected = self.size.removed(self._by_set(open_N)).reshape(1)
                target, here = torch.full_like(expected, self.size.target), slice(None)
            else:
                of = [r for r, row in enumerate(self.rows) if row.kind == name]
                expected, target = shut_R[of], self._target_R[of]
                here = torch.isin(self._row_N, torch.tensor(of, device=self.device))
            first, second = self.multipliers_F2[f]
            asked: Any = {"expected": expected, "target": target * way}
            penalty = self.spec.constraint(**asked, linear=first, quadratic=second)
            self.spec.constraint.plugin.require_shape(penalty, "for one penalty", ())
            penalties.append(penalty)
            near = ((open_N[here] >= 0.05) & (open_N[here] <= 0.95)).float().mean()
            numbers = {"expected": expected.mean(), "target": (target * way).mean()}
            numbers |= {"linear": first, "quadratic": second, "undecided": near}
            said = {key: float(value.detach()) for key, value in numbers.items()}
            found[name] = GateFamily(**said)
        torch.stack(penalties).sum().backward()
        return found

    def scores(self, criterion: Bound) -> Scores:
        """The criterion's saliency of every gated mini-group, row by row, in physical order.

        Raises PluginError when it returns something else than one number per gate.
        """
        found_N = torch.empty(len(self.logit_N))
        for row in self.rows:
            logit_G = self.logit_N.detach()[row.start : row.stop]
            score_G = criterion(logit=logit_G)
            criterion.plugin.require_shape(score_G, f"for {len(logit_G)} gates", logit_G.shape)
            found_N[row.start : row.stop] = score_G.float().cpu()
        return dict(self._by_set(found_N))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns flat tensors for a checkpoint."""
        found = {"logit": self.logit_N.detach(), "multipliers": self.multipliers_F2.detach()}
        for name, optimizer in (("logit", self.optimizer), ("multipliers", self.ascent)):
            for values in optimizer.state.values():
                found |= {f"{name}/{key}": value for key, value in values.items()}
        return found

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what ``state_dict`` returned."""
        for name, p, optimizer in (
            ("logit", self.logit_N, self.optimizer),
            ("multipliers", self.multipliers_F2, self.ascent),
        ):
            p.copy_(state[name])
            moments = {k: v for k, v in state.items() if k.startswith(f"{name}/")}
            for key, value in moments.items():
                like = p.device if value.shape == p.shape else value.device
                optimizer.state[p][key.partition("/")[2]] = value.clone().to(like)


@final
class ExpectedSize:
    """The expected fraction of the parameters that gates remove, a polynomial in the expected
    widths: gates are independent, and no axis is on two dimensions of a parameter.

    Counted are the matrices that a gated axis is on, of the whole model if hidden channels are
    gated, else of its layers.
    """

    def __init__(self, axes: AxisMap, names: Sequence[str], params: int) -> None:
        self.widths = dict(axes.widths)
        self.terms: dict[tuple[str, ...], int] = {}
        """Gated axes -> the factor of the product of their widths."""
        for param, shape in axes.shapes.items():
            if len(shape) > 1 and any(_on(axes, param, name) for name in names):
                for of, factor in axes.terms(param):
                    gated = tuple(sorted(name for name in of if name in names))
                    fixed = math.prod(self.widths[name] for name in of if name not in names)
                    self.terms[gated] = self.terms.get(gated, 0) + factor * fixed
        self.all = sum(
            factor * math.prod(self.widths[name] for name in gated)
            for gated, factor in self.terms.items()
        )
        self.target = (axes.count() - params) / self.all
        """The fraction of these that is to go."""

    def removed(self, open_: Values) -> Tensor:
        """Returns ``1 - E / all``, where ``open_`` are the probabilities of every gated set."""
        width = {name: open_G.sum() for name, open_G in open_.items()}
        like = next(iter(width.values()))
        left = like.new_zeros(())
        for gated, factor in self.terms.items():
            product = like.new_ones(())
            for name in gated:
                product = product * width[name]
            left = left + factor * product
        return 1.0 - left / self.all


def _on(axes: AxisMap, param: str, name: str) -> bool:
    return name in axes.gates[param] or any(name in s.names for s in axes.by_param[param])


def _rows(sets: Sequence[GroupSet], targets: dict[str, float]) -> list[_Row]:
    """Rows of the gated sets: one for each set, one for all layers, or blocks, of a kind."""
    together: dict[str, list[GroupSet]] = {}
    for s in sets:
        if s.name in targets:
            together.setdefault(s.kind if s.kind in DEPTH else s.name, []).append(s)
    found, start = [], 0
    for members in together.values():
        stop = start + sum(s.size for s in members)
        names = tuple(s.name for s in members)
        found.append(_Row(axis_kind(names[0]), names, start, stop, targets[names[0]]))
        start = stop
    return found
