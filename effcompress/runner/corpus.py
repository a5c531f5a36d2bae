"""Prepares the text of a recipe: tokenised and packed, from the cache where it is there already."""

from __future__ import annotations

from collections.abc import Callable

from effcompress import data
from effcompress.data import Corpus
from effcompress.estimate.schedule import total_tokens
from effcompress.model.cache import cache_root
from effcompress.record.events import DomainData
from effcompress.spec import Recipe
from effcompress.types import TextTokenizer


def described(corpus: Corpus) -> dict[str, DomainData]:
    """Returns what the record keeps of every domain."""
    return {
        domain: DomainData(
            documents=facts["documents"],
            tokens=facts["tokens"],
            hash=facts["content"],
            share=facts["share"],
            source=facts["source"],
        )
        for domain, facts in corpus.summary().items()
    }


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
    return data.prepare(
        recipe.data,
        tokenizer,
        cache_root(),
        train_tokens=total_tokens(recipe) if training else 0,
        heldout_sequences=recipe.evaluate.sequences,
        offline=offline,
        seed=recipe.seed,
        progress=lambda what, fraction: say(f"{what} {fraction:.0%}"),
        notice=notice,
    )
