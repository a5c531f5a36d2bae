"""The story, top to bottom: the only file that names every room."""

from __future__ import annotations

import contextlib
import datetime
import time
from functools import partial
from pathlib import Path

import torch

from effcompress import __version__, checkpoint, report, train
from effcompress.checkpoint import Saved
from effcompress.data import Corpus
from effcompress.errors import EffcompressError, RunError
from effcompress.log import Log, make_view
from effcompress.model.fingerprint import fingerprint
from effcompress.model.load import LoadedModel
from effcompress.recipe import LoadedRecipe
from effcompress.runner import recovery
from effcompress.runner.export import export_and_prove
from effcompress.runner.folder import open_folder, output_folder
from effcompress.runner.known import description, measured_once
from effcompress.runner.measured import listening, observe
from effcompress.runner.measurement import evaluate
from effcompress.runner.preflight import preflight
from effcompress.runner.prune import commit_event, due_now, prune_event, remainder
from effcompress.runner.result import Report, result
from effcompress.runner.source import load_source
from effcompress.runner.sparsify import sparsify_event
from effcompress.runner.state import RunState
from effcompress.runner.text import corpus_of, described
from effcompress.runner.timeline import measures, stage_at, total_tokens
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
    open_folder(loaded, folder, resume)
    log = Log(folder, view=make_view())
    started = time.monotonic()
    try:
        done = _story(loaded.recipe, folder, log, offline=offline, started=started)
        log.close()
        report.write(folder)
    except BaseException as error:
        # Whatever else fails now (a full disk, say) must not hide what failed first.
        with contextlib.suppress(EffcompressError, OSError):
            reason = str(error) if isinstance(error, EffcompressError) else repr(error)
            log.event("end", status="failed", reason=reason, seconds=time.monotonic() - started)
        with contextlib.suppress(EffcompressError, OSError):
            log.close()
            report.write(folder)
        raise
    return done


def _story(recipe: Recipe, folder: Path, log: Log, *, offline: bool, started: float) -> Report:
    torch.manual_seed(recipe.seed)
    log.phase("loading the model")
    damaged: list[str] = []
    saved = checkpoint.newest(folder / "checkpoints", damaged.append)
    # The record goes back to where the checkpoint stood, before anything is added to it.
    log.rewind(saved.values["log"] if saved else {})
    for text in damaged:
        log.warn(text)
    model = load_source(recipe, log, offline=offline)
    total = total_tokens(recipe)
    corpus = _text(recipe, model, log, offline=offline, resumed=saved is not None)
    state = RunState(recipe, model, corpus)
    if saved is None:
        _begin(state, model, corpus, total, log, offline=offline)
    else:
        _continue(state, saved, corpus, log)
    before = state.seconds
    _train_and_prune(state, corpus, total, folder, log, offline=offline)
    export_and_prove(state, corpus, folder, log)
    log.phase("evaluating the pruned model")
    after = _evaluate(state, corpus, log, offline)
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


def _begin(
    state: RunState, model: LoadedModel, corpus: Corpus, total: int, log: Log, *, offline: bool
) -> None:
    """Write down where the run starts from, and measure the dense model."""
    import transformers  # noqa: TID251  its version is part of the record

    recipe, hashed = state.recipe, fingerprint(state.module)
    log.event(
        "run",
        name=recipe.name,
        seed=recipe.seed,
        effcompress=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=model.source,
        model_hash=hashed,
        params=state.params,
        target_params=state.target_params if recipe.prune else None,
        total_tokens=total,
        widths=state.pruned.widths,
        device=str(state.device),
        threads=torch.get_num_threads(),
        measures=measures(recipe),
        data=described(corpus),
    )
    log.phase("evaluating the dense model")
    pruned, tokens = state.pruned, state.tokenizer.fingerprint
    before = measured_once(
        partial(_evaluate, state, corpus, log, offline),
        description(pruned.module, hashed, pruned.config, tokens, corpus, recipe.evaluate),
    )
    if before.get("known"):
        log.note("the dense model is known from an earlier run: not measured again")
    log.event("evaluation", when="before", params=state.params, **before)


def _evaluate(state: RunState, corpus: Corpus, log: Log, offline: bool) -> dict[str, object]:
    spec = state.recipe.evaluate
    return evaluate(state.module, state.tokenizer, corpus, spec, offline=offline, say=log.note)


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
        losses = train.backward(state.module, batch, spec, state.objective)
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
    path = checkpoint.save(folder / "checkpoints", state.step, saved, state.recipe.save.keep)
    size = (path / checkpoint.TENSORS).stat().st_size
    log.event("checkpoint", step=state.step, seconds=time.monotonic() - started, bytes=size)
