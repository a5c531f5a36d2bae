"""Opens trackers through accelerate's classes, the only place that imports them. Rank 0 only."""

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
"""Seconds that W&B may take to start, and to finish."""
IDS = "trackers.json"
"""File in the run's folder: tracker -> id of this run there."""
_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Tracker(Protocol):
    """The interface that accelerate's classes share."""

    def start(self) -> None: ...
    def store_init_configuration(self, values: dict[str, Setting]) -> None: ...
    def log(self, values: dict[str, Value], step: int | None = None) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True)
class Place:
    """The run to show. ``step``: the last one that a resumed run has recorded; None: a new run."""

    folder: Path
    name: str
    project: str
    offline: bool
    step: int | None = None


@dataclass(frozen=True)
class Opened:
    """A started tracker that lacks steps from ``since`` on; ``note`` is shown to the user."""

    tracker: Tracker
    since: int = 0
    note: str = ""

    def configure(self, values: Mapping[str, Setting]) -> None:
        """Sends the settings of the run."""
        self.tracker.store_init_configuration(dict(values))


class _TensorBoard(Opened):
    def configure(self, values: Mapping[str, Setting]) -> None:
        """Sends settings as text, once: accelerate would add a second run for hyperparameters."""
        if not self.since:
            self.tracker.log({"recipe": table(values)}, step=0)


def _tensorboard(place: Place) -> Opened:
    from accelerate.tracking import TensorBoardTracker

    folder = place.folder / "tensorboard"
    # purge_step: readers drop points of older files from this step on, as they are sent again.
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
    # W&B ignores steps before the last one that it has.
    return Opened(tracker, place.step or 0 if known else 0, f"W&B: {url}" if url else "")


def _trackio(place: Place) -> Opened:
    from accelerate.tracking import TrackioTracker

    if place.offline and (found := [name for name in _REMOTE if os.environ.get(name)]):
        raise ValueError(f"--offline, but {found[0]} is set")
    identity, known = _identity(place, "trackio")
    tracker: Any = _started(
        TrackioTracker(
            place.project,
            name=f"{place.name}-{identity}",  # Trackio identifies runs by name
            resume="allow" if known else "never",
        )
    )
    # Trackio shows a point that is sent again twice: send only steps that it lacks.
    return Opened(tracker, getattr(tracker.tracker, "_next_step", 0) if known else 0)


OPEN: Mapping[str, Callable[[Place], Opened]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _started(tracker: Any) -> Any:
    from accelerate import tracking

    # main_process_only and accelerate's own logger create its PartialState, which initialises
    # torch.distributed, devices and threads by itself. distributed/ has done that already, and only
    # rank 0 comes here.
    tracker.main_process_only = False
    module: Any = tracking
    module.logger = logging.getLogger(tracking.__name__)
    tracker.start()
    return tracker


def _identity(place: Place, name: str) -> tuple[str, bool]:
    """Returns the id of this run in a tracker, and whether the tracker knows it already. Ids are
    kept in the run's folder, so that another run in the same folder gets another id.
    """
    path = place.folder / IDS
    ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = place.step is not None and name in ids
    if not known:
        ids[name] = secrets.token_hex(4)
        path.write_text(json.dumps(ids) + "\n", encoding="utf-8")
    return ids[name], known
