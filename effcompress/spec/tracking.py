"""Who is shown a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import NAME, key

Tracker = Literal["tensorboard", "wandb", "trackio"]
"""Each has the name of the Python package that it needs."""


@dataclass(frozen=True, kw_only=True)
class TrackSpec:
    """Trackers that are shown the run while it goes on; they change nothing in it, so this section
    may change from one `--resume` to the next.
    """

    to: tuple[Tracker, ...] = key("trackers; each is a Python package to install", least=1)
    project: str = key("project the run belongs to (wandb, trackio)", "effcompress", **NAME)
