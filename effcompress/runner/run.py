"""A run from top to bottom: load, train and prune in one loop, export, prove, evaluate, report."""

import contextlib
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effcompress import checkpoint, fault, processes, report
from effcompress.checkpoint import Saved
from effcompress.data import Corpus
from effcompress.distributed.world import World, joined, stopped_elsewhere
from effcompress.errors import EffcompressError, RunError, Stopped, is_disk_full
from effcompress.estimate.positions import warn_of_positions
from effcompress.estimate.schedule import stage_at
from effcompress.export import gguf
from effcompress.export.write import export_and_prove, proof_tokens
from effcompress.model.load import LoadedModel
from effcompress.network.shapes import shape
from effcompress.recipe import LoadedRecipe, plain
from effcompress.record import events
from effcompress.record.log import Log, NoView, make_view
from effcompress.record.readable import size
from effcompress.runner import branches, mixture, recovery
from effcompress.runner.checkpoints import CheckpointWriter
from effcompress.runner.folder import open_folder, output_folder
from effcompress.runner.preflight import preflight
from effcompress.runner.prune import commit_event, due_now, prune_event, remainder
from effcompress.runner.rotate import rotate_event
from effcompress.runner.source_model import (
    changed,
    identified,
    named_alike,
    plugin_files,
    read_source,
    require_same,
    texts,
)
from effcompress.runner.sparsify import sparsify_event
from effcompress.runner.start import begin, corpus_of, evaluated, whole_of
from effcompress.runner.state import VALUES, RunState, device_of
from effcompress.runner.step import train_step
from effcompress.sparsity.apply import count, require_held
from effcompress.spec import Recipe
from effcompress.stopping import Stopping
from effcompress.track.view import watch
from effcompress.types import Due

_NO_MEMORY = ("allocate memory", "out of memory", "not enough memory")
"""Words of a RuntimeError of torch on a CPU, which has no class of its own."""
_COMPILING = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True)
class Evaluated:
    """A model as a run evaluated it: parameters, perplexity of the held-out text of each domain,
    and the configuration fields of its shape (a list where layers differ).
    """

    params: int
    perplexity: Mapping[str, float]
    shape: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What a run leaves: its folder, and the size and the perplexities of the result; of the source
    model, ``before``, and of the result, ``after``, the same with the shape.
    """

    folder: Path
    params: int
    perplexity: dict[str, float]
    before: Evaluated
    after: Evaluated
    removed: int = 0
    """Parameters that were removed from the source model."""
    zeroed: int = 0
    """Zeros in the linear layers that the recipe made sparse."""
    sparse: int = 0
    """All weights of those layers."""


def result(state: RunState, folder: Path, after: events.Evaluation) -> Report:
    """Returns the report of a finished run. Raises RunError if a zero of ``sparsify`` is gone."""
    require_held(state.module, state.zeros, state.world)
    held: Mapping[str, Any] = state.pruned.parameters()
    before = state.world.agree(lambda: _before(folder))
    pruned, now = state.pruned, _perplexities(after)
    left = shape(pruned.parent, pruned.config, pruned.ledger.widths())
    return Report(
        folder,
        state.params,
        now,
        before=Evaluated(before.params, _perplexities(before), state.source_shape),
        after=Evaluated(state.params, now, left),
        removed=state.parent_params - state.params,
        zeroed=count(state.module, state.sparse, state.world),
        sparse=sum(held[name].numel() for name in state.sparse),
    )


def _before(folder: Path) -> events.Evaluation:
    """The evaluation of the source model, from the record: a resumed run made it earlier."""
    found = events.of_type(events.read(folder / "metrics.jsonl"), events.Evaluation)
    return next(evaluation for evaluation in found if evaluation.when == "before")


def _perplexities(found: events.Evaluation) -> dict[str, float]:
    return {name: score.perplexity for name, score in found.domains.items()}


def run(
    loaded: LoadedRecipe,
    *,
    output: Path | str | None = None,
    resume: bool = False,
    offline: bool = False,
    stopping: Stopping | None = None,
    measurements: Path | None = None,
) -> Report:
    """Runs a recipe and leaves a proven model in the output folder. ``measurements``: a folder in
    which runs share what they measure on the source model before the first cut.

    Installs no signal handlers; ``stopping`` is asked between steps whether to end early (the
    command line forwards SIGTERM and Ctrl-C to it).
    Raises RecipeError or SourceError when the user's input cannot be used, RunError when the run
    failed, Stopped when it was asked to stop. An interrupted run continues with ``resume=True``.
    """
    preflight(loaded, offline=offline)
    device_of(loaded.recipe)
    folder = output_folder(loaded, None if output is None else Path(output))
    stopping = stopping or Stopping()
    with joined() as world, contextlib.ExitStack() as held:
        world.agree(lambda: held.enter_context(open_folder(loaded, folder, resume)))
        if world.main:
            _sweep(folder)
        how: Any = {"offline": offline, "measurements": measurements}
        return _recorded(loaded.recipe, folder, world, stopping, **how)


def _sweep(folder: Path) -> None:
    """Deletes what earlier processes, which are gone, had not finished writing."""
    checkpoint.sweep(folder)
    for place in (folder, folder / "pictures"):
        processes.sweep(place, report.PARTIAL)


def _recorded(
    recipe: Recipe,
    folder: Path,
    world: World,
    stopping: Stopping,
    *,
    offline: bool,
    measurements: Path | None,
) -> Report:
    """Runs all stages with record and report; both say how the run ended, whatever happens."""
    log = Log(folder, view=make_view() if world.main else NoView(), keep=world.main)
    if world.main:
        watch(log, recipe, plain(recipe), offline=offline)
    started = time.monotonic()
    stopping.say = log.note
    try:
        how: Any = {"offline": offline, "started": started, "measurements": measurements}
        done = _stages(recipe, folder, log, world, stopping, **how)
        log.close()
        if world.main:
            _report(folder)
    except BaseException as error:
        known = stopped_elsewhere(error, world.size) or named(error, log.doing, recipe)
        # Whatever else fails now (a full disk, a closed record) must not hide what failed first.
        with contextlib.suppress(Exception):
            status = "stopped" if isinstance(error, Stopped) else "failed"
            reason = repr(error) if known is None else str(known)
            seconds = time.monotonic() - started
            log.event(events.End(status=status, reason=reason, seconds=seconds))
        with contextlib.suppress(Exception):
            log.close()
        with contextlib.suppress(Exception):
            if isinstance(error, Stopped):
                world.end_together(lambda: report.write(folder))
            elif world.main:
                report.write(folder)
        if known is None or known is error:
            raise
        raise known from error
    return done


def _report(folder: Path) -> None:
    """Writes the report of a run that succeeded. Raises RunError where it cannot be written."""
    try:
        report.write(folder)
    except OSError as error:
        raise RunError(
            f"the model is written and proven, but not its report: {error.strerror or error}",
            where=error.filename or str(folder),
            fix=f"Free some space, then: effcompress report {shlex.quote(str(folder))}",
        ) from error


def _stages(
    recipe: Recipe,
    folder: Path,
    log: Log,
    world: World,
    stopping: Stopping,
    *,
    offline: bool,
    started: float,
    measurements: Path | None,
) -> Report:
    torch.manual_seed(recipe.seed)
    log.phase("loading the model")
    damaged: list[str] = []
    saved = checkpoint.newest(folder / "checkpoints", damaged.append, world, VALUES)
    # The record goes back to where the checkpoint stood, before anything is added to it.
    if saved is None:
        log.rewind({})
    else:
        log.rewind(saved.values["log"], saved.texts)
    for text in damaged:
        log.warn(text)
    before = named_alike(saved.values.get("provenance", {})) if saved else {}
    plugins = plugin_files(recipe)
    require_same(before, plugins)
    with world.main_first():  # fetches, converts and tokenises; the others find it done
        model = read_source(recipe, log, offline=offline, world=world)
        corpus = _text(recipe, model, log, offline=offline, resumed=saved is not None)
    model, source = identified(recipe, model, log, before, world)
    if saved is None:
        prompt = len(model.tokenizer.encode([recipe.evaluate.prompt])[0])
        warn_of_positions(recipe, model.config, prompt, log.warn)
    state = RunState(recipe, model, corpus, world)
    state.provenance = {**plugins, **source, **texts(corpus)}
    state.measurements = measurements
    if recipe.export.gguf is not None:
        gguf.require_words(state.pruned, model.tokenizer)
    if saved is None:
        begin(state, model, log, offline=offline)
    else:
        _continue(state, saved, log)
    earlier = state.seconds
    with CheckpointWriter(state, folder, log) as keep:
        _train_and_prune(state, log, stopping, keep, offline=offline)
    return _finish(state, log, offline=offline, started=started - earlier)


def _finish(state: RunState, log: Log, *, offline: bool, started: float) -> Report:
    """Exports the model, proves it in a fresh process and evaluates it."""
    recipe, folder, world = state.recipe, log.folder, state.world
    length = proof_tokens(state.pruned.config)
    ids_BT = state.corpus.calibration(2, recipe.seed)[:, :length]
    made = state.pruned, state.tokenizer, recipe.export.form
    whole = whole_of(recipe)
    if state.shards is None:
        world.agree(lambda: export_and_prove(*made, ids_BT, folder, log, whole))
    else:  # written by all ranks, and gathered nowhere
        state.unwrap()
        export_and_prove(*made, ids_BT, folder, log, whole, state.to_call, world)
    if (dtype := recipe.export.gguf) is not None:
        file = folder / f"{recipe.name}.gguf"
        with state.gathered():
            world.agree(lambda: gguf.add(*made[:2], file, dtype, log))
    log.phase("evaluating the pruned model")
    after = evaluated(state, log, when="after", offline=offline)
    log.event(after)
    done = result(state, folder, after)
    seconds = time.monotonic() - started
    left: Any = {"params": state.params, "widths": state.pruned.widths, "zeroed": done.zeroed}
    log.event(events.End(status="success", seconds=seconds, **left))
    if world.main:
        report.write_card(folder)
        # Behind the event of success: a run that dies before it still has all its checkpoints.
        _thin(folder / "checkpoints", recipe.save.keep_after, log)
    return done


def _thin(folder: Path, keep: int, log: Log) -> None:
    """Deletes the checkpoints that a finished run does not keep, and says what stays."""
    left, total = checkpoint.thin(folder, keep)
    if left:
        what = "the last checkpoint stays" if left == 1 else f"{left} checkpoints stay"
        log.note(f"{what}, {size(total)} (save.keep_after: 0 leaves none)")
    else:
        log.note("no checkpoint stays (save.keep_after: 0)")


def _text(recipe: Recipe, model: LoadedModel, log: Log, *, offline: bool, resumed: bool) -> Corpus:
    """Tokenises the text. Warnings of that are in the record of a resumed run already; those of the
    stream later on (a domain that runs dry) are not.
    """
    log.phase("preparing the text")
    tell = log.note if resumed else log.warn
    how: Any = {"offline": offline, "say": log.note, "notice": lambda text: tell(text)}
    corpus = corpus_of(recipe, model.tokenizer, **how)
    if recipe.prune is not None and recipe.prune.refit is not None:
        # Read last of all; that there is too little of it is said now.
        corpus.calibration(recipe.prune.measure.refit_sequences, recipe.seed)
    tell = log.warn
    return corpus


def _continue(state: RunState, saved: Saved, log: Log) -> None:
    """Restores the checkpoint's state and the record up to it. Raises RunError for other text."""
    if saved.values["corpus"] != state.corpus.fingerprint:
        raise RunError(
            "the training text is not the one this run began with",
            where=changed(saved.values.get("provenance", {}), texts(state.corpus)),
            fix="Put the text back, or start afresh with --output.",
        )
    try:
        state.restore(saved)
    except EffcompressError:
        raise
    except checkpoint.MISFITS as error:  # of earlier versions, whose values are not hashed
        raise RunError(
            f"the checkpoint of step {saved.values['step']} does not fit this model: {error!r}",
            fix="Take its folder away, and --resume continues from the one before.",
        ) from error
    # The record in the checkpoint ends just before the checkpoint itself is noted.
    log.event(events.Checkpoint(step=state.step, seconds=0.0, bytes=saved.values["bytes"]))
    if saved.values["threads"] != torch.get_num_threads():
        log.note("another number of threads than before: results may differ in the last digits")
    log.note(f"continuing at step {state.step}, {state.tokens:,} tokens")


def _train_and_prune(
    state: RunState, log: Log, stopping: Stopping, keep: CheckpointWriter, *, offline: bool
) -> None:
    """Runs the loop, and what lies before and behind it. One-shot pruning is a cut at token 0."""
    recipe, total = state.recipe, state.total_tokens
    dense = recipe.sparsify is not None and not state.sparse
    if recipe.prune or not dense:
        log.phase(_phase(recipe, stage_at(recipe, state.tokens)), total)
    if state.step == 0 and not state.sparse:
        _tell_stage(state, "", log)
        _prune_if_due(state, log)
        if branches.pending(state):
            keep.save()
    _write_sizes(state, log, stopping, offline=offline)
    if recipe.sparsify is not None and dense:
        sparsify_event(state, recipe.sparsify, log)
        if total:
            keep.save()
            log.phase("training with zeros", total)
    recovery.begin(state, log, offline=offline)
    _loop(state, log, stopping, keep)
    while branches.pending(state):
        _write_sizes(state, log, stopping, offline=offline)
        _loop(state, log, stopping, keep)
    unsaved = state.step == 0 or state.pruned.ledger.pending() or state.lora is not None
    recovery.end(state)
    if recipe.prune and not state.target_reached:
        unsaved = True
        log.warn(remainder(state))
        prune_event(state, recipe.prune, Due(params=state.target_params), log)
    commit_event(state, log)
    if unsaved:  # `effcompress export` starts from the last checkpoint
        keep.save()
    state.module.zero_grad(set_to_none=True)
    _write_sizes(state, log, stopping, offline=offline)


def _write_sizes(state: RunState, log: Log, stopping: Stopping, *, offline: bool) -> None:
    """Writes a model of every size of ``export.at`` that was passed: a run of its own, cut to that
    size from where this one stood before, trained on if the recipe says so, exported and proven.
    """
    doing = log.doing
    for name in branches.pending(state):
        started = time.monotonic()
        if not branches.finished(state, name, log):
            with branches.branch(state, name, log) as (own, own_log):
                with CheckpointWriter(own, own_log.folder, own_log) as keep:
                    _cut_to_size(own, state.passed[name]["stage"], own_log, keep)
                    _train_and_prune(own, own_log, stopping, keep, offline=offline)
                _finish(own, own_log, offline=offline, started=started)
        branches.note_written(state, name, log)
        fault.point("size")
        log.phase(doing, state.total_tokens)


def _cut_to_size(state: RunState, stage: int, log: Log, keep: CheckpointWriter) -> None:
    """Makes the one cut of a run that branched off to write a model of a size."""
    prune = state.recipe.prune
    if prune is None or state.target_reached:
        return
    if (near := branches.nearest(state)) != state.target_params:
        log.warn(f"{state.target_params:,} parameters cannot be had from here; {near:,} are taken")
        state.target_params = near
    if prune.rotate:
        rotate_event(state, prune, prune.rotate, log)
    else:
        prune_event(state, prune, Due(params=state.target_params, stage=stage), log)
    commit_event(state, log)
    if state.tokens >= state.total_tokens:
        state.optimizer = None  # nothing is trained any more
    keep.save()


def _loop(state: RunState, log: Log, stopping: Stopping, keep: CheckpointWriter) -> None:
    """The one training loop. A stop request, or a size that was passed, ends it after the step,
    with a checkpoint.
    """
    recipe, total = state.recipe, state.total_tokens
    with stopping.patient():
        while state.tokens < total and not branches.pending(state):
            started = time.monotonic()
            stage = stage_at(recipe, state.tokens)
            learned = train_step(state, log, started, keep.save)
            fault.point("step")
            _tell_stage(state, stage, log)
            if learned:
                _prune_if_due(state, log)
            mixture.update_if_due(state, log)
            state.seconds += time.monotonic() - started
            asked = state.world.any(bool(stopping.asked))
            keep.poll()
            if asked or state.tokens >= total or branches.pending(state):
                keep.save()
            elif state.step % recipe.save.every == 0:
                keep.save(background=recipe.save.background)
            if asked:
                where = f" behind step {state.step}, with a checkpoint"
                raise stopping.stopped(stopping.asked or "SIGTERM", where)


def _tell_stage(state: RunState, before: str, log: Log) -> None:
    """Records the beginning of a stage, where the recipe has stages."""
    train_spec = state.recipe.train
    now = stage_at(state.recipe, state.tokens)
    if train_spec is not None and train_spec.stages is not None and now and now != before:
        log.event(events.Stage(name=now, step=state.step, tokens=state.tokens))
        if before:
            log.phase(_phase(state.recipe, now))


def _phase(recipe: Recipe, stage: str) -> str:
    if recipe.sparsify is not None and recipe.prune is not None:
        return "pruning"
    if recipe.recover is not None:
        return "recovering"
    if recipe.prune is None:
        return "training"
    words = {"warmup": "training before pruning", "continued": "training after pruning"}
    return words.get(stage, "pruning and training")


def _prune_if_due(state: RunState, log: Log) -> None:
    prune, doing = state.recipe.prune, log.doing
    if prune and prune.rotate and not state.target_reached:
        at, whole = branches.undecided(state, log), Due(params=state.target_params)
        branches.branch_off(state, at, state.target_params, whole, log)
        rotate_event(state, prune, prune.rotate, log)
    again = prune is not None and prune.rotate is None
    while prune and again and (due := due_now(state, prune, log)) is not None:
        prune_event(state, prune, due, log)
        again = due.again
    if log.doing != doing and state.tokens < state.total_tokens:  # training begins, or goes on
        log.phase(doing)


def named(error: BaseException, phase: str, recipe: Recipe) -> EffcompressError | Stopped | None:
    """Returns a RunError for too little memory, a full disk or a failed compilation, else None."""
    if isinstance(error, EffcompressError | Stopped):
        return error
    if _out_of_memory(error):
        return RunError(f"not enough memory while {phase}", fix=_smaller(recipe))
    if type(error).__module__.startswith(_COMPILING):
        inner = getattr(error, "inner_exception", error)
        said = [line for line in str(inner).splitlines() if line.strip()] or [repr(inner)]
        return RunError(
            f"layers cannot be compiled: {said[0].strip()}",
            fix="Write `compile: false`, and --resume goes on without.",
        )
    if is_disk_full(error):
        return RunError(
            f"the disk is full, noticed while {phase}",
            where=getattr(error, "filename", None),
            fix="Free some space, then --resume goes on from the newest checkpoint.",
        )
    return None


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY)


def _smaller(recipe: Recipe) -> str:
    spec = recipe.loop
    if spec is None:
        return "Lower prune.measure.sequences or evaluate.sequences, or free some memory."
    rows = spec.micro_batch_size or spec.batch_size
    section = "recover" if recipe.recover is not None else "train"
    if rows == 1:
        return "Lower data.sequence_length, or free some memory; see effcompress plan."
    return (
        f"Start afresh (--output) with {section}.micro_batch_size: {rows // 2} or less (batch and "
        "learning stay the same), or free some memory and --resume."
    )
