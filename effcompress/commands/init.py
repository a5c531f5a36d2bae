"""``effcompress init``: writes a recipe for a model and a text, with every guess as a comment."""

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from effcompress.answer import Answer
from effcompress.commands.machine import Machine, this_machine
from effcompress.data.look import Look, kind_of_file, look
from effcompress.errors import CoverageError, SourceError, did_you_mean
from effcompress.estimate.feasibility import no_refit, sized_model
from effcompress.estimate.flops import UTILISATION, Flops
from effcompress.estimate.forecast import Launch, plan
from effcompress.estimate.lengths import FEW_TOKENS, Lengths, lengths_of, sequence_of, total_of
from effcompress.estimate.memory import memory
from effcompress.model import hub
from effcompress.model.biases import biased
from effcompress.model.lineage import parent_of
from effcompress.model.source import config_of, kind_of, tokens_per_byte
from effcompress.model.suitability import positions_of
from effcompress.network.axis_map import resolve_model
from effcompress.recipe import LoadedRecipe, load
from effcompress.record import readable
from effcompress.report.render import filled
from effcompress.report.render import replace as write
from effcompress.runner.preflight import preflight
from effcompress.spec import ModelSpec
from effcompress.types import Config, Family, axis_kind

DRAFTS = "effcompress_plugins"
"""The package whose folder ``drafts`` holds a recipe to fill in for each method."""
ENDING = ".yaml.jinja"
FILLED = 0.85
"""Fraction of the memory that a run may take by the estimate."""
USUAL_BYTES = 4.0
"""Bytes of a token, where the tokenizer is not here."""
_HELD_OUT = re.compile(r"^(validation|valid|val|dev|heldout|held_out|test)\b", re.IGNORECASE)
_TRAINING = re.compile(r"^train", re.IGNORECASE)


@dataclass(frozen=True)
class Wish:
    """What was asked for. Exactly one of ``keep`` (a fraction) and ``params``; ``tokens`` 0: no
    training; None: as many as the machine's hours, or the text, allow.
    """

    model: str
    tokenizer: str | None
    texts: tuple[str, ...]
    keep: float | None
    params: int | None
    tokens: int | None
    machine: Machine | None
    method: str
    output: Path
    command: str


@dataclass(frozen=True)
class Domain:
    """A domain as it is written, what was seen of it, and its tokens (infinite: not known)."""

    name: str
    said: str
    why: str
    seen: Look | None = None


def init(wish: Wish) -> Answer:
    """Writes the recipe, checks it, and returns its forecast.

    Raises SourceError for a model, text or method that there is not, and whatever `check` finds;
    then no file is left.
    """
    drafts = drafts_of()
    if wish.method not in drafts or wish.method in ("base", "once"):
        names = [name for name in drafts if name not in ("base", "once")]
        raise SourceError(
            f"there is no draft '{wish.method}'",
            where="--method",
            fix=did_you_mean(wish.method, names),
        )
    if wish.output.exists():
        raise SourceError("this file exists already", where=str(wish.output), fix="Use --output.")
    spec, written = model_of(wish.model, wish.output.parent)
    spec = replace(spec, tokenizer=wish.tokenizer)
    config = _config(spec)
    domains = [d for text in wish.texts for d in domains_of(text, wish.output.parent)]
    names = _facts(wish, spec, written, config, domains)
    try:
        loaded = _fitting(wish, drafts, names)
        checked = preflight(loaded, offline=False)
        machine = _machine(wish)
        forecast = plan(loaded, Launch(machine.number, machine.peak * UTILISATION or None))
    except BaseException:
        wish.output.unlink(missing_ok=True)
        raise
    notes = [f"Written: {wish.output}. Every guess has a comment.", *checked.lines]
    notes += [f"Next: effcompress run {wish.output}"]
    return Answer({"recipe": str(wish.output), **forecast.data}, forecast.sheets, tuple(notes))


def typed(asked: Mapping[str, str | None], texts: Sequence[str]) -> str:
    """Returns the command line that these options were."""
    parts = [part for key, value in asked.items() if value is not None for part in (key, value)]
    return shlex.join(["effcompress", "init", *parts, *(p for t in texts for p in ("--text", t))])


def drafts_of() -> dict[str, str]:
    """Returns method -> recipe to fill in."""
    folder = files(DRAFTS) / "drafts"
    found = (file for file in folder.iterdir() if file.name.endswith(ENDING))
    return {f.name.removesuffix(ENDING): f.read_text(encoding="utf-8") for f in found}


def model_of(given: str, beside: Path) -> tuple[ModelSpec, str]:
    """Returns the source that a folder, a gguf file, a pinned package or a hub id is, and the line
    of a recipe in the folder ``beside`` that names it.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return ModelSpec(folder=path), f"folder: {json.dumps(_relative(path, beside))}"
    if given.endswith(".gguf"):
        return ModelSpec(gguf=path), f"gguf: {json.dumps(_relative(path, beside))}"
    if "==" in given:
        return ModelSpec(wheel=given), f"wheel: {given}"
    if given.count("/") != 1 or given.startswith((".", "/", "~")):
        raise SourceError(
            "there is no such folder",
            where=f"--model {given}",
            fix="Name a folder with config.json, a .gguf file, or a hub id (owner/name).",
        )
    return ModelSpec(hub=given), f"hub: {json.dumps(given)}"


def _config(spec: ModelSpec) -> Config:
    """Returns the configuration; of a hub model that is not here it is fetched without weights."""
    config = config_of(spec)
    if config is None and spec.hub is not None:
        hub.download(spec.hub, None, weights=False)
        config = config_of(spec)
    if config is None:
        raise SourceError(
            "its configuration is not known before it is converted",
            where=f"--model: {kind_of(spec)}",
            fix="Write the recipe by hand, e.g. after recipes/quickstart.yaml.",
        )
    return config


def domains_of(given: str, beside: Path) -> Iterator[Domain]:
    """Yields the domains of a file, a folder (of files, or of one folder per domain), of
    ``hub:NAME`` or of ``NAME=...``, which names it.
    """
    name, _, rest = given.partition("=")
    if rest and re.fullmatch(r"[A-Za-z]\w*", name):
        for domain in domains_of(rest, beside):
            yield replace(domain, name=name)
        return
    if given.startswith("hub:"):
        repo, _, config = given.removeprefix("hub:").partition(":")
        more = f", config: {json.dumps(config)}" if config else ""
        said = f"{{hub: {json.dumps(repo)}{more}}}"
        yield Domain(_name(repo.rpartition("/")[2]), said, "not looked at: `text` holds the text")
        return
    path = Path(given).expanduser()
    if not path.exists():
        fix = "Name a file (.jsonl, .txt, .parquet), a folder, or hub:NAME."
        raise SourceError("there is no such file or folder", where=f"--text {given}", fix=fix)
    if path.is_file():
        yield _domain(path.name.partition(".")[0], [path], beside)
        return
    inner = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _files(folder)]
    own = _files(path)
    if not inner and not own:
        raise SourceError("there are no files of text in it", where=f"--text {given}")
    for folder in inner:
        yield _domain(folder.name, _files(folder), beside)
    if own:
        yield _domain(path.resolve().name, own, beside)


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and kind_of_file(file)]


def _domain(name: str, found: Sequence[Path], beside: Path) -> Domain:
    """Describes files of one domain: those of the commonest format; files whose names begin with
    `validation`, `dev` or `test` are held out where others are left.
    """
    kinds = [kind_of_file(path) for path in found]
    kind = max(kinds, key=kinds.count) if kinds else ""
    if not kind:
        fix = "Files end in .jsonl, .txt, .md or .parquet."
        raise SourceError("its ending says no format", where=f"--text {found[0]}", fix=fix)
    these = [path for path, one in zip(found, kinds, strict=True) if one == kind]
    held = [path for path in these if _HELD_OUT.match(path.name)]
    train = [path for path in these if path not in held]
    if held and any(_TRAINING.match(path.name) for path in train):
        train = [path for path in train if _TRAINING.match(path.name)]
    train, held = (train, held) if train else (held, [])
    seen = look(tuple(train))
    parts: dict[str, Any] = {seen.kind: [_relative(path, beside) for path in train]}
    if seen.chat:
        parts["chat"] = seen.chat
    elif seen.field not in ("", "text"):
        parts["text"] = seen.field
    if held:
        parts["validation"] = [_relative(path, beside) for path in held]
    elif len(seen.sample) < 200:  # all of them were seen
        parts["holdout"] = "15%"
    why = f"about {readable.size(seen.size)}"
    if seen.field:
        why += f"; text: {seen.field}" + (f", not {', '.join(seen.others)}" if seen.others else "")
    said = ", ".join(f"{key}: {json.dumps(value)}" for key, value in parts.items())
    return Domain(_name(name), f"{{{said}}}", why, seen)


def _name(text: str) -> str:
    name = re.sub(r"\W+", "_", text).strip("_").lower()
    return name if name[:1].isalpha() else f"text_{name}"


def _relative(path: Path, beside: Path) -> str:
    """A path as the recipe writes it: relative to the recipe, with slashes."""
    return Path(os.path.relpath(path.resolve(), beside.resolve())).as_posix()


def _machine(wish: Wish) -> Machine:
    return wish.machine or this_machine()


def _facts(
    wish: Wish, spec: ModelSpec, written: str, config: Config, domains: Sequence[Domain]
) -> dict[str, Any]:
    """Returns the names that a draft asks for."""
    axes = resolve_model(config).axes
    plain = parent_of(config)
    start, machine = axes.count(), _machine(wish)
    keep = wish.keep if wish.keep is not None else (wish.params or start) / start
    target = f"{{keep: {keep:.4g}}}" if wish.params is None else f"{{params: {wish.params}}}"
    seen = [d.seen for d in domains if d.seen is not None]
    rate = tokens_per_byte(spec, [text for one in seen for text in one.sample])
    rate = rate or 1 / USUAL_BYTES
    document = max((one.bytes_per_document for one in seen), default=8192) * rate
    known = len(seen) == len(domains)
    text = sum(one.size for one in seen) * rate if known else math.inf
    sequence = sequence_of(positions_of(config)[0], int(document))
    middle = Flops(axes, resolve_model(config).config, sequence[0]).per_token({}) * (1 + keep) / 2
    afford = machine.operations / middle
    total = total_of(wish.tokens, afford, text, int(start * keep)) if wish.tokens != 0 else (0, "")
    long = lengths_of(sequence, total, start, machine.number)
    warmup, pruning, continued = long.stages(keep)
    kinds = sorted({axis_kind(name) for name in axes.widths} - set(axes.family.fixed))
    ffn = (w for name, w in axes.widths.items() if axis_kind(name) in ("ffn", "expert_ffn"))
    narrow = min(ffn, default=96)
    return {
        "title": f"{wish.model}: {start:,} parameters to {round(start * keep):,}, by {wish.method}",
        "command": wish.command,
        "file": wish.output.name,
        "name": _name(wish.output.stem),
        "model": written,
        "tokenizer": json.dumps(wish.tokenizer) if wish.tokenizer else "",
        "domains": domains,
        "target": target,
        "kinds": kinds,
        "layers": len(axes.depth.layers),
        "no_refit": no_refit(axes.family, plain),
        "biases": _takes_biases(axes.family, plain),
        "ffn_minimum": max(8, narrow // 12 // 8 * 8),
        "ffn_step": 8 if narrow >= 256 else 1,
        "calibrated": max(8, min(128, 16384 // sequence[0])),
        **_loop(long, machine),
        **{"warmup": warmup, "pruning": pruning, "continued": continued},
        "every": long.every(pruning),
    }


def _takes_biases(family: Family, config: Config) -> bool:
    """Returns whether every projection into the stream has a place for a bias."""
    try:
        biased(family, config)
    except CoverageError:
        return False
    return True


def _loop(long: Lengths, machine: Machine) -> dict[str, Any]:
    """Returns the names that training asks for."""
    return {
        "length": long.sequence,
        "length_why": long.sequence_why,
        "tokens": long.total > 0,
        "few": long.few,
        "few_tokens": f"{FEW_TOKENS:,}",
        "total": long.total,
        "tokens_why": long.total_why,
        "batch": long.batch,
        "batch_why": long.batch_why,
        "micro": long.batch,
        "micro_why": f"what fits into {machine.said}, by the estimate of `plan`",
        "rate": f"{long.rate:.1e}".replace(".0e", "e").replace("e-0", "e-"),
        "rate_why": long.rate_why,
        "decay": "50%" if long.total < 1e8 else "20%",
        "weight_decay": 0.01 if long.total < 1e8 else 0.1,
        "bf16": machine.peak > 0,
        "recompute": False,
        "shard": False,
        "memory": machine.said,
        "evaluated": 32 if long.total < 1e8 else 256,
        "evaluated_at_once": 4,
        "save_every": max(1, long.steps // 10) if long.total else 1,
    }


def _fitting(wish: Wish, drafts: Mapping[str, str], names: dict[str, Any]) -> LoadedRecipe:
    """Writes the recipe with the largest micro batch that fits. Where none does, activations are
    recomputed, and then the weights sharded over the processes.
    """
    machine = _machine(wish)
    most = max(1, names["batch"] // machine.number)
    ways = [{"recompute": False}, {"recompute": True}]
    ways += [{"recompute": True, "shard": True}] if machine.number > 1 else []
    for way in ways if names["tokens"] else [{}]:
        micro = most
        while micro >= 1:
            chosen = {**names, **way, "micro": micro if micro != most else names["batch"]}
            write(wish.output, filled(wish.method, drafts, **chosen))
            loaded = load(wish.output)
            if _need(loaded, machine, way) <= FILLED * machine.memory:
                return loaded
            micro //= 2
    need = _need(loaded, machine, ways[-1])
    raise SourceError(
        f"it needs about {need / 1e9:.1f} GB on each processor, and {machine.said} is there",
        where=f"--model {wish.model}",
        fix='Name a larger machine, e.g. --budget "8 x H100".',
    )


def _need(loaded: LoadedRecipe, machine: Machine, way: Mapping[str, bool]) -> float:
    found = sized_model(loaded)
    assert found is not None, "its configuration is known"
    shards = machine.number if way.get("shard") else 1
    held = memory(found, loaded.recipe, found.axes.widths, machine.number, shards)
    return max(parts.total for parts in held.values())
