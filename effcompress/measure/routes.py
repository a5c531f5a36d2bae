"""What the experts of a mixture make of the tokens that its router sends to them, from one call of
their module: it is called once more for each expert, with its tokens alone, so that activations,
clamps and the order of tensors are the model's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Down:
    """Where experts read their channels: ``name`` is the parameter of the down projections within
    their module, ``inputs`` the dimension of it that the channels run along (1 or 2; 0 are the
    experts).
    """

    name: str
    inputs: int

    def weight(self, experts: nn.Module) -> Tensor:
        """The down projections as ``[E, O, I]``, a view."""
        held = getattr(experts, self.name).detach()
        return held if self.inputs == 2 else held.transpose(1, 2)


@final
@dataclass(frozen=True)
class Call:
    """One call of the experts' module: tokens ``[T, D]``, and the numbers of their experts and the
    router's weights, ``[T, K]`` both. Without these, every expert reads all tokens, multiplied by
    the router's weight: ``[E * T, D]``.
    """

    experts: Any
    x: Tensor
    index_TK: Tensor | None = None
    weight_TK: Tensor | None = None

    @classmethod
    def of(cls, experts: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> "Call":
        return cls(experts, *(value.detach() for value in (*args, *named.values())))

    def sent(self) -> Iterator[tuple[int, Tensor, "Call"]]:
        """Yields every expert that tokens are sent to, by physical number, with the numbers of
        these tokens ``[N]`` and the call that they alone would make.
        """
        if self.index_TK is None or self.weight_TK is None:
            return
        # A cut router may still number removed experts: `place` maps its numbers to positions.
        place = getattr(self.experts, "place", None)
        for route in self.index_TK.unique().tolist():
            expert = route if place is None else int(place[route])
            if expert < 0:
                continue
            token_N, slot_N = (self.index_TK == route).nonzero(as_tuple=True)
            index_N1 = self.index_TK[token_N, slot_N, None]
            weight_N1 = self.weight_TK[token_N, slot_N, None]
            yield expert, token_N, Call(self.experts, self.x[token_N], index_N1, weight_N1)

    def output(self) -> Tensor:
        """What the module returns; its hooks do not run."""
        if self.index_TK is None:
            return self.experts.forward(self.x)
        return self.experts.forward(self.x, self.index_TK, self.weight_TK)

    def unweighed(self) -> "Call":
        """The same call with a weight of 1 for every expert."""
        ones = None if self.weight_TK is None else torch.ones_like(self.weight_TK)
        return Call(self.experts, self.x, self.index_TK, ones)


@torch.no_grad()
def channels(call: Call, down: Down) -> Tensor:
    """What the down projections read, ``[N, I]`` for the tokens of one expert or ``[E * T, I]``.

    A projection that is the identity returns what it reads: the module is called with it in the
    place of its own, as many channels at a time as it has outputs.
    """
    own = call.experts._parameters[down.name]
    outputs, width = own.shape[3 - down.inputs], own.shape[down.inputs]
    found = []
    for start in range(0, width, outputs):
        count = min(outputs, width - start)
        unit = torch.zeros_like(own)
        at = torch.arange(count, device=own.device)
        rows = (at, start + at) if down.inputs == 2 else (start + at, at)
        unit[:, rows[0], rows[1]] = 1.0
        with _replaced(call.experts, down.name, unit):
            found.append(call.unweighed().output()[:, :count])
    return torch.cat(found, 1)


@contextmanager
def _replaced(experts: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """Puts another down projection in place, without bias."""
    held = {k: p for k, p in experts._parameters.items() if k in (name, f"{name}_bias")}
    try:
        for key, own in held.items():
            assert own is not None
            new = value if key == name else torch.zeros_like(own)
            experts._parameters[key] = nn.Parameter(new, requires_grad=False)
        yield
    finally:
        experts._parameters.update(held)


@torch.no_grad()
def by_expert(call: Call, grad: Tensor, count: int) -> Tensor:
    """Gradients of a mask on what every expert adds, ``[T, E]``: 0 for tokens it does not read.
    ``grad``: the loss's by the module's output.
    """
    if call.index_TK is None:
        effect = _wide(call.output()) * grad
        return effect.sum(-1).view(count, -1).T
    found = grad.new_zeros(len(call.x), count, dtype=_wide(grad).dtype)
    for expert, token_N, own in call.sent():
        found[token_N, expert] += (_wide(own.output()) * grad[token_N]).sum(-1)
    return found


@torch.no_grad()
def by_channel(call: Call, grad: Tensor, down: Down) -> Tensor:
    """Gradients of a mask on a channel of all experts, ``[T, I]``; ``grad`` as of ``by_expert``."""
    weight_EOI = _wide(down.weight(call.experts))
    grad = grad.to(weight_EOI.dtype)
    if call.index_TK is None:
        read_ETI = _wide(channels(call, down)).unflatten(0, (len(weight_EOI), -1))
        return (read_ETI * (grad.view(len(weight_EOI), -1, grad.shape[-1]) @ weight_EOI)).sum(0)
    found = grad.new_zeros(len(call.x), weight_EOI.shape[2])
    for expert, token_N, own in call.sent():
        assert own.weight_TK is not None
        back_NI = grad[token_N] @ weight_EOI[expert]
        found[token_N] += own.weight_TK * _wide(channels(own, down)) * back_NI
    return found


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
