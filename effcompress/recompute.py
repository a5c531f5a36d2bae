"""Activation checkpointing (arXiv:1604.06174): layers keep only their input and run their forward
again in the backward pass. Less memory, a third more compute.

Forward hooks run twice per layer then. Hooks that measure skip the second pass by ``recomputing``.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, final

from torch import nn
from torch.utils.checkpoint import checkpoint

from effcompress.errors import RunError


@final
class _Again(AbstractContextManager[None]):
    """Context of a recomputation. The flag is global, not thread-local: on GPUs the backward runs
    in autograd's own threads, while the thread that called it waits.
    """

    depth = 0

    def __enter__(self) -> None:
        _Again.depth += 1

    def __exit__(self, *_: object) -> None:
        _Again.depth -= 1


def recomputing() -> bool:
    """Returns whether the forward pass that is running is a recomputation."""
    return _Again.depth > 0


def recompute_layers(module: nn.Module) -> None:
    """Enables activation checkpointing for the layers of a Hugging Face model in training mode.

    Raises RunError for an architecture that does not support it.
    """
    model: Any = module
    newer = "activation_checkpointing_enable"  # transformers is renaming the method
    name = newer if hasattr(module, newer) else "gradient_checkpointing_enable"
    try:
        getattr(model, name)({"use_reentrant": False, "context_fn": _contexts})
    except (AttributeError, ValueError) as error:
        what = f"{type(module).__name__} cannot recompute its layers: {error}"
        raise RunError(what, fix="Write `recompute: false` under train.") from error


def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``forward`` with activation checkpointing."""
    return partial(checkpoint, forward, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Again()
