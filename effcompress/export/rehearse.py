"""Tries an export without weights, on the meta device, before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

import torch

from effcompress.checkpoint import require_fit
from effcompress.errors import RunError
from effcompress.export.forms import Name, form, stock_form
from effcompress.export.whole import require_taken
from effcompress.model.small import build
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import Bound
from effcompress.types import DEPTH, Config, Family, Plan, Widths


def refused_kinds(
    config: Config, family: Family, spaces: Sequence[Bound], name: Name, shape: Widths
) -> dict[str, str]:
    """Returns the axis kinds of ``spaces`` of which the stock class that ``name`` wants refuses
    other sizes, each with the reason: all at the widths of ``shape``, where that states any; else
    one kind after the other, with a unit less in every layer, or without one layer or block.
    """
    refused: dict[str, str] = {}
    kinds = dict.fromkeys(s.kind for s in _hollow(config, family, spaces).sets)
    for tried in [(*shape,)] if shape else [(kind,) for kind in kinds]:
        pruned = _hollow(config, family, spaces)
        plan: Plan = {}
        for s in (s for s in pruned.sets if s.kind in tried):
            gone = s.size - shape.get(s.kind, max(s.minimum, s.size - s.multiple))
            if s.kind in DEPTH:
                plan = plan or {s.name: [0]}
            elif gone > 0:
                plan[s.name] = [*range(gone)]
        pruned.mask(plan)
        pruned.commit()
        try:
            made = form(pruned, name)
            require_fit(made.skeleton, made.tensors.shapes)
        except RunError as error:
            refused |= dict.fromkeys(tried, error.what)
    return refused


def _hollow(config: Config, family: Family, spaces: Sequence[Bound]) -> PrunedModel:
    """The model without weights, on the meta device."""
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            module = build(config, "given")
        return PrunedModel(module, config, spaces, family=family)


def rehearse(
    config: Config, family: Family, spaces: Sequence[Bound], whole: Path | None = None
) -> None:
    """Cuts one mini-group of every set of ``spaces`` out of a model without weights, and compares
    what the form `exact` would store with what its class wants, buffers included. ``whole``: the
    folder of the multimodal model that the pruned one is to be put back into, in a stock class.

    Raises RunError naming what does not fit; whatever the class itself raises becomes one.
    """
    try:
        pruned = _hollow(config, family, spaces)
        cut = [s for s in pruned.sets if s.size > s.minimum and s.kind not in DEPTH]
        pruned.mask({s.name: [0] for s in cut})
        pruned.commit()
        made = form(pruned, "exact") if whole is None else stock_form(pruned, "auto")
        require_fit(made.skeleton, made.tensors.shapes)
        if whole is not None:
            require_taken(made, pruned.config, whole)
    except RunError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(f"the pruned model could not be exported: {first}") from error
