"""Tries an export without weights, on the meta device, before anything is trained."""

from collections.abc import Sequence

import torch

from effcompress.checkpoint import require_fit
from effcompress.errors import RunError
from effcompress.export.forms import form
from effcompress.model.small import build
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import Bound
from effcompress.types import Config, Family


def rehearse(config: Config, family: Family, spaces: Sequence[Bound]) -> None:
    """Cuts one mini-group of every set of ``spaces`` out of a model without weights, and compares
    what the form `exact` would store with what its class wants, buffers included.

    Raises RunError naming what does not fit; whatever the class itself raises becomes one.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                module = build(config, "given")
            pruned = PrunedModel(module, config, spaces, family=family)
            pruned.mask({s.name: [0] for s in pruned.sets if s.size > s.minimum})
            pruned.commit()
            made = form(pruned, "exact")
        require_fit(made.skeleton, made.tensors)
    except RunError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(f"the pruned model could not be exported: {first}") from error
