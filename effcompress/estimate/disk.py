"""What a run takes of the disk, and how long its text is tokenised, from a recipe alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from effcompress import data
from effcompress.answer import Table
from effcompress.estimate.feasibility import SizedModel
from effcompress.estimate.memory import FP32, memory, trained
from effcompress.estimate.schedule import total_tokens
from effcompress.model import source
from effcompress.record.readable import duration, exact_count, size
from effcompress.spec import Recipe
from effcompress.types import Widths

RATE = 300_000.0
"""Tokens that one core makes of text in a second: 277,000 (prose) and 346,000 (code) of Python's
standard library, with a byte-level BPE of 49k entries, on a core of an AMD EPYC.
"""
TITLE = "Disk"


@dataclass(frozen=True)
class Text:
    """What ``fetch`` makes of one domain; None: all of a text whose length is not known."""

    domain: str
    tokens: int | None
    bytes: int | None


@dataclass(frozen=True)
class Stored:
    """Bytes by what they are, as JSON values and as a table; ``said``: a sentence on the time."""

    data: dict[str, Any]
    table: Table
    said: str


def texts(recipe: Recipe, found: SizedModel | None) -> list[Text]:
    """Returns the token files of every domain, as long as they can become."""
    mixed, sequences = recipe.data.mixture, recipe.evaluate.sequences
    heldout = sequences + (mixed.sequences if mixed else 0)
    plain = source.of_bytes(recipe.model)
    asked = data.to_tokenise(recipe.data, total_tokens(recipe), heldout, of_bytes=plain)
    few = found is None or found.axes.widths["vocab"] <= 1 << 16
    wide = {name: 4 if one.signed or not few else 2 for name, one in asked.items()}
    return [
        Text(name, one.tokens, None if one.tokens is None else one.tokens * wide[name])
        for name, one in asked.items()
    ]


def seconds_of(made: list[Text]) -> float | None:
    """Returns the time of one core to tokenise all of it; None where a length is not known."""
    counts = [one.tokens for one in made]
    return None if None in counts else sum(filter(None, counts)) / RATE


def told(made: list[Text]) -> str:
    """Returns a sentence on that time, with what it assumes."""
    if (seconds := seconds_of(made)) is None:
        return "tokenising: not known, as all of a text is read (data.documents.pack: false)"
    tokens = exact_count(sum(one.tokens or 0 for one in made))
    rate = f"{RATE / 1e3:.0f}k tokens/s, as measured with a vocabulary of 49k on one core"
    return (
        f"tokenising {tokens} tokens takes about {duration(seconds)} at {rate} (less on several); "
        "once, by `fetch`"
    )


def stored(recipe: Recipe, found: SizedModel, final: Widths) -> Stored:
    """Returns what lies on the disk at most; ``final`` are the widths at the end."""
    made = texts(recipe, found)
    rows = [*_rows(recipe, found, {**found.axes.widths, **final}, made)]
    known = sum(number for _, number, _ in rows if number is not None)
    table = [(what, "?" if number is None else size(number), how) for what, number, how in rows]
    table.append(("together", size(known), "tasks, trackers and Python's packages aside"))
    facts = {what.replace(" ", "_"): number for what, number, _ in rows}
    tokens = {one.domain: one.tokens for one in made}
    more = {"bytes": facts, "tokens": tokens, "tokenising_seconds": seconds_of(made)}
    assumed = {"tokens_per_second": RATE, "cores": 1}
    return Stored(
        {"disk": {**more, "assumed": assumed}}, Table(TITLE, ("", "", ""), tuple(table)), told(made)
    )


def _rows(
    recipe: Recipe, found: SizedModel, final: Widths, made: list[Text]
) -> Iterator[tuple[str, int | None, str]]:
    """Yields what, its bytes (None: not known), and where or how that is counted."""
    yield _source(recipe, found)
    counts = [one.bytes for one in made]
    total = None if None in counts else sum(filter(None, counts))
    yield "tokenised text", total, "in the cache; 2 or 4 bytes a token"
    each = checkpoint_bytes(recipe, found, final)
    number = recipe.save.keep + 1 if recipe.loop is not None else 1
    how = f"{number} x {size(each)}, at the first size: kept, and one that is being written"
    if number == 1:
        how = "one, of the pruned model"
    yield "checkpoints", number * each, how
    padded = int(memory(found, recipe, final)["export"].working)
    export = padded or FP32 * found.axes.count(final)
    how = "fp32, padded to the widest layer" if padded else "fp32"
    if recipe.export.multimodal == "whole":
        how += ", of the text model; the rest of the source is copied beside it"
    yield "export", export, how


def _source(recipe: Recipe, found: SizedModel) -> tuple[str, int | None, str]:
    listed = [item for item in source.items(recipe.model) if item.kind == "model"]
    if not listed:
        return "source model", 0, "random weights: nothing is stored"
    if listed[0].cached and listed[0].size:
        return "source model", listed[0].size, "is here"
    stated = str(found.config.get("dtype") or found.config.get("torch_dtype") or "float32")
    width = 2 if "16" in stated else 4
    return "source model", width * found.start, f"to be fetched; {width} bytes a parameter"


def checkpoint_bytes(recipe: Recipe, found: SizedModel, final: Widths) -> int:
    """Returns the bytes of the largest checkpoint: weights and AdamW's moments in fp32, running
    saliency and Gram matrices.
    """
    held = memory(found, recipe, final)["checkpoint"]
    wide = found.axes.widths if recipe.train is not None else final
    updates = trained(found, recipe, wide) if _low_rank(recipe) else 0
    weights = FP32 * (found.axes.count(wide) + updates)
    return math.ceil(weights + held.moments + held.grams + held.saliency)


def _low_rank(recipe: Recipe) -> bool:
    return recipe.recover is not None and recipe.recover.method == "lora"
