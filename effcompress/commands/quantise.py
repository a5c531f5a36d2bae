"""``effcompress export --as gguf --quantise``: quantised weights, and what they cost."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effcompress import processes
from effcompress.answer import Answer, Table
from effcompress.errors import RunError, SourceError, did_you_mean
from effcompress.export.forms import stock_form
from effcompress.model.gguf.quantise import (
    BY_LLAMA_CPP,
    OWN,
    quantise,
    read_back,
    require_quantiser,
)
from effcompress.network.pruned_model import PrunedModel
from effcompress.record.events import DomainScore, Exported
from effcompress.record.readable import percent

Scores = Mapping[str, DomainScore]


def require_numbers(form: str, dtype: str | None, name: str | None) -> None:
    """Raises SourceError for ``--dtype`` and ``--quantise`` where they say nothing, or for a type
    that nothing on this machine makes.
    """
    if name is None:
        return
    if form != "gguf":
        raise SourceError(
            f"only gguf files are quantised, and this is --as {form}",
            where=f"--quantise {name}",
            fix="--as gguf",
        )
    if dtype is not None:
        raise SourceError(
            f"--quantise {name} says how numbers are stored, --dtype {dtype} says it otherwise",
            where="--dtype",
            fix="Leave one of them out.",
        )
    if name not in (*OWN, *BY_LLAMA_CPP):
        fix = did_you_mean(name, (*OWN, *BY_LLAMA_CPP))
        raise SourceError("no such type of numbers", where=f"--quantise {name}", fix=fix)
    require_quantiser(name)


def quantised(
    pruned: PrunedModel,
    target: Path,
    name: str,
    write_plain: Callable[[Path], object],
    evaluate: Callable[[nn.Module], Scores],
    say: Callable[[str], None],
) -> tuple[Answer, Exported]:
    """Writes a quantised gguf file, and evaluates the model with the weights that it holds.

    ``write_plain`` writes the model as a gguf file of F32, ``evaluate`` scores a module. Afterwards
    ``pruned`` may have the values of the file. Raises RunError where llama.cpp fails.
    """
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with processes.scratch(".gguf", target.parent) as work:
        plain = work / "plain.gguf"
        write_plain(plain)
        say(f"quantising to {name}")
        kinds = quantise(plain, target, name)
        say("evaluating the model before and after")
        before, after = _scored(pruned, plain, target, evaluate)
    more: Any = {"before": before, "after": after, "seconds": time.monotonic() - started}
    exported = exported_gguf(pruned.params, target, name, **more)
    return _told(target, name, kinds, before, after), exported


def _scored(
    pruned: PrunedModel, plain: Path, target: Path, evaluate: Callable[[nn.Module], Scores]
) -> tuple[Scores, Scores]:
    """Returns the scores before and after; both empty where the file holds other weights than the
    model and its stock class have, so that they cannot be read back.
    """
    for made in (_as_it_is, _as_stock):
        try:
            module, held = made(pruned)
            values = dict(read_back(held, plain, target))
        except RunError:
            continue
        before = evaluate(module)
        with torch.no_grad():
            for path, value in values.items():
                held[path].copy_(value)
        return before, evaluate(module)
    return {}, {}


def _as_it_is(pruned: PrunedModel) -> tuple[nn.Module, Mapping[str, Tensor]]:
    return pruned.module, pruned.parameters()


def _as_stock(pruned: PrunedModel) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Returns the model in the stock class that a file may have been written from: padded, and with
    the factors that its norms ask for.
    """
    made = stock_form(pruned, "auto")
    skeleton: Any = made.skeleton
    module = type(skeleton)(skeleton.config)
    module.load_state_dict(dict(made.tensors), strict=False)
    module.tie_weights()
    return module, dict(module.named_parameters())


def exported_gguf(params: int, target: Path, numbers: str, **more: Any) -> Exported:
    """Returns the event of a gguf file that was written to ``target``."""
    return Exported(
        form="gguf",
        output=target.name,
        parameters=params,
        bytes=target.stat().st_size,
        numbers=numbers,
        **more,
    )


def _told(
    target: Path,
    name: str,
    kinds: Mapping[str, int],
    before: Mapping[str, DomainScore],
    after: Mapping[str, DomainScore],
) -> Answer:
    size = target.stat().st_size
    data = {
        "form": "gguf",
        "bytes": size,
        "dtype": name,
        "weights": dict(kinds),
        "perplexity": {
            domain: {"before": before[domain].perplexity, "after": score.perplexity}
            for domain, score in after.items()
        },
        "output": str(target),
    }
    every = sum(kinds.values())
    rows = [("bytes", f"{size:,}")]
    rows += [(f"weights in {kind}", f"{n:,} ({percent(n / every)})") for kind, n in kinds.items()]
    scored = tuple(
        (
            domain,
            f"{before[domain].perplexity:.3f}",
            f"{score.perplexity:.3f}",
            percent(score.perplexity / before[domain].perplexity - 1, sign=True),
        )
        for domain, score in after.items()
    )
    tables = (
        Table(str(target), ("", ""), tuple(rows)),
        Table("Perplexity of the held-out text", ("domain", "before", "after", "change"), scored),
    )
    wide = kinds.get("F16", 0) / every
    notes = ("It is that of the weights in the file, computed in fp32 by the run's protocol.",)
    if not scored:
        tables, notes = tables[:1], ("Not evaluated: the file scales weights on their way.",)
    if wide > 0.01:
        notes += (
            f"{percent(wide)} of the weights stay F16: their rows are no multiple of 32. Prune "
            "with `round_to: 32` to have all of them quantised.",
        )
    return Answer(data, tables, notes)
