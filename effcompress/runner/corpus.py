"""The text of a recipe, ready to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from effcompress import data
from effcompress.data import Corpus
from effcompress.estimate.schedule import total_tokens
from effcompress.model.cache import cache_root
from effcompress.spec import Recipe
from effcompress.types import TextTokenizer


def described(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """Of every domain what the record keeps: amounts, share of the mixture, source, and the hash of
    all tokens that the run trains on and is evaluated on.
    """
    names = {"documents": "documents", "tokens": "tokens", "hash": "content"}
    names |= {"share": "share", "source": "source"}
    return {
        domain: {key: facts[name] for key, name in names.items()}
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
    """Tokenise what the recipe reads (``training=False``: held-out text alone) and pack it.

    ``say`` hears of progress, ``notice`` of what the user should know. Raises SourceError naming
    the domain whose text is missing, unreadable, too short, or out of reach when ``offline``.
    """
    return data.prepare(
        recipe.data,
        tokenizer,
        cache_root(),
        train_tokens=total_tokens(recipe) if training else 0,
        heldout_sequences=recipe.evaluate.sequences,
        offline=offline,
        seed=recipe.seed,
        progress=lambda what, share: say(f"{what} {share:.0%}"),
        notice=notice,
    )
