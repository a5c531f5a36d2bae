"""Updates linear layers before they lose inputs, so that the inputs that stay compensate.

How is up to repairs (``@repair`` of ``weight``). For the layer-wise squared error the Hessian of
every output row is the same, the second moment ``E[x x^T]`` of the inputs, so layers that read the
same tensor are stacked and updated together. Removed outputs (rows) need no update:
rows do not interact in this error.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from effcompress.distributed.lend import give_back, lend
from effcompress.distributed.rows import whole, write_back
from effcompress.distributed.world import World
from effcompress.errors import SurgeryError
from effcompress.registry import Bound
from effcompress.removal.ledger import Ledger
from effcompress.removal.repairs import for_linears
from effcompress.types import GroupSet, Plan


class Inputs(Protocol):
    """First and second moments of what linear layers read (implemented by ``measure/grams.py``).

    ``params``: weight -> its input dimension. ``owner``: weight -> the weight under which the
    statistics of a shared input are kept. ``holder``: the one process of ``world`` that has the
    second moment, where they are dealt out.
    """

    params: dict[str, int]
    owner: dict[str, str]

    @property
    def world(self) -> World: ...

    def holder(self, param: str) -> int | None: ...

    def read(self, param: str) -> Tensor | None: ...

    def mean(self, param: str) -> Tensor | None: ...

    def silence(self, param: str, gone: Tensor) -> None: ...

    def shorten(self, param: str, keep: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@torch.no_grad()
def compensate(
    plan: Plan,
    sets: Sequence[GroupSet],
    module: nn.Module,
    ledger: Ledger,
    inputs: Inputs,
    repairs: Sequence[Bound],
) -> None:
    """Updates every linear layer that is about to lose inputs by this plan; removes nothing yet.
    Where second moments are dealt out, each layer is updated by the process that has its own, and
    several are at the same time.

    Raises PluginError when a repair returns another shape.
    """
    params = dict(module.named_parameters())
    # Layers with the same input lose the same positions, unless only one of them is in the plan.
    together: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for param, gone in _gone(plan, sets, ledger, inputs.params).items():
        key = (inputs.owner.get(param, param), tuple(gone))
        together[key].append(param)
    asked = for_linears(repairs)
    for turn in _in_turns(together, inputs):
        reads = [
            _Read(inputs.read(owner), inputs.mean(owner), torch.tensor(gone))
            for (owner, gone), _ in turn
        ]
        jobs = [
            _Job(inputs.holder(owner), names, read)
            for ((owner, _), names), read in zip(turn, reads, strict=True)
            if asked and read.mean_I is not None
        ]
        if jobs and jobs[0].holder is not None:
            _repair_by_holders(asked, jobs, params, inputs)
        else:
            for job in jobs:
                _repair_all(asked, job.names, params, inputs.params, job.read)
        # From now on these inputs are zero; the statistics must not pair them with later ones.
        for ((owner, _), _), read in zip(turn, reads, strict=True):
            inputs.silence(owner, read.gone)


_Together = tuple[tuple[str, tuple[int, ...]], list[str]]
"""The weight under which an input is kept and the positions that go, and the layers that lose
them.
"""


def _in_turns(
    together: Mapping[tuple[str, tuple[int, ...]], list[str]], inputs: Inputs
) -> Iterator[list[_Together]]:
    """Yields what is repaired at the same time: one input of every holder, else one alone."""
    queues: dict[int | None, list[_Together]] = defaultdict(list)
    for item in together.items():
        queues[inputs.holder(item[0][0])].append(item)
    for alone in queues.pop(None, []):
        yield [alone]
    for turn in range(max(map(len, queues.values()), default=0)):
        yield [queue[turn] for _, queue in sorted(queues.items()) if turn < len(queue)]


def _gone(
    plan: Plan, sets: Sequence[GroupSet], ledger: Ledger, watched: Mapping[str, int]
) -> dict[str, list[int]]:
    """Returns weight -> the positions along its inputs that this plan removes."""
    gone: dict[str, set[int]] = defaultdict(set)
    by_name = {s.name: s for s in sets}
    for name, units in plan.items():
        positions = ledger.positions(name, units)
        for member in by_name[name].members:
            if watched.get(member.param) == member.dim:
                gone[member.param].update(member.index_GB[positions].flatten().tolist())
    return {param: sorted(positions) for param, positions in gone.items()}


@dataclass(frozen=True)
class _Read:
    """Statistics of one shared input: second moment, mean, and the positions that go."""

    gram_II: Tensor | None
    mean_I: Tensor | None
    gone: Tensor


@dataclass(frozen=True)
class _Job:
    """The layers that read one input, and the rank that has its second moment (None: all)."""

    holder: int | None
    names: Sequence[str]
    read: _Read


def _repair_by_holders(
    repairs: Sequence[Bound],
    jobs: Sequence[_Job],
    params: Mapping[str, nn.Parameter],
    inputs: Inputs,
) -> None:
    """Repairs the layers of each job where its second moment is: that process gets the weights
    whole and sends all others their new rows, once each, whereas a matrix would go to all.
    """
    world, named = inputs.world, dict[int, list[str]]()
    for job in jobs:
        assert job.holder is not None
        biases = [name.removesuffix("weight") + "bias" for name in job.names]
        named[job.holder] = [*job.names, *(name for name in biases if name in params)]
    wanted = {rank: [params[n].detach() for n in names] for rank, names in named.items()}
    lent = lend(world, wanted)
    here = zip(named.get(world.rank, ()), map(nn.Parameter, lent), strict=True)
    changed = {**params, **dict(here)}  # written to in place
    mine = [job for job in jobs if job.holder == world.rank]

    def solve() -> None:
        for job in mine:
            _repair_all(repairs, job.names, changed, inputs.params, job.read)

    world.each(solve)  # an error of one is raised by all
    give_back(world, wanted, lent)


def _repair_all(
    repairs: Sequence[Bound],
    names: Sequence[str],
    params: Mapping[str, nn.Parameter],
    dims: Mapping[str, int],
    read: _Read,
) -> None:
    """Applies every repair to the layers of one input; sharded weights are gathered for it."""
    held = [params[name].detach() for name in names]
    found = [params.get(name.removesuffix("weight") + "bias") for name in names]
    wholes = [whole(weight) for weight in held]
    biases = [None if bias is None else whole(bias.detach()) for bias in found]
    # Views as [O, I]; Conv1D stores [I, O].
    weights = {n: w if dims[n] == 1 else w.T for n, w in zip(names, wholes, strict=True)}
    for repair in repairs:
        _repair(repair, weights, biases, read)
    for tensor, value in zip([*held, *found], [*wholes, *biases], strict=True):
        if tensor is not None and value is not None:
            write_back(tensor.detach(), value)


def _repair(
    repair: Bound, weights: Mapping[str, Tensor], biases: Sequence[Tensor | None], read: _Read
) -> None:
    """Applies one repair to all rows that read the same input; writes into weights and biases."""
    stacked_OI = torch.cat(list(weights.values()))
    assert read.mean_I is not None
    gone = read.gone.to(read.mean_I.device)
    given = {"gram": read.gram_II, "mean": read.mean_I, "gone": gone}
    new_OI, more_O = repair.corrected(stacked_OI, **given)
    rows = [w.shape[0] for w in weights.values()]
    for weight, part in zip(weights.values(), new_OI.split(rows), strict=True):
        weight.copy_(part)
    if more_O is not None:
        for name, bias, part in zip(weights, biases, more_O.split(rows), strict=True):
            if bias is None:
                raise SurgeryError(f"repair '{repair.name}' has no bias to write to", where=name)
            bias.add_(part)
