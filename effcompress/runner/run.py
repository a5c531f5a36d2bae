"""The story, top to bottom: the only file that names every room."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

from effcompress import checkpoint, report, train
from effcompress.checkpoint import Saved
from effcompress.data import Corpus
from effcompress.distributed import World, joined
from effcompress.errors import EffcompressError, RunError
from effcompress.log import Log, NoView, make_view
from effcompress.model.load import LoadedModel
from effcompress.recipe import LoadedRecipe
from effcompress.runner import recovery
from effcompress.runner.begin import begin, evaluated
from effcompress.runner.export import export_and_prove
from effcompress.runner.folder import open_folder, output_folder
from effcompress.runner.measured import listening, observe
from effcompress.runner.preflight import preflight
from effcompress.runner.prune import commit_event, due_now, prune_event, remainder
from effcompress.runner.result import Report, result
from effcompress.runner.source import load_source
from effcompress.runner.sparsify import sparsify_event
from effcompress.runner.state import RunState
from effcompress.runner.text import corpus_of
from effcompress.runner.timeline import stage_at, total_tokens
from effcompress.sparsity.hold import hold
from effcompress.spec import Recipe
from effcompress.types import Due


def run(
    loaded: LoadedRecipe,
    *,
    output: Path | None = None,
    resume: bool = False,
    offline: bool = False,
) -> Report:
    """Do what the recipe says and leave a proven model in the output folder.

    Raises RecipeError or SourceError when the user's input cannot be used, RunError when the run
    failed; a failed run can be continued with ``resume=True``.
    """
    preflight(loaded, offline=offline)
    folder = output_folder(loaded, output)
    with joined() as world:
        world.agree(lambda: open_folder(loaded, folder, resume))
        return _recorded(loaded.recipe, folder, world, offline=offline)


def _recorded(recipe: Recipe, folder: Path, world: World, *, offline: bool) -> Report:
    """The story with its record and its report; how it ended is always in them."""
    log = Log(folder, view=make_view() if world.main else NoView(), keep=world.main)
    started = time.monotonic()
    try:
        done = _story(recipe, folder, log, world, offline=offline, started=started)
        log.close()
        if world.main:
            report.write(folder)
    except BaseException as error:
        # Whatever else fails now (a full disk, say) must not hide what failed first.
        with contextlib.suppress(EffcompressError, OSError):
            reason = str(error) if isinstance(error, EffcompressError) else repr(error)
            log.event("end", status="failed", reason=reason, seconds=time.monotonic() - started)
        with contextlib.suppress(EffcompressError, OSError):
            log.close()
            if world.main:
                report.write(folder)
        raise
    return done


def _story(
    recipe: Recipe, folder: Path, log: Log, world: World, *, offline: bool, started: float
) -> Report:
    torch.manual_seed(recipe.seed)
    log.phase("loading the model")
    damaged: list[str] = []
    saved = checkpoint.newest(folder / "checkpoints", damaged.append)
    # The record goes back to where the checkpoint stood, before anything is added to it.
    log.rewind(saved.values["log"] if saved else {})
    for text in damaged:
        log.warn(text)
    with world.main_first():  # fetches, converts and tokenises; the others find it done
        model = load_source(recipe, log, offline=offline)
        corpus = _text(recipe, model, log, offline=offline, resumed=saved is not None)
    total = total_tokens(recipe)
    state = RunState(recipe, model, corpus, world)
    if saved is None:
        begin(state, model, corpus, total, log, offline=offline)
    else:
        _continue(state, saved, corpus, log)
    before = state.seconds
    _train_and_prune(state, corpus, total, folder, log, offline=offline)
    world.agree(lambda: export_and_prove(state, corpus, folder, log))
    log.phase("evaluating the pruned model")
    after = evaluated(state, corpus, log, offline)
    log.event("evaluation", when="after", params=state.params, **after)
    done = result(state, folder, after["domains"])
    log.event(
        "end",
        status="success",
        seconds=before + time.monotonic() - started,
        params=state.params,
        widths=state.pruned.widths,
        zeroed=done.zeroed,
    )
    if world.main:
        report.write_card(folder)
    return done


def _text(recipe: Recipe, model: LoadedModel, log: Log, *, offline: bool, resumed: bool) -> Corpus:
    """Make the text ready. What preparing has to say is in the record of a resumed run already;
    what the stream says later (a domain that runs dry) is not.
    """
    log.phase("preparing the text")
    tell = log.note if resumed else log.warn
    corpus = corpus_of(
        recipe, model.tokenizer, offline=offline, say=log.note, notice=lambda text: tell(text)
    )
    tell = log.warn
    return corpus


def _continue(state: RunState, saved: Saved, corpus: Corpus, log: Log) -> None:
    """Stand where the checkpoint stood, the record included."""
    if saved.values["corpus"] != corpus.fingerprint:
        raise RunError(
            "the training text is not the one this run began with",
            fix="Put the text back, or start afresh with --output.",
        )
    state.restore(saved)
    # The record in the checkpoint ends just before the checkpoint itself is noted.
    log.event("checkpoint", step=state.step, seconds=0.0, bytes=saved.values["bytes"])
    if saved.values["threads"] != torch.get_num_threads():
        log.note("another number of threads than before: results may differ in the last digits")
    log.note(f"continuing at step {state.step}, {state.tokens:,} tokens")


def _train_and_prune(
    state: RunState, corpus: Corpus, total: int, folder: Path, log: Log, *, offline: bool
) -> None:
    """The one loop. One-shot pruning is the same loop with one event at token 0."""
    recipe = state.recipe
    dense = recipe.sparsify is not None and not state.sparse
    if recipe.prune or not dense:
        log.phase(_phase(recipe, stage_at(recipe, state.tokens)), total)
    if state.step == 0 and not state.sparse:
        _tell_stage(state, "", log)
        _prune_if_due(state, corpus, total, log)
    if recipe.sparsify is not None and dense:
        sparsify_event(state, recipe.sparsify, corpus, log)
        if total:
            _save(state, corpus, folder, log)
            log.phase("training with zeros", total)
    recovery.begin(state, log, offline=offline)
    while state.tokens < total:
        started = time.monotonic()
        stage = stage_at(recipe, state.tokens)
        _train_step(state, total, log, started)
        _tell_stage(state, stage, log)
        _prune_if_due(state, corpus, total, log)
        state.seconds += time.monotonic() - started
        if state.step % recipe.save.every == 0 or state.tokens >= total:
            _save(state, corpus, folder, log)
    unsaved = state.step == 0 or state.pruned.ledger.pending() or state.lora is not None
    recovery.end(state)
    if recipe.prune and not state.target_reached:
        unsaved = True
        log.warn(remainder(state, recipe.prune))
        prune_event(state, recipe.prune, Due(params=state.target_params), corpus, log)
    commit_event(state, log)
    if unsaved:  # `effcompress export` starts from the last checkpoint
        _save(state, corpus, folder, log)
    state.module.zero_grad(set_to_none=True)


def _tell_stage(state: RunState, before: str, log: Log) -> None:
    """Where the recipe has stages: say which one begins here."""
    train_spec = state.recipe.train
    now = stage_at(state.recipe, state.tokens)
    if train_spec is not None and train_spec.stages is not None and now and now != before:
        log.event("stage", name=now, step=state.step, tokens=state.tokens)
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


def _train_step(state: RunState, total: int, log: Log, started: float) -> None:
    recipe, optimizer = state.recipe, state.optimizer
    spec = recipe.loop
    assert spec is not None and optimizer is not None
    state.module.train()
    batch = state.stream.next(spec.batch_size)
    with listening(state):
        losses = train.backward(state.trainee, batch, spec, state.objective, state.world)
    if recipe.prune:
        observe(state, recipe.prune)
    hold(state.module, state.zeros)
    state.step += 1
    state.tokens += batch.ids_BT.numel()
    rate = train.learning_rate(spec.learning_rate, state.tokens, total)
    norm = train.update(state.module, optimizer, spec, rate)
    seconds = time.monotonic() - started
    log.event(
        "step",
        step=state.step,
        tokens=state.tokens,
        loss=losses.loss,
        **({} if state.objective is train.next_token else {"objective": losses.objective}),
        domain_loss=losses.domain_loss,
        learning_rate=rate,
        grad_norm=norm,
        params=state.params,
        tokens_per_second=batch.ids_BT.numel() / seconds,
        flops=state.flops_per_token * batch.ids_BT.numel(),
        seconds=state.seconds + seconds,
    )


def _prune_if_due(state: RunState, corpus: Corpus, total: int, log: Log) -> None:
    prune = state.recipe.prune
    if prune is None:
        return
    again = True
    while again and (due := due_now(state, prune, total, log)) is not None:
        prune_event(state, prune, due, corpus, log)
        again = due.again


def _save(state: RunState, corpus: Corpus, folder: Path, log: Log) -> None:
    started = time.monotonic()
    saved = state.snapshot(log.state())
    saved.values["corpus"] = corpus.fingerprint
    saved.values["threads"] = torch.get_num_threads()
    size = state.world.agree(lambda: _written(folder, state, saved))
    log.event("checkpoint", step=state.step, seconds=time.monotonic() - started, bytes=size)


def _written(folder: Path, state: RunState, saved: Saved) -> int:
    """Bytes of the checkpoint."""
    path = checkpoint.save(folder / "checkpoints", state.step, saved, state.recipe.save.keep)
    return (path / checkpoint.TENSORS).stat().st_size
