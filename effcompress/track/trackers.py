"""The one door to trackers, through accelerate's classes. All run in the main process only."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from effcompress.track.curves import Setting, Value, table

PATIENCE = 30
"""Seconds that W&B may take to begin, and to end."""
IDS = "trackers.json"
"""Tracker -> the run there that belongs to this folder."""
_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Tracker(Protocol):
    """What accelerate's classes have in common."""

    def start(self) -> None: ...
    def store_init_configuration(self, values: dict[str, Setting]) -> None: ...
    def log(self, values: dict[str, Value], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True)
class Place:
    """The run that is shown. ``step``: the last optimizer step of what an earlier part of it left
    in the record; None where it begins.
    """

    folder: Path
    name: str
    project: str
    offline: bool
    step: int | None = None


@dataclass(frozen=True)
class Opened:
    """A tracker that runs. It has everything before the step ``since`` already; ``note`` is for
    the reader.
    """

    tracker: Tracker
    since: int = 0
    note: str = ""

    def configure(self, values: Mapping[str, Setting]) -> None:
        """Show what the run is set to."""
        self.tracker.store_init_configuration(dict(values))


class _TensorBoard(Opened):
    def configure(self, values: Mapping[str, Setting]) -> None:
        """As text, once: accelerate's way puts another run beside this one for it."""
        if not self.since:
            self.tracker.log({"recipe": table(values)}, step=0)


def _tensorboard(place: Place) -> Opened:
    from accelerate.tracking import TensorBoardTracker

    folder = place.folder / "tensorboard"
    # What readers find in older files from this step on is void: it comes again.
    old = any(folder.glob("events.out.*"))
    since = place.step or 0 if old else 0
    more = {"purge_step": since} if old else {}
    return _TensorBoard(_started(TensorBoardTracker(folder.name, place.folder, **more)), since)


def _wandb(place: Place) -> Opened:
    import wandb
    from accelerate.tracking import WandBTracker

    identity, known = _identity(place, "wandb")
    settings = wandb.Settings(
        console="off", silent=True, init_timeout=PATIENCE, finish_timeout=PATIENCE
    )
    made = WandBTracker(
        place.project,
        id=identity,
        name=place.name,
        resume="allow",
        dir=str(place.folder),
        mode="offline" if place.offline else None,
        settings=settings,
    )
    tracker: Any = _started(made)
    url = "" if tracker.tracker.offline else tracker.tracker.url
    # It ignores steps before the last one that it has.
    return Opened(tracker, place.step or 0 if known else 0, f"W&B: {url}" if url else "")


def _trackio(place: Place) -> Opened:
    from accelerate.tracking import TrackioTracker

    if place.offline and (found := [name for name in _REMOTE if os.environ.get(name)]):
        raise ValueError(f"--offline, but {found[0]} is set")
    identity, known = _identity(place, "trackio")
    tracker: Any = _started(
        TrackioTracker(
            place.project,
            name=f"{place.name}-{identity}",  # it knows runs by their names
            resume="allow" if known else "never",
        )
    )
    # It would show points that come again twice, so it gets none that it has.
    return Opened(tracker, getattr(tracker.tracker, "_next_step", 0) if known else 0)


OPEN: Mapping[str, Callable[[Place], Opened]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _started(tracker: Any) -> Any:
    from accelerate import tracking

    # Both would make accelerate's PartialState, which joins processes on its own and sets devices
    # and threads. That is done already (see distributed.py), and only the main process comes here.
    tracker.main_process_only = False
    module: Any = tracking
    module.logger = logging.getLogger(tracking.__name__)
    tracker.start()
    return tracker


def _identity(place: Place, name: str) -> tuple[str, bool]:
    """Which run of a tracker this is, and whether it was one before. Kept in the run's folder, so
    that another run in the same folder, or a copy elsewhere that goes on, is told apart by it.
    """
    path = place.folder / IDS
    ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = place.step is not None and name in ids
    if not known:
        ids[name] = secrets.token_hex(4)
        path.write_text(json.dumps(ids) + "\n", encoding="utf-8")
    return ids[name], known
