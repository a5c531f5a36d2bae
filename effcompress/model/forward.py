"""Whether a model's own code computes at all."""

import traceback
from pathlib import Path

import torch
from torch import nn

from effcompress.errors import EffcompressError, SourceError, first_line

TOKENS = 3
"""More than one: classes have ways of their own for a single token."""


@torch.no_grad()
def require_forward(module: nn.Module, name: str) -> None:
    """Runs a short sequence without KV cache, as everything here does. ``name``: the model's, for
    the error.

    Raises SourceError naming the module and the line whose code fails.
    """
    training = module.training
    module.eval()
    ids_1T = torch.zeros(1, TOKENS, dtype=torch.long, device=next(module.parameters()).device)
    try:
        module(input_ids=ids_1T, use_cache=False)
    except (EffcompressError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SourceError(
            f"the model's own forward pass fails, in {_place(module, error)}: "
            f"{type(error).__name__}: {first_line(error)}",
            where=f"model: {name}",
            fix="Nothing can be measured of it here: name another model, or, where its "
            "configuration is yours, one that this class computes.",
        ) from error
    finally:
        module.train(training)


def _place(module: nn.Module, error: Exception) -> str:
    """The innermost module at work, with file and line of its code."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    at, where = "", "the model"
    for frame, line in traceback.walk_tb(error.__traceback__):
        held = id(frame.f_locals.get("self"))
        # Torch calls a module's code in frames that have the module, too.
        if held in paths and not frame.f_code.co_filename.startswith(str(_TORCH)):
            at = f" ({Path(frame.f_code.co_filename).name}:{line})"
            where = f"{paths[held] or 'the model'}, {type(frame.f_locals['self']).__name__}"
    return where + at


_TORCH = Path(torch.__file__).parent
