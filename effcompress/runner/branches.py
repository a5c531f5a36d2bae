"""A model at every size that ``export.at`` names. Each is a run of its own in ``at/SIZE``, which
branches off in front of the cut that passes its size, has that size as its target, and leaves the
run that it comes from bit for bit as it is.

A size begins as a checkpoint (``branch_off``), written when a cut has been decided on and nothing
is masked yet. Behind the step, the run saves a checkpoint and builds a second state from that of
the size (``branch``), which is cut to its target on the same measurement, trained on if the recipe
says so, exported and proven like any other. A run that is killed meanwhile resumes behind its own
cut, and the size from its own newest checkpoint.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from effcompress import checkpoint, fault, report, train
from effcompress import recipe as recipes
from effcompress.errors import RunError, Stopped
from effcompress.estimate.schedule import rate_span, tokens_per_step, total_tokens
from effcompress.recipe import LoadedRecipe
from effcompress.record import events
from effcompress.record.log import Log, NoView
from effcompress.record.panel import View
from effcompress.record.readable import short_count
from effcompress.record.status import AT
from effcompress.runner.checkpoints import CheckpointWriter
from effcompress.runner.folder import RESOLVED, VALUES
from effcompress.runner.source_model import load_source
from effcompress.runner.state import VALUES as CHECKPOINT
from effcompress.runner.state import RunState
from effcompress.selection.budget import simulate
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import LearningRateSpec, Recipe, StagesSpec, TargetSpec
from effcompress.types import Due

BEFORE = "before"
"""Folder of the checkpoint that a size begins as, until its model is written."""
DECIDING = ("stage", "begun", "selector_state", "shape", "operations")
"""What deciding on a cut changes of the state. A size decides anew, from what was before."""


@dataclass(frozen=True)
class Undecided:
    """The state in front of a cut, as far as deciding on it changes it, and the bytes of the record
    then.
    """

    values: Mapping[str, Any]
    recorded: int


def undecided(state: RunState, log: Log) -> Undecided | None:
    """Returns what a size that the next cut passes begins with; None without ``export.at``."""
    if state.recipe.export.at is None:
        return None
    size = (log.folder / "metrics.jsonl").stat().st_size if state.world.main else 0
    return Undecided(_values(state), size)


def _values(state: RunState) -> dict[str, Any]:
    return {key: getattr(state, key) for key in DECIDING}


def pending(state: RunState) -> list[str]:
    """Returns the sizes that were passed and have no model yet, the largest first."""
    return [name for name in state.passed if name not in state.written]


def branch_off(state: RunState, before: Undecided | None, params: int, due: Due, log: Log) -> None:
    """Writes the checkpoint that a size begins as, for every size that the cut which has just been
    decided on, down to ``params``, will pass. Collective.
    """
    if before is None:
        return
    for size in state.recipe.export.sizes:
        name, within = short_count(size), size <= state.target_params * (1 + TOLERANCE)
        if params > size or name in state.passed or within:  # the target is the run's own model
            continue
        state.passed[name] = {"tokens": state.tokens, "stage": due.stage}
        folder = log.folder / AT / name
        state.world.agree(partial(_begin, state, size, folder, log.folder, before.recorded))
        own = Log(folder, view=NoView(), keep=state.world.main)
        writer = CheckpointWriter(state, folder, own, into=BEFORE)
        with closing(own), _as_before(state, before.values), writer as keep:
            keep.save()
        fault.point("branch")


def recipe_of(recipe: Recipe, size: int, tokens: int) -> Recipe:
    """Returns the recipe by which the model of a size is finished that was passed at ``tokens``:
    the size is the target, and training is over, or goes on for ``export.continued`` tokens at a
    rate that falls linearly from the run's to its floor.
    """
    assert recipe.prune is not None
    more = recipe.export.continued or 0
    own = replace(named_recipe(recipe, size), save=replace(recipe.save, keep=1))
    if recipe.recover is not None:
        return replace(own, recover=replace(recipe.recover, tokens=more) if more else None)
    if recipe.train is None or not (tokens or more):
        return replace(own, train=None)
    if not tokens:
        spec = replace(recipe.train, tokens=more, stages=None, continued=None)
        return replace(own, train=spec)
    stages = StagesSpec(pruning=tokens, continued=more)
    rate = _falling(recipe, tokens, more)
    spec = replace(recipe.train, tokens=None, stages=stages, continued=None, learning_rate=rate)
    return replace(own, train=spec)


def named_recipe(recipe: Recipe, size: int) -> Recipe:
    """Returns the recipe of a run straight to a size, which a size's folder has for other commands
    (evaluation, text, class): training is that of the run it branched off.
    """
    assert recipe.prune is not None
    return replace(
        recipe,
        name=f"{recipe.name}-{short_count(size)}",
        prune=replace(recipe.prune, target=TargetSpec(params=size)),
        export=replace(recipe.export, at=None, continued=None),
        track=None,
    )


def _falling(recipe: Recipe, tokens: int, more: int) -> LearningRateSpec:
    """Returns the schedule that is at the run's rate at ``tokens`` and falls from there."""
    assert recipe.train is not None
    rate, each = recipe.train.learning_rate, tokens_per_step(recipe)
    begin, end = rate_span(recipe, tokens - each)
    peak = train.learning_rate(rate, tokens - begin, end - begin, each)
    floor = min(1.0, rate.floor * rate.peak / peak) if peak else 0.0
    decay = more / (tokens + more)
    return LearningRateSpec(peak=peak, schedule="trapezoidal", warmup=0.0, decay=decay, floor=floor)


def nearest(state: RunState) -> int:
    """Returns the target, or, where it cannot be had after the cuts so far, which were not chosen
    for it, the size nearest to it that can.
    """
    prune = state.recipe.prune
    if state.params == state.parent_params or prune is None or prune.allocation:
        return state.target_params
    budget = state.budget()
    if budget.bridged:
        return state.target_params
    simulate(budget)
    return state.target_params if budget.reached else budget.params


@contextmanager
def branch(state: RunState, name: str, log: Log) -> Iterator[tuple[RunState, Log]]:
    """Returns the state of a size, from its newest checkpoint, and its log; at the end its report
    is written. The random numbers of the run are as they were afterwards.
    """
    world, folder = state.world, log.folder / AT / name
    own = Log(folder, view=_Within(name, log), keep=world.main)
    started, devices = time.monotonic(), [state.device] if state.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield _opened(state, name, own), own
    except BaseException as error:
        status = "stopped" if isinstance(error, Stopped) else "failed"
        seconds = time.monotonic() - started
        with suppress(Exception):  # what failed first is the error to report
            own.event(events.End(status=status, reason=str(error), seconds=seconds))
        raise
    finally:
        own.close()
    if world.main:
        report.write(folder)
    if state.device.type == "cuda":
        torch.cuda.empty_cache()


def finished(state: RunState, name: str, log: Log) -> bool:
    """Whether the model of a size was written already, by a process that died behind that."""
    return state.world.agree(lambda: _end(log.folder / AT / name) is not None)


def note_written(state: RunState, name: str, log: Log) -> None:
    """Records a size whose model is written; the checkpoint that it began as is deleted."""
    folder = log.folder / AT / name
    size = next(s for s in state.recipe.export.sizes if short_count(s) == name)
    if state.world.main:
        shutil.rmtree(folder / BEFORE, ignore_errors=True)
    log.event(state.world.agree(lambda: _result(state, size, folder)))
    state.written.append(name)


def _result(state: RunState, size: int, folder: Path) -> events.Size:
    end, found = _end(folder), events.read(folder / "metrics.jsonl")
    after = next(e for e in reversed(events.of_type(found, events.Evaluation)))
    name, steps = short_count(size), events.of_type(found, events.Step)
    passed, last = state.passed[name]["tokens"], max((s.tokens for s in steps), default=0)
    assert end is not None, "a size is finished before it is noted"
    return events.Size(
        name=name,
        asked=size,
        params=after.params,
        step=next((s.step for s in reversed(steps) if s.tokens <= passed), 0),
        tokens=passed,
        continued=max(0, last - passed),
        perplexity={domain: score.perplexity for domain, score in after.domains.items()},
        folder=f"{AT}/{name}",
        seconds=end.seconds,
    )


def _end(folder: Path) -> events.End | None:
    """Returns how the run of a size ended, if it succeeded."""
    ends = events.of_type(events.read(folder / "metrics.jsonl"), events.End)
    return next((e for e in ends[-1:] if e.status == "success"), None)


def _begin(state: RunState, size: int, folder: Path, run: Path, recorded: int) -> None:
    """Makes the folder of a size: recipe and record are those of the run so far, with the size as
    the target. What a run left there that is repeated from an earlier checkpoint is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = named_recipe(state.recipe, size)
    shutil.copyfile(run / "recipe.yaml", folder / "recipe.yaml")
    values = recipes.plain(recipe)
    origins = dict.fromkeys(recipes.values(values), "the run's recipe")
    origins |= dict.fromkeys(("name", "prune.target.params"), "export.at")
    text = recipes.resolved(LoadedRecipe(recipe, Path(RESOLVED), "", origins))
    (folder / RESOLVED).write_text(text, encoding="utf-8")
    (folder / VALUES).write_text(json.dumps(values, indent=1), encoding="utf-8")
    shutil.copyfile(run / "plans.jsonl", folder / "plans.jsonl")
    total = total_tokens(recipe_of(state.recipe, size, state.tokens))
    lines = (run / "metrics.jsonl").read_bytes()[:recorded].splitlines(keepends=True)
    with (folder / "metrics.jsonl").open("wb") as copy:
        for line in lines:
            event = events.parse(line) if _kind(line) in _OWN else None
            if isinstance(event, events.Run):
                event = replace(event, name=recipe.name, target_params=size, total_tokens=total)
                line = events.line(event).encode() + b"\n"
            if not isinstance(event, events.Size):
                copy.write(line)


_OWN = {events.Run.event, events.Size.event}
"""Events of a run that those of its sizes do not repeat as they are."""


def _kind(line: bytes) -> str:
    """Returns the kind of an event, which is the first value of its line."""
    return b"".join(line.split(b'"', 4)[3:4]).decode("utf-8", "replace")


@contextmanager
def _as_before(state: RunState, before: Mapping[str, Any]) -> Iterator[None]:
    now = _values(state)
    for key, value in before.items():
        setattr(state, key, value)
    try:
        yield
    finally:
        for key, value in now.items():
            setattr(state, key, value)


def _opened(state: RunState, name: str, own: Log) -> RunState:
    """Returns the state of a size from its newest checkpoint, or from the one it begins as. Raises
    RunError where neither can be read.
    """
    size = next(s for s in state.recipe.export.sizes if short_count(s) == name)
    recipe = recipe_of(state.recipe, size, state.passed[name]["tokens"])
    own.phase("loading the source model once more")
    said: list[str] = ["there is none"]
    for place in ("checkpoints", BEFORE):
        saved = checkpoint.newest(own.folder / place, said.append, state.world, CHECKPOINT)
        if saved is not None:
            break
    else:
        raise RunError(
            f"no checkpoint of the size {name}: {said[-1]}",
            where=str(own.folder),
            fix="Start afresh with --output, or resume from an earlier checkpoint of the run.",
        )
    if state.world.main:
        checkpoint.sweep(own.folder)
    own.rewind(saved.values["log"], saved.texts)
    # It was loaded when the run began, so it is on this machine.
    model, _ = load_source(recipe, own, state.provenance, offline=True, world=state.world)
    found = RunState(recipe, model, state.corpus, state.world)
    found.provenance = state.provenance
    found.restore(saved)
    found.passed, found.written = {}, []
    own.event(events.Checkpoint(step=found.step, seconds=0.0, bytes=saved.values["bytes"]))
    return found


@final
class _Within(View):
    """Shows the run of a size in the view of the run that it branched off."""

    def __init__(self, name: str, log: Log) -> None:
        self._name, self._log, self._total = name, log, 0

    def event(self, event: events.Event) -> None:
        if isinstance(event, events.Step) and self._total:
            self._log.progress("token", event.tokens, self._total)
        elif isinstance(event, events.Warn):
            self._log.note(f"{self._name}: {event.text}")

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        self._total = total_tokens or 0
        self._log.phase(f"{self._name}: {name}")

    def progress(self, unit: str, done: int, total: int | None) -> None:
        self._log.progress(unit, done, total)

    def expect(self, seconds: float) -> None:
        self._log.expect(seconds)

    def note(self, text: str) -> None:
        self._log.note(text)

    def restore(self, kept: Iterable[events.Event]) -> None:
        """Takes in nothing: the events are those of the run, or were shown."""
