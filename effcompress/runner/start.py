"""The start of a run: prepares the text, records what is run, evaluates the dense model."""

import datetime
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effcompress import __version__, data
from effcompress.data import Corpus
from effcompress.estimate.schedule import measures, total_tokens
from effcompress.isolation import require_isolation
from effcompress.model.cache import cache_root
from effcompress.model.fetch import ensure
from effcompress.model.forward import require_forward
from effcompress.model.load import LoadedModel, fingerprint
from effcompress.model.source_facts import facts_of
from effcompress.record.events import DomainData, Evaluation, Run, SourceFacts
from effcompress.record.log import Log
from effcompress.runner import mixture
from effcompress.runner.evaluation import description, evaluate, evaluate_once
from effcompress.runner.source_model import source_again
from effcompress.runner.state import RunState
from effcompress.spec import Recipe
from effcompress.types import TextTokenizer


def whole_of(recipe: Recipe) -> Path | None:
    """Returns the folder of the multimodal source that the pruned text model is put back into; None
    where the recipe exports it by itself.
    """
    if recipe.export.multimodal == "text":
        return None
    return ensure(recipe.model, cache_root(), offline=True)


def corpus_of(
    recipe: Recipe,
    tokenizer: TextTokenizer,
    *,
    offline: bool,
    say: Callable[[str], None],
    notice: Callable[[str], None],
    training: bool = True,
) -> Corpus:
    """Tokenises and packs the text of the recipe (``training=False``: held-out text alone).

    ``say`` is called with progress, ``notice`` with warnings. Raises SourceError naming the domain
    whose text is missing, unreadable, too short, or not on this machine when ``offline``.
    """
    mixed, sequences = recipe.data.mixture, recipe.evaluate.sequences
    return data.prepare(
        recipe.data,
        tokenizer,
        cache_root(),
        train_tokens=total_tokens(recipe) if training else 0,
        heldout_sequences=sequences + (mixed.sequences if mixed and training else 0),
        offline=offline,
        seed=recipe.seed,
        progress=lambda what, fraction: say(f"{what} {fraction:.0%}"),
        notice=notice,
    )


def begin(state: RunState, model: LoadedModel, log: Log, *, offline: bool) -> None:
    """Records the ``run`` event and evaluates the dense model, or takes it from the cache. Raises
    SourceError for a model whose class does not compute.
    """
    import transformers  # noqa: TID251  its version is part of the record

    recipe, hashed = state.recipe, fingerprint(state.module)
    texts: Any = state.corpus.summary()
    kept = ("documents", "tokens", "share", "source")
    log.event(
        Run(
            name=recipe.name,
            seed=recipe.seed,
            effcompress=__version__,
            torch=torch.__version__,
            transformers=transformers.__version__,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=model.source,
            model_hash=hashed,
            facts=SourceFacts(**asdict(facts_of(recipe.model))),
            params=state.params,
            source_params=state.params - model.added_params,
            target_params=_target(state),
            total_tokens=state.total_tokens,
            widths=state.pruned.widths,
            device=str(state.device),
            threads=torch.get_num_threads(),
            processes=state.world.size,
            measures=measures(recipe),
            data={
                name: DomainData(
                    hash=facts["content"],
                    hub=recipe.data.domains[name].hub,
                    **{key: facts[key] for key in kept},
                )
                for name, facts in texts.items()
            },
        )
    )
    require_forward(state.to_call, model.source)
    if state.corpus.isolated:
        require_isolation(state.to_call)
    log.phase("evaluating the dense model")
    pruned, tokens = state.pruned, state.tokenizer.fingerprint
    before = evaluate_once(
        partial(evaluated, state, log, when="before", offline=offline),
        description(pruned.module, hashed, pruned.config, tokens, state.corpus, recipe.evaluate),
        state.world,
    )
    if before.known:
        log.note("the dense model was evaluated by an earlier run: its result is taken")
    log.event(before)
    mixture.begin(state, log)


def _target(state: RunState) -> int | None:
    """The size that the recipe asks for; None where nothing is pruned, or the target is no size."""
    prune = state.recipe.prune
    return state.target_params if prune is not None and prune.target.sized else None


def evaluated(state: RunState, log: Log, *, when: str, offline: bool) -> Evaluation:
    """Evaluates the model as it is by the recipe's protocol; ``when``: before or after (then also
    beside the source model, if the recipe says so).
    """
    of = state.to_call, state.tokenizer, state.corpus, state.recipe.evaluate
    how: Any = {"params": state.params, "say": log.note, "world": state.world}
    if when == "after" and state.recipe.evaluate.agreement:
        log.note("loading the source model to compare with")
        source, _ = source_again(state, log, offline=offline)
        how["source"] = state.beside(source)
    return evaluate(*of, when=when, offline=offline, **how)
