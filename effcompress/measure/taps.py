"""Gradients of masks: the derivative of the loss by a mask on every mini-group, token by token.

A mask ``m = 1`` multiplies the output of a mini-group. Where its values are ``v`` and the backward
computes ``dL/dv``, the token's ``dL/dm`` is ``sum v dL/dv`` over the positions of the mini-group
(chain rule for ``m v`` at ``m = 1``). Training's backward computes both factors anyway. The mask is
placed where the effect of the mini-group is one tensor: at the input of the one layer that reads it
(the down projection for an FFN channel, the output projection for a head), else at the outputs of
all layers that write it (the embedding and the last projections of the blocks for a channel of the
residual stream). Experts of mixtures write into one tensor together: what one of them adds, and
what its channels are, is computed again from the call of their module (``routes``). A mask on an
expert leaves the router's weights as they are.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from effcompress.errors import CoverageError
from effcompress.measure.hooks import Hooks, linears
from effcompress.measure.routes import Call, Down, by_channel, by_expert
from effcompress.types import WHOLE, AxisMap, GroupSet, Member

Take = Callable[[str, Tensor], None]
"""Gets the name of a group set and its ``mask_grad_TG``."""
How = Literal["read", "written", "added", "expert", "channel"]
"""Where masks are: on what a module reads or returns, on what all of its experts add, on what each
of them adds, on what their down projections read.
"""
Found = list[tuple[GroupSet, Tensor]]
"""Sets with their positions, ``[G, B]``."""


@final
class MaskGradients(Hooks):
    """Hooks on a model as it physically is; make a new one when its tensors were shortened.

    Raises CoverageError for mini-groups that are no positions of a linear layer, an embedding or
    the experts of a mixture (layers and blocks).
    """

    def __init__(self, module: nn.Module, axes: AxisMap, sets: Sequence[GroupSet]) -> None:
        super().__init__()
        self._taps: Counter[str] = Counter()
        self._take: Take | None = None
        self._sums: dict[str, tuple[Tensor, int]] = {}
        for (path, how, down), found in _places(module, axes, sets).items():
            self._taps.update(s.name for s, _ in found)
            place = module.get_submodule(path)
            if how in ("expert", "channel"):
                self._handles.append(self._listen_to_experts(place, down, found))
            else:
                apart = how == "added" and axes.family.inputs_weighed
                self._handles.append(self._listen(place, how == "read", found, apart=apart))

    @contextmanager
    def handing_to(self, take: Take) -> Iterator[None]:
        """Hands ``mask_grad_TG`` of every set to ``take`` in the backward of each micro-batch."""
        self._take = take
        with self.listening():
            yield

    def _reset(self) -> None:
        self._take = None
        self._sums.clear()

    def _listen(self, module: nn.Module, reads: bool, found: Found, *, apart: bool) -> Any:
        """``apart``: the values of all experts, ``[E * T, I]``, are behind one another."""
        experts = len(next(module.parameters())) if apart else 1

        def catch(value: Any) -> None:
            # `measuring` is False while a block is recomputed: the first pass hung its hook on.
            if not self.measuring or not value.requires_grad or not torch.is_grad_enabled():
                return
            # A copy of what is written: some classes add to it in place.
            kept = value.detach() if reads else value.detach().clone()
            value.register_hook(lambda grad: self._arrived(kept, grad, found, experts))

        if reads:
            return module.register_forward_pre_hook(lambda _m, args: catch(args[0]))
        return module.register_forward_hook(lambda _m, _args, out: catch(out))

    def _listen_to_experts(self, experts: nn.Module, down: Down | None, found: Found) -> Any:
        """``down``: of masks on channels; None: of masks on the experts."""

        def called(module: nn.Module, args: Any, named: Any, out: Tensor) -> None:
            if not self.measuring or not out.requires_grad or not torch.is_grad_enabled():
                return
            call = Call.of(module, args, named)
            out.register_hook(lambda grad: arrived(call, grad))

        def arrived(call: Call, grad: Tensor) -> None:
            if down is not None:
                self._add(by_channel(call, grad, down), found)
                return
            for s, index_GB in found:
                self._add(by_expert(call, grad, s.size), [(s, index_GB)])

        return experts.register_forward_hook(called, with_kwargs=True)

    @torch.no_grad()
    def _arrived(self, value: Tensor, grad: Tensor, found: Found, experts: int) -> None:
        effect_TI = value.flatten(0, -2).float() * grad.flatten(0, -2)
        if experts > 1:
            effect_TI = effect_TI.unflatten(0, (experts, -1)).sum(0)
        self._add(effect_TI, found)

    @torch.no_grad()
    def _add(self, effect_TI: Tensor, found: Found) -> None:
        """Adds up what arrives for a set; it is handed on when the last of its places has."""
        for s, index_GB in found:
            effect_TG = _by_unit(effect_TI, index_GB)
            earlier, count = self._sums.pop(s.name, (None, 0))
            if earlier is not None:
                effect_TG = effect_TG + earlier
            if count + 1 < self._taps[s.name]:
                self._sums[s.name] = (effect_TG, count + 1)
            elif self._take is not None:
                self._take(s.name, effect_TG)


Place = tuple[str, How, Down | None]
"""The path of a module, where masks are, and of masks on channels the experts' projection."""


def _places(module: nn.Module, axes: AxisMap, sets: Sequence[GroupSet]) -> dict[Place, Found]:
    """Where the masks are -> the sets there with their positions."""
    found: dict[Place, Found] = defaultdict(list)
    modules, inputs = dict(module.named_modules()), linears(module)
    for s in sets:
        by_how: dict[str, dict[Place, Tensor]] = defaultdict(dict)
        for m in s.members:
            place = _of_experts(axes, m) or _of_linear(modules, inputs, axes, m)
            if place is not None:
                by_how[place[1]][place] = m.index_GB
        for param, index_GB in s.reading(inputs).items():
            place = param.removesuffix(".weight"), "read", None
            if place in by_how["read"]:
                by_how["read"][place] = index_GB
        readers = by_how["read"] | by_how["channel"]
        # Channels of the stream have many readers; a KV head one in every layer that attends to it.
        read = bool(readers) if s.layer is not None else len(readers) == 1
        places = by_how["expert"] or (readers if read else by_how["written"] | by_how["added"])
        if not places:
            raise CoverageError(
                f"no one tensor holds what the mini-groups of '{s.name}' do, so masks on them "
                "have no gradient here",
                fix="Use a criterion of weights (taylor, taylor_second), or leave this space out.",
            )
        for place, index_GB in places.items():
            found[place].append((s, index_GB))
    return found


def _of_experts(axes: AxisMap, m: Member) -> Place | None:
    """The place of a member in the weights of all experts, ``[E, O, I]`` or ``[E, I, O]``."""
    if m.dim == WHOLE or not axes.stacked(m.param):
        return None
    path, _, name = m.param.rpartition(".")
    if m.dim == 0:
        return path, "expert", None
    if m.dim == axes.family.expert_inputs:
        return path, "channel", Down(name, m.dim)
    return path, "added", None


def _of_linear(
    modules: Mapping[str, nn.Module], inputs: Mapping[str, int], axes: AxisMap, m: Member
) -> Place | None:
    """The place of a member in a linear layer within the model's layers, or in an embedding."""
    path, reads = m.param.removesuffix(".weight"), inputs.get(m.param)
    if m.dim == WHOLE:
        return None
    if reads == m.dim:
        inside = path.startswith(axes.family.layer.partition("{i}")[0])
        return (path, "read", None) if inside else None
    if reads is not None or _looks_up(modules.get(path), axes, m):
        return path, "written", None
    return None


def _looks_up(module: nn.Module | None, axes: AxisMap, m: Member) -> bool:
    """The table of the tokens; one of positions gives the same row to all sequences."""
    carries = {n for segment in axes.by_param[m.param] for n in segment.names}
    return isinstance(module, nn.Embedding) and m.dim == 1 and "positions" not in carries


def _by_unit(effect_TI: Tensor, index_GB: Tensor) -> Tensor:
    """Sum over the positions of each unit, ``[T, G]``."""
    units, each = index_GB.shape
    if torch.equal(index_GB.flatten(), torch.arange(effect_TI.shape[1])):
        return effect_TI if each == 1 else effect_TI.view(-1, units, each).sum(-1)
    return effect_TI[:, index_GB.to(effect_TI.device)].sum(-1)
