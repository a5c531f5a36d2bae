"""Which architectures of the installed transformers can be pruned without a declaration.

    python benchmarks/tracing.py                 # resumes where docs/results/tracing.csv ends
    python benchmarks/tracing.py --again TYPE... # these once more
    python benchmarks/tracing.py --page          # docs/results/tracing.md from the table

Every causal model type that is not declared is resolved as `effcompress inspect` does it, from the
default configuration of its class: small random models of it are traced, and what is found is
proven on them. Each in a process of its own with a limit of processor time (not of the clock, so
that other work on the machine does not change the result). A row is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch_pruning  # noqa: F401 (before the processes that need it are forked)
import transformers

from effcompress import groups
from effcompress.errors import EffcompressError
from effcompress.estimate.inspect import kinds_of
from effcompress.groups.tracing.draft import draft_from_json, family_from
from effcompress.groups.tracing.trace import answer
from effcompress.model.classes import causal_models
from effcompress.model.families import is_declared
from effcompress.model.modeling_pruned import silent
from effcompress.model.multimodal import text_of
from effcompress.model.silence import quietly
from effcompress.model.small import build, plain_of
from effcompress.model.suitability import require_causal
from effcompress.types import Config

Row = dict[str, str]
SECONDS, PATIENCE = 120, 3600
"""Processor time of one process; time by the clock after which a type is given up."""
TABLE = Path(__file__).parents[1] / "docs/results/tracing.csv"
FIELDS: tuple[str, ...] = ("model_type", "outcome", "kinds", "reason", "seconds")
OUTCOMES = {
    "traced": "traced, and what was found is proven",
    "text": "the text model inside is of a declared architecture",
    "encoder": "no causal language model unless configured as one",
    "unbuilt": "no small model of the defaults of the configuration class can be built",
    "refused": "refused",
    "late": "no answer within the limit",
    "crash": "an error that says nothing (a fault of effcompress)",
}
EARLIER = (
    *("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "gemma4_text", "gemma3n_text", "gpt_oss"),
    *("deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite", "minicpm3", "dots1"),
    *("ernie4_5_moe", "exaone_moe", "minimax_m2", "qwen2_moe", "olmoe", "llama4_text"),
    *("lfm2", "lfm2_moe", "falcon_h1", "nemotron_h", "granitemoehybrid", "bamba", "mamba2"),
    *("apertus", "granitemoe", "granitemoeshared", "granitemoe_swa"),
    *("gemma3", "gemma4", "mistral3", "qwen2_5_vl", "qwen3_5", "llama4"),
)
"""Model types on the list of faults of an earlier version: refused, broken at export, or taken in
part.
"""


def resolve(model_type: str, tell: Callable[[Row], None]) -> Row:
    """Returns outcome, kinds and reason of one model type; ``tell`` hears where the tracer is."""
    with quietly():
        try:
            made: Any = transformers.AutoConfig.for_model(model_type)
            config = plain_of(made)
        except Exception as error:  # noqa: BLE001 (classes raise different ones)
            return {"outcome": "unbuilt", "reason": _line(str(error) or type(error).__name__)}
    config = text_of(config) or config
    if is_declared(config):
        return {"outcome": "text", "reason": str(config["model_type"])}
    try:
        require_causal(config, model_type)
    except EffcompressError as error:
        return {"outcome": "encoder", "reason": _line(error.what)}
    return _traced(config, tell)


def _traced(config: Config, tell: Callable[[Row], None]) -> Row:
    """Traces a configuration as `groups.tracing.trace` does in its own process."""
    said: dict[str, Any] = {}

    def hear(fact: Mapping[str, Any]) -> None:
        said.update(fact)
        if "at" in fact:
            tell({"reason": f"at {fact['at']}"})

    try:
        answer({"config": config}, build, silent, hear)
        if error := said.get("error"):
            at = "" if error["where"] in (None, "", "model") else f"{error['where']}: "
            unbuilt = error["what"].startswith("transformers cannot build")
            outcome = "unbuilt" if unbuilt else "refused"
            return {"outcome": outcome, "reason": at + _line(error["what"])}
        family = family_from(draft_from_json(said["draft"]))
        axes = groups.from_config(family, family.complete(config))
    except EffcompressError as error:
        return {"outcome": "refused", "reason": _line(f"{error.where}: {error.what}")}
    except Exception as error:  # noqa: BLE001 (a fault, which the table names)
        return {"outcome": "crash", "reason": _line(f"{type(error).__name__}: {error}")}
    kinds = kinds_of(axes)
    left = {kind: why for kind, why in axes.family.unreached.items() if kind not in kinds}
    if axes.no_depth:
        left["layer"] = axes.no_depth
    why = "; ".join(f"{kind}: {_line(reason)}" for kind, reason in left.items())
    return {"outcome": "traced", "kinds": " ".join(kinds), "reason": why}


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _apart(model_type: str, pipe: Connection) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, hard))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    pipe.send(resolve(model_type, pipe.send))


def row(model_type: str) -> Row:
    """Resolves a model type in a process of its own; returns its row of the table."""
    fork = multiprocessing.get_context("fork")  # imports are paid for once
    ours, theirs = fork.Pipe(duplex=False)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = fork.Process(target=_apart, args=(model_type, theirs))
    process.start()
    theirs.close()
    found: Row = {}
    try:
        while "outcome" not in found:
            if not ours.poll(PATIENCE):
                break
            found = {**found, **ours.recv()}
    except EOFError:
        pass
    process.kill()
    process.join()
    found.setdefault("outcome", "late")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"model_type": model_type, **found, "seconds": f"{spent:.0f}"}


def types() -> list[str]:
    """Returns the causal model types that are not declared."""
    return [name for name in causal_models() if not is_declared({"model_type": name})]


def rows(table: Path) -> dict[str, Row]:
    """Reads the table; later rows of a type replace earlier ones."""
    if not table.is_file():
        return {}
    with table.open(newline="") as stream:
        return {found["model_type"]: found for found in csv.DictReader(stream)}


def measure(table: Path, again: list[str]) -> None:
    done = rows(table)
    for name in again or [name for name in types() if name not in done]:
        found = row(name)
        done[name] = found
        print(*(found.get(field, "") for field in FIELDS), sep=" | ", flush=True)
        _write(table, done)


def _write(table: Path, done: dict[str, Row]) -> None:
    half = table.with_suffix(".part")
    with half.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(done[name] for name in sorted(done))
    half.replace(table)


def page(table: Path) -> Iterator[str]:
    """Yields the lines of the page."""
    found = {name: done for name, done in rows(table).items() if name in set(types())}
    counts = {o: sum(f["outcome"] == o for f in found.values()) for o in OUTCOMES}
    yield "# What tracing finds\n"
    yield "Written by a command, not by hand:\n"
    yield "```bash\npython benchmarks/tracing.py && python benchmarks/tracing.py --page\n```\n"
    yield f"transformers {transformers.__version__} has {len(causal_models())} causal model types;"
    yield f"{len(causal_models()) - len(types())} are [declared](../families.md). The others, each"
    yield "from the default configuration of its class, as small random models, with a limit of"
    yield f"{SECONDS} s of processor time ({len(found)} of {len(types())} asked):\n"
    yield "| outcome | model types |\n|---|---|"
    yield from (f"| {OUTCOMES[o]} | {n} |" for o, n in counts.items() if n)
    yield ""
    yield from _earlier(found)
    for outcome in ("refused", "late", "crash", "traced", "unbuilt", "encoder", "text"):
        chosen = {name: f for name, f in found.items() if f["outcome"] == outcome}
        if chosen:
            yield f"\n## {OUTCOMES[outcome].capitalize()}\n"
            yield "| `model_type` | found | reason, or what is left out |\n|---|---|---|"
            for name, f in chosen.items():
                late = f"no answer within {SECONDS} s of processor time"
                why = f["reason"] if outcome != "late" else f"{late} {f['reason']}".strip()
                said = why.replace("|", "\\|").replace("<", "&lt;")
                yield f"| `{name}` | {f['kinds'].replace(' ', ', ').replace('_', ' ')} | {said} |"


def _earlier(found: Mapping[str, Row]) -> Iterator[str]:
    """Yields what became of the types that were refused once."""
    left = dict[str, str]()
    for name in EARLIER:
        if is_declared({"model_type": name}) or text_of(_plain(name)) is not None:
            continue
        row_ = found.get(name, {"outcome": "late", "reason": "not asked"})
        if row_["outcome"] != "traced":
            left[name] = row_["reason"]
    said = "; ".join(f"`{name}` ({why})" for name, why in left.items())
    yield f"An earlier version refused {len(EARLIER)} types that people prune, broke on them"
    yield "at the export, or took them in part (`EARLIER` in the script). Refused today:"
    yield f"{len(left) or 'none'} of them{': ' if said else ''}{said}. The others are declared,"
    yield "alone or as the text model of a multimodal one, or traced."


def _plain(model_type: str) -> Config:
    with quietly():
        made: Any = transformers.AutoConfig.for_model(model_type)
        return plain_of(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--again", nargs="+", default=[], metavar="TYPE")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    if asked.page:
        asked.table.with_suffix(".md").write_text("\n".join(page(asked.table)) + "\n")
    else:
        torch.set_num_threads(1)
        # Importing a class imports this, for seconds.
        from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

        measure(asked.table, asked.again)


if __name__ == "__main__":
    main()
