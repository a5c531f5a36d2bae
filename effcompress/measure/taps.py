"""Gradients of masks: the derivative of the loss by a mask on every mini-group, token by token.

A mask ``m = 1`` multiplies the output of a mini-group. Where its values are ``v`` and the backward
computes ``dL/dv``, the token's ``dL/dm`` is ``sum v dL/dv`` over the positions of the mini-group
(chain rule for ``m v`` at ``m = 1``). Training's backward computes both factors anyway. The mask is
placed where the effect of the mini-group is one tensor: at the input of the one layer that reads it
(the down projection for an FFN channel, the output projection for a head), else at the outputs of
all layers that write it (the embedding and the last projections of the blocks for a channel of the
residual stream).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.errors import CoverageError
from effcompress.measure.hooks import Hooks, linears
from effcompress.types import WHOLE, AxisMap, GroupSet, Member

Take = Callable[[str, Tensor], None]
"""Gets the name of a group set and its ``mask_grad_TG``."""


@final
class MaskGradients(Hooks):
    """Hooks on a model as it physically is; make a new one when its tensors were shortened.

    Raises CoverageError for mini-groups that are no positions of a linear layer or an embedding
    (layers, blocks, experts and what experts write into).
    """

    def __init__(self, module: nn.Module, axes: AxisMap, sets: Sequence[GroupSet]) -> None:
        super().__init__()
        self._taps: Counter[str] = Counter()
        self._take: Take | None = None
        self._sums: dict[str, tuple[Tensor, int]] = {}
        for path, reads, found in _places(module, axes, sets):
            self._taps.update(s.name for s, _ in found)
            self._handles.append(self._listen(module.get_submodule(path), reads, found))

    @contextmanager
    def handing_to(self, take: Take) -> Iterator[None]:
        """Hands ``mask_grad_TG`` of every set to ``take`` in the backward of each micro-batch."""
        self._take = take
        with self.listening():
            yield

    def _reset(self) -> None:
        self._take = None
        self._sums.clear()

    def _listen(self, module: nn.Module, reads: bool, found: list[tuple[GroupSet, Tensor]]) -> Any:
        def catch(value: Any) -> None:
            # `measuring` is False while a block is recomputed: the first pass hung its hook on.
            if not self.measuring or not value.requires_grad or not torch.is_grad_enabled():
                return
            kept = value.detach()
            value.register_hook(lambda grad: self._arrived(kept, grad, found))

        if reads:
            return module.register_forward_pre_hook(lambda _m, args: catch(args[0]))
        return module.register_forward_hook(lambda _m, _args, out: catch(out))

    @torch.no_grad()
    def _arrived(self, value: Tensor, grad: Tensor, found: list[tuple[GroupSet, Tensor]]) -> None:
        effect_TI = value.flatten(0, -2).float() * grad.flatten(0, -2)
        for s, index_GB in found:
            effect_TG = _by_unit(effect_TI, index_GB)
            earlier, count = self._sums.pop(s.name, (None, 0))
            if earlier is not None:
                effect_TG = effect_TG + earlier
            if count + 1 < self._taps[s.name]:
                self._sums[s.name] = (effect_TG, count + 1)
            elif self._take is not None:
                self._take(s.name, effect_TG)


def _places(
    module: nn.Module, axes: AxisMap, sets: Sequence[GroupSet]
) -> list[tuple[str, bool, list[tuple[GroupSet, Tensor]]]]:
    """(module, whether its input is meant, the sets there with their positions)."""
    found: dict[tuple[str, bool], list[tuple[GroupSet, Tensor]]] = defaultdict(list)
    modules, inputs = dict(module.named_modules()), linears(module)
    prefix = axes.family.layer.partition("{i}")[0]
    for s in sets:
        readers, writers = [], []
        for m in s.members:
            path = m.param.removesuffix(".weight")
            reads = inputs.get(m.param) if m.dim != WHOLE else None
            if reads == m.dim and path.startswith(prefix):
                readers.append((path, m.index_GB))
            elif (reads is not None and reads != m.dim) or _looks_up(modules.get(path), axes, m):
                writers.append((path, m.index_GB))
        # Channels of the stream have many readers; a KV head one in every layer that attends to it.
        read = bool(readers) if s.layer is not None else len(readers) == 1
        places = readers if read else writers
        experts = any(axes.stacked(m.param) for m in s.members)
        if not places or experts:
            raise CoverageError(
                f"no one tensor holds what the mini-groups of '{s.name}' do, so masks on them "
                "have no gradient here",
                fix="Use a criterion of weights (taylor, taylor_second), or leave this space out.",
            )
        for path, index_GB in places:
            found[path, read].append((s, index_GB))
    return [(path, reads, here) for (path, reads), here in found.items()]


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
