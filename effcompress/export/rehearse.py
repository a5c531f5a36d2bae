"""Tries an export without weights, on the meta device, before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

import torch

from effcompress.checkpoint import require_fit
from effcompress.errors import RunError
from effcompress.export.forms import form, stock_form
from effcompress.export.whole import require_taken
from effcompress.model.small import build
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import Bound
from effcompress.types import DEPTH, Config, Family


def rehearse(
    config: Config, family: Family, spaces: Sequence[Bound], whole: Path | None = None
) -> None:
    """Cuts one mini-group of every set of ``spaces`` out of a model without weights, and compares
    what the form `exact` would store with what its class wants, buffers included. ``whole``: the
    folder of the multimodal model that the pruned one is to be put back into, in a stock class.

    Raises RunError naming what does not fit; whatever the class itself raises becomes one.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                module = build(config, "given")
            pruned = PrunedModel(module, config, spaces, family=family)
            cut = [s for s in pruned.sets if s.size > s.minimum and s.kind not in DEPTH]
            pruned.mask({s.name: [0] for s in cut})
            pruned.commit()
            made = form(pruned, "exact") if whole is None else stock_form(pruned, "auto")
        require_fit(made.skeleton, made.tensors)
        if whole is not None:
            require_taken(made, pruned.config, whole)
    except RunError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(f"the pruned model could not be exported: {first}") from error
