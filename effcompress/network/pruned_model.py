"""A model and what of its parent is left in it: the one place where masks, surgery, modules and
configuration are kept in agreement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from effcompress import groups
from effcompress.distributed import shard_like
from effcompress.model.lineage import depth_of, parent_of
from effcompress.model.modeling_pruned import silent
from effcompress.network.axis_map import family_for
from effcompress.network.shapes import bounded
from effcompress.registry import Bound
from effcompress.removal.commit import commit
from effcompress.removal.compensate import Inputs
from effcompress.removal.ledger import Ledger
from effcompress.removal.mask import attend, mask
from effcompress.removal.modules import adapt, agree, agree_config, cut_depth, depth_fields
from effcompress.removal.norms import Norm, norms
from effcompress.removal.optimizer import forget
from effcompress.spec import TargetSpec
from effcompress.types import DEPTH, AxisMap, Config, Depth, Family, GroupSet, Plan, axis_kind


@final
class PrunedModel:
    """``parent`` and ``parent_sets`` are what the model was, ``axes`` and ``sets`` what it
    physically is, ``ledger`` which of it is alive.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Config,
        space: Sequence[Bound] = (),
        *,
        target: TargetSpec | None = None,
        family: Family | None = None,
    ) -> None:
        """``config`` is the configuration of ``module`` as plain values; that of a model pruned
        before says itself what it lacks. A ``target`` may bound what the space gives. An
        architecture that nobody declared is traced.
        """
        self.module = module
        self.config = parent_of(config)
        self.family = family or family_for(self.config)
        self.depth = depth_of(self.family, config) or groups.full_depth(self.family, self.config)
        self.parent: AxisMap = groups.axes_of(module, self.family, self.config, self.depth)
        self.parent_sets: list[GroupSet] = groups.find(self.parent, space) if space else []
        if target is not None:
            self.parent_sets = bounded(self.parent_sets, target)
        self.axes = self.parent
        self.sets = self.parent_sets
        self.ledger = Ledger({s.name: s.size for s in self.parent_sets})

    @property
    def params(self) -> int:
        """Parameters of the model as a function: masked units do not count."""
        return self.parent.count(self.ledger.widths())

    @property
    def widths(self) -> dict[str, int]:
        """Units alive on every axis that can be cut, whether the recipe does or not; none where
        the layer is gone. Layers and blocks are axes of one unit; blocks are told when they may go.
        """
        wide = {**self.parent.widths, **self.ledger.widths()}
        kinds = {s.kind for s in self.parent_sets}
        hidden = {*self.family.fixed, *({*DEPTH[1:]} - kinds)}
        return {
            name: width * self.parent.living(name, wide)
            for name, width in wide.items()
            if axis_kind(name) not in hidden
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by name; a tied one once."""
        return dict(self.module.named_parameters())

    def norms(self) -> list[Norm]:
        """Norms over something that can be cut."""
        return list(norms(self.module, self.axes))

    def mask(
        self,
        plan: Plan,
        *,
        optimizer: Optimizer | None = None,
        repairs: Sequence[Bound] = (),
        inputs: Inputs | None = None,
    ) -> None:
        """Remove mini-groups (original numbers) as a function. Raises SurgeryError."""
        mask(
            plan,
            self.sets,
            self.module,
            self.axes,
            self.ledger,
            optimizer=optimizer,
            repairs=repairs,
            inputs=inputs,
        )

    def commit(self, optimizer: Optimizer | None = None, inputs: Inputs | None = None) -> None:
        """Make the tensors as short, and the model as shallow, as the function is; what was
        measured of the linear layers' ``inputs`` with them.
        """
        kept = commit(self.sets, self.module, self.axes, self.ledger, optimizer=optimizer)
        if inputs is not None:
            for param, dim in inputs.params.items():
                if dim in kept.get(param, {}):
                    inputs.shorten(param, kept[param][dim])
        gone = [
            s.name for s in self.sets if s.kind in DEPTH and not self.ledger.alive[s.name].any()
        ]
        if gone:
            self._cut_depth(self.depth.without(gone))
            if optimizer is not None:
                forget(optimizer, self.module)
        self.refresh()

    def _cut_depth(self, after: Depth) -> None:
        cut_depth(self.module, self.family, self.depth, after, silent)
        self.depth = after

    def refresh(self) -> None:
        """After shapes changed: modules, configuration and group sets follow the tensors."""
        agree(self.module)
        self.axes = groups.axes_of(self.module, self.family, self.config, self.depth)
        adapt(self.module, self.axes, self.config)
        agree_config(self.module, self.fields())
        self.sets = groups.left(self.parent_sets, self.axes)
        attend(self.module, self.axes, self.ledger)

    def fields(self) -> dict[str, Any]:
        """Configuration fields of the model as it physically is; sizes where layers agree."""
        found = depth_fields(self.family, self.config, self.depth.layers)
        uniform = uniform_widths(self.axes)
        return {**found, **(self.family.resize(self.config, uniform) if uniform else {})}

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs besides tensors and ledger, as JSON values."""
        return {
            "depth": {"layers": [*self.depth.layers], "absent": sorted(self.depth.absent)},
            "epsilons": [norm.epsilon for norm in self.norms()],
        }

    def restore(
        self,
        state: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        ledger: Mapping[str, torch.Tensor],
    ) -> None:
        """The model that ``state``, its parameters by name and its ledger were taken from, in place
        of the parent.
        """
        held = state["depth"]
        self._cut_depth(Depth(tuple(held["layers"]), frozenset(held["absent"])))
        for name, p in self.parameters().items():
            stored = nn.Parameter(shard_like(tensors[name].to(p.device, p.dtype), p))
            torch.utils.swap_tensors(p, stored)
        self.ledger.load_state_dict(ledger)
        self.refresh()
        for norm, epsilon in zip(self.norms(), state["epsilons"], strict=True):
            norm.epsilon = epsilon


def uniform_widths(axes: AxisMap) -> dict[str, int] | None:
    """Width per axis kind, or None when layers differ or a block is missing."""
    found = widest(axes)
    kinds = {name: axis_kind(name) for name in axes.widths}
    same = all(axes.widths[name] == found[kind] for name, kind in kinds.items() if kind in found)
    return found if same and not axes.depth.absent else None


def widest(axes: AxisMap) -> dict[str, int]:
    """Largest width per axis kind."""
    found: dict[str, int] = {}
    for name, width in axes.widths.items():
        kind = axis_kind(name)
        if kind not in DEPTH:
            found[kind] = max(width, found.get(kind, 0))
    return found
