"""What is measured, saved and handed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import key
from effcompress.spec.tasks import TasksSpec


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """What is measured before and after, by the same protocol."""

    sequences: int = key("held-out sequences per domain", 16, minimum=1)
    batch_size: int = key("sequences per forward pass", 2, minimum=1)
    prompt: str = key(
        "text to continue, once with each model",
        "The history of science is",
        pattern=r"\S",
        words="text with at least one word",
    )
    new_tokens: int = key("tokens to continue it by", 48, minimum=1)
    tasks: TasksSpec | None = key("tasks to solve; without it none", None)


@dataclass(frozen=True, kw_only=True)
class SaveSpec:
    """Checkpoints: everything `--resume` needs."""

    every: int = key("optimizer steps between two checkpoints", 100, minimum=1)
    keep: int = key("checkpoints kept", 2, minimum=1)
    background: bool = key(
        "copy everything into the host's memory and write while training goes on", False
    )


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """The model folder at the end."""

    form: Literal["auto", "uniform", "padded", "exact"] = key(
        "uniform: a stock class, layers of the same widths; padded: a stock class, with zeros "
        "where layers are narrower; exact: the shapes as they are, with the class's file in the "
        "folder; auto: the first of these that is possible",
        "auto",
    )
