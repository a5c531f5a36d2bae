"""The start of a run: loads the source model, prepares the text, records what is run, evaluates the
dense model.
"""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effcompress import __version__, data
from effcompress.data import Corpus
from effcompress.distributed.world import ALONE, World
from effcompress.estimate.schedule import measures, total_tokens
from effcompress.isolation import require_isolation
from effcompress.model.biases import add_biases, biased
from effcompress.model.cache import cache_root
from effcompress.model.fetch import ensure
from effcompress.model.lineage import parent_of
from effcompress.model.load import LoadedModel, fingerprint
from effcompress.model.load import load as load_model
from effcompress.model.novices import add_novices, novel
from effcompress.model.source_facts import facts_of
from effcompress.network.axis_map import family_for
from effcompress.record.events import DomainData, Evaluation, Run, SourceFacts
from effcompress.record.log import Log
from effcompress.removal.repairs import for_biases, for_experts, for_streams
from effcompress.runner import mixture
from effcompress.runner.by_rows import in_rows, rows_of
from effcompress.runner.evaluation import description, evaluate, evaluate_once
from effcompress.runner.provenance import require_same, source_model
from effcompress.runner.recovery import source_again
from effcompress.runner.state import RunState
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import TextTokenizer


def whole_of(recipe: Recipe) -> Path | None:
    """Returns the folder of the multimodal source that the pruned text model is put back into; None
    where the recipe exports it by itself.
    """
    if recipe.export.multimodal == "text":
        return None
    return ensure(recipe.model, cache_root(), offline=True)


def load_source(
    recipe: Recipe, log: Log, before: Mapping[str, str], *, offline: bool, world: World = ALONE
) -> tuple[LoadedModel, dict[str, str]]:
    """Loads the source model (``read_source``) and takes it up (``identified``)."""
    model = read_source(recipe, log, offline=offline, world=world)
    return identified(recipe, model, log, before, world)


def read_source(recipe: Recipe, log: Log, *, offline: bool, world: World = ALONE) -> LoadedModel:
    """Loads the source model, of a sharded one this rank's rows alone. Sends nothing.

    Raises SourceError as ``model.load`` does.
    """
    how: Any = {"offline": offline, "progress": log.note, "rows_of": rows_of(recipe, world)}
    return load_model(recipe.model, seed=recipe.seed, **how)


def identified(
    recipe: Recipe, model: LoadedModel, log: Log, before: Mapping[str, str], world: World = ALONE
) -> tuple[LoadedModel, dict[str, str]]:
    """Returns the source model, sharded where it was read by rows, with zero biases where a repair
    writes into them, and what it is (``provenance.source_model``). A collective if it is sharded.

    Raises RunError when it is not what a resumed run had ``before``, CoverageError when the class
    of the model has no place for such biases.
    """
    model = in_rows(recipe, model, world)
    provenance = source_model(recipe, model)
    require_same(before, provenance)
    return repairable(model, recipe.prune, log.note), provenance


def repairable(
    model: LoadedModel, prune: PruneSpec | None, note: Callable[[str], None]
) -> LoadedModel:
    """Adds the zero biases and constants that repairs write into; ``note`` is told how many.

    Raises CoverageError when the class of the model has no place for them.
    """
    if prune and for_experts(prune.repair):
        family = family_for(parent_of(model.config))
        config = novel(family, model.config)
        if added := add_novices(model.module, family):
            note(f"{added:,} constants added, all zero: a repair puts them in experts' places")
        model = replace(model, config=config, added_params=added)
    if not prune or not (for_biases(prune.repair) or for_streams(prune)):
        return model
    plain = parent_of(model.config)
    family = family_for(plain)
    config = {**model.config, **biased(family, plain)}
    if added := add_biases(model.module, family, config):
        note(f"{added:,} biases added, all zero: a repair writes into them")
    return replace(model, config=config, added_params=model.added_params + added)


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
        heldout_sequences=max(sequences, mixed.sequences) if mixed and training else sequences,
        offline=offline,
        seed=recipe.seed,
        progress=lambda what, fraction: say(f"{what} {fraction:.0%}"),
        notice=notice,
    )


def begin(state: RunState, model: LoadedModel, log: Log, *, offline: bool) -> None:
    """Records the ``run`` event and evaluates the dense model, or takes it from the cache."""
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
    mixture.begin(state, before, log)


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
        how["source"] = source.to(state.device)
    return evaluate(*of, when=when, offline=offline, **how)
