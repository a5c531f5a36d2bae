"""Layers that keep nothing but their input and are computed once more in the backward pass
(activation checkpointing, arXiv:1604.06174): less memory for a third more compute.

Whoever listens to layers hears each of them twice then, and asks ``recomputing``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, final

from torch import nn
from torch.utils.checkpoint import checkpoint

from effcompress.errors import RunError


@final
class _Again(AbstractContextManager[None]):
    """Open while a layer is computed once more; nested, if ever. A backward pass runs in threads of
    its own on GPUs, while the one that asked for it waits: one flag for all is right.
    """

    depth = 0

    def __enter__(self) -> None:
        _Again.depth += 1

    def __exit__(self, *_: object) -> None:
        _Again.depth -= 1


def recomputing() -> bool:
    """Whether the forward pass that runs now is one that was there before."""
    return _Again.depth > 0


def recompute_layers(module: nn.Module) -> None:
    """Let the layers of a Hugging Face model do so wherever it is trained.

    Raises RunError for an architecture that cannot.
    """
    model: Any = module
    newer = "activation_checkpointing_enable"  # the other name is going to be removed
    name = newer if hasattr(module, newer) else "gradient_checkpointing_enable"
    try:
        getattr(model, name)({"use_reentrant": False, "context_fn": _contexts})
    except (AttributeError, ValueError) as error:
        raise RunError(
            f"{type(module).__name__} cannot recompute its layers: {error}",
            fix="Write `recompute: false` under train.",
        ) from error


def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same pass, computed once more in the backward."""
    return partial(checkpoint, forward, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Again()
