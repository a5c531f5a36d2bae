"""A model together with its axes and ledger. The only place that changes masks, shapes, modules and
configuration, so that they always agree.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from effcompress import groups
from effcompress.distributed.gather import places_of, put
from effcompress.distributed.rows import shard_like
from effcompress.model.lineage import STREAM, depth_of, parent_of
from effcompress.model.modeling_pruned import rotate, silent, untie
from effcompress.network.axis_map import family_for
from effcompress.network.shapes import bounded, uniform_widths
from effcompress.registry import Bound
from effcompress.removal.commit import commit
from effcompress.removal.compensate import Inputs
from effcompress.removal.ledger import Ledger
from effcompress.removal.mask import attend, mask
from effcompress.removal.modules import (
    adapt,
    agree,
    cut_depth,
    depth_fields,
    selection_buffers,
)
from effcompress.removal.norms import Norm, norms
from effcompress.removal.novices import keeps_rows
from effcompress.removal.optimizer import forget
from effcompress.spec import TargetSpec
from effcompress.types import (
    DEPTH,
    AxisMap,
    Config,
    Depth,
    Family,
    GroupSet,
    Plan,
    Stream,
    axis_kind,
)


@final
class PrunedModel:
    """``parent`` and ``parent_sets`` describe the model before any cut, ``axes`` and ``sets`` its
    tensors now; ``ledger`` says which units are alive.
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
        """``config``: the configuration of ``module`` as plain values; that of a pruned model
        contains its parent's and what is absent. ``target.shape`` bounds the sets of ``space``.
        Without a ``family`` it is resolved, by tracing if it is not declared.
        """
        self.module = module
        self.config = parent_of(config)
        self.family = family or family_for(self.config)
        self.depth = depth_of(self.family, config) or groups.full_depth(self.family, self.config)
        for name, p in module.named_parameters():
            if is_untrained(self.family, name):
                p.requires_grad = False
        self.parent: AxisMap = groups.axes_of(module, self.family, self.config, self.depth)
        self.parent_sets: list[GroupSet] = groups.find(self.parent, space) if space else []
        if target is not None:
            self.parent_sets = bounded(self.parent_sets, target)
        self.axes = self.parent
        self.sets = self.parent_sets
        self.ledger = Ledger({s.name: s.size for s in self.parent_sets})

    @property
    def params(self) -> int:
        """Parameters of the model as a function; masked units do not count."""
        return self.parent.count(self.ledger.widths())

    @property
    def widths(self) -> dict[str, int]:
        """Living units on every axis that can be cut, whether the recipe does or not; 0 where the
        layer is gone. Layers are axes of one unit, and so are blocks, which are listed only if the
        recipe may cut them.
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
        """Returns the parameters by name; a tied one once."""
        return dict(self.module.named_parameters())

    def buffers(self) -> dict[str, torch.Tensor]:
        """Returns the buffers that the class stores, by name: scales of layers, constants of
        activations, biases of a router's selection. They are the parent's values, of the experts
        that are left where there is one per expert.
        """
        stored = self.module.state_dict(keep_vars=True).keys()
        return {name: b for name, b in self.module.named_buffers() if name in stored}

    def norms(self) -> list[Norm]:
        """Returns the norms over axes that can be cut."""
        return list(norms(self.module, self.axes))

    def mask(
        self,
        plan: Plan,
        *,
        optimizer: Optimizer | None = None,
        repairs: Sequence[Bound] = (),
        inputs: Inputs | None = None,
        outputs: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Masks mini-groups (original numbers): removes them as a function. Raises SurgeryError."""
        how = optimizer, repairs, inputs, outputs
        mask(plan, self.sets, self.module, self.axes, self.ledger, *how)

    @contextmanager
    def trial(
        self, plan: Plan, *, repairs: Sequence[Bound] = (), inputs: Inputs | None = None
    ) -> Iterator[None]:
        """Masks mini-groups inside and restores the model behind it, bit for bit; holds a copy of
        the weights (and of the statistics of layers' ``inputs``) meanwhile. Not for sharded models.
        """
        weights = {name: p.detach().clone() for name, p in self.parameters().items()}
        ledger = {name: t.clone() for name, t in self.ledger.state_dict().items()}
        epsilons = [norm.epsilon for norm in self.norms()]
        observed = inputs.state_dict() if inputs is not None else {}
        observed = {name: t.clone() for name, t in observed.items()}
        try:
            self.mask(plan, repairs=repairs, inputs=inputs)
            yield
        finally:
            for name, p in self.parameters().items():
                p.detach().copy_(weights[name])
            self.ledger.load_state_dict(ledger)
            for norm, epsilon in zip(self.norms(), epsilons, strict=True):
                norm.epsilon = epsilon
            attend(self.module, self.axes, self.ledger)
            if inputs is not None:
                inputs.load_state_dict(observed)

    def bound(self, target: TargetSpec) -> None:
        """Makes the target's shape the least that may be left."""
        self.parent_sets = bounded(self.parent_sets, target)
        self.sets = groups.left(self.parent_sets, self.axes)

    def commit(self, optimizer: Optimizer | None = None, inputs: Inputs | None = None) -> None:
        """Shortens tensors and removes layers to what is alive, and the statistics of linear
        layers' ``inputs`` with them.
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
            more = self.family.more_than_blocks(self.config)
            self._cut_depth(self.depth.without(gone, more=more))
            if optimizer is not None:
                forget(optimizer, self.module)
        self.refresh()

    def _cut_depth(self, after: Depth) -> None:
        cut_depth(self.module, self.family, self.config, self.depth, after, silent)
        self.depth = after

    def refresh(self) -> None:
        """Updates modules, configuration, axes and group sets after shapes changed."""
        agree(self.module)
        self.axes = groups.axes_of(self.module, self.family, self.config, self.depth)
        adapt(self.module, self.axes, self.config)
        # Not validated: between cuts a shape may be one that only another container class accepts
        # (``model/exact.py``).
        for key, value in self.fields().items():
            setattr(self.module.config, key, value)
        self.sets = groups.left(self.parent_sets, self.axes)
        attend(self.module, self.axes, self.ledger)

    def adopt(self, config: Config) -> None:
        """Resolves the module anew after its residual stream was rotated; ``config`` has the
        stream. What it has now is all there is: nothing is masked, and nothing may be cut.
        """
        self.config, self.family = dict(config), family_for(config)
        self.parent_sets, self.ledger = [], Ledger({})
        self.parent = groups.axes_of(self.module, self.family, self.config, self.depth)
        self.refresh()

    def fields(self) -> dict[str, Any]:
        """Returns configuration fields of the tensors as they are; sizes if all layers agree."""
        found = depth_fields(self.family, self.config, self.depth.layers)
        uniform = uniform_widths(self.axes, self.config)
        now = {**self.config, **found}
        return {**found, **(self.family.resize(now, uniform) if uniform else {})}

    def state(self) -> dict[str, Any]:
        """Returns what ``restore`` needs besides tensors and ledger, as JSON values."""
        return {
            "depth": {"layers": [*self.depth.layers], "absent": sorted(self.depth.absent)},
            "epsilons": [norm.epsilon for norm in self.norms()],
            **({"rotated": self.config[STREAM]} if STREAM in self.config else {}),
        }

    def restore(
        self,
        state: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        ledger: Mapping[str, torch.Tensor],
    ) -> None:
        """Turns the parent into the model that state, tensors and ledger were taken from."""
        # Not stored: no cut changes these values, only which of them are left.
        parents = {
            axis: selection_buffers(self.module, self.axes, axis)
            for axis in self.axes.axes("expert")
        }
        held = state["depth"]
        if (stream := state.get("rotated")) and STREAM not in self.config:
            self._rotate(stream, tensors)
        self._cut_depth(Depth(tuple(held["layers"]), frozenset(held["absent"])))
        for name, p in self.parameters().items():
            held_now = shard_like(tensors[name].to(p.device, p.dtype), p)
            stored = nn.Parameter(held_now, requires_grad=p.requires_grad)
            torch.utils.swap_tensors(p, stored)
        self.ledger.load_state_dict(ledger)
        self.refresh()
        for axis in self.axes.axes("expert"):
            held = axis in self.ledger.original and not keeps_rows(self.axes, axis)
            for owner, name, buffer in parents[axis] if held else ():
                setattr(owner, name, buffer[self.ledger.original[axis].to(buffer.device)])
        # After the refresh: it renumbers norms, and epsilons are part of no tensor.
        for norm, epsilon in zip(self.norms(), state["epsilons"], strict=True):
            norm.epsilon = epsilon

    def _rotate(self, stream: Stream, tensors: Mapping[str, torch.Tensor]) -> None:
        """Gives the source's module the parts of a rotated one, with the shapes of ``tensors``."""
        tied = bool(self.config.get("tie_word_embeddings"))
        config = {**self.config, STREAM: stream, "tie_word_embeddings": tied and stream["mapped"]}
        if tied and not stream["mapped"]:
            untie(self.module)
        rotate(self.module, dict(stream))
        names = {id(p): name for name, p in self.module.named_parameters()}
        like = next(self.module.parameters())  # the embedding: sharded if anything is
        for key, (p, places) in places_of(self.module).items():
            empty = torch.empty(tensors[names[key]].shape, dtype=p.dtype, device=p.device)
            put(nn.Parameter(shard_like(empty, like), requires_grad=p.requires_grad), places)
        self.adopt(config)


def is_untrained(family: Family, param: str) -> bool:
    """Whether no gradient reaches a parameter; transformers marks all that it loads as trained."""
    pattern = re.sub(r"\.\d+\.", ".{i}.", param, count=1)
    return pattern in family.untrained
