"""The rows of ``efficientllm.py``: recipes of this repository with a few values set otherwise.

A row says how its recipe gets its tokens: in three stages, as tokens of ``train``, or as tokens of
``recover`` (training behind one cut, which is where a teacher may take part). All rows have the
text, the batches, the optimizer and, unless a comment says otherwise, the learning rate of
``recipes/efficientllm_small_100m_a.yaml``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """A run: which row, and what is the same for a whole table. ``precision`` is what the recipes
    say (bf16), or fp32 for processors that are slow at bf16. ``equal: flops``: ``tokens`` is the
    table's number, and the row gets as many as cost what the reference row costs.
    """

    row: str
    size: str
    tokens: int
    seed: int
    precision: str = "bf16"
    equal: str = "tokens"

    def line(self) -> dict[str, str]:
        """The cells that say which run it is."""
        return {key: str(value) for key, value in asdict(self).items()}


class NotYet(Exception):
    """A run needs the result of another one, which is not there."""


KEY = [*Job("", "", 0, 0).line()]
FolderOf = Callable[[Job], Path]


@dataclass(frozen=True)
class Row:
    """``variant`` of the recipe, values set otherwise, and those that depend on the run."""

    variant: str
    sets: tuple[str, ...] = ()
    trains: Literal["stages", "tokens", "recover"] = "stages"
    more: Callable[[Job, FolderOf], list[str]] | None = None
    pruning: int | None = None
    """Stages: percentage of the tokens in which it prunes; default: that of the recipe."""


def values(row: Row, job: Job, tokens: int, folder_of: FolderOf) -> list[str]:
    """What ``--set`` gets: of the row, then tokens, seed and precision."""
    every = [f"seed={job.seed}", *row.sets]
    if row.more is not None:
        every += row.more(job, folder_of)
    every += _tokens(row, job, tokens)
    if job.precision != "bf16":
        section = "recover" if row.trains == "recover" else "train"
        every.append(f"{section}.precision={job.precision}")
    return every


def _tokens(row: Row, job: Job, tokens: int) -> list[str]:
    if row.trains == "recover":
        return [f"recover.tokens={tokens}"]
    if row.trains == "tokens":
        return ["train.stages=null", f"train.tokens={tokens}"]
    if tokens == 60_000 and row.pruning is None:
        return []  # as the recipe, or the row, has them
    percent = row.pruning or (30 if job.size == "100M" else 40)
    warmup, pruning = (tokens * share // 100 for share in (10, percent))
    rest = tokens - warmup - pruning
    return [f"train.stages={{warmup: {warmup}, pruning: {pruning}, continued: {rest}}}"]


def recipe_of(row: Row, size: str) -> Path:
    """The recipe that a row is a variant of."""
    return ROOT / "recipes" / f"efficientllm_small_{size.lower()}_{row.variant}.yaml"


ONCE = (
    "prune.measure={source: calibration, sequences: 32}",
    "prune.schedule={name: once, at: 0}",
)
TAYLOR = ("prune.criterion=taylor",)
BY_HAND = (
    "prune.space=[{name: attention}, {name: ffn}, hidden]",
    "prune.selector=proportional",
)
SCRATCH = ("prune=null", "train.learning_rate.peak=1e-3")
"""Fresh weights learn faster at a higher rate than those that must not forget."""
# Tuned on seed 3, which no table has: at the authors' rates (1.0, the target at 20 % of the stage)
# 47 steps overshoot, at 0.1 the gates hardly move.
GATES = (
    "prune.repair=[]",
    "prune.schedule=at_end",
    "prune.gates={gate: hard_concrete, constraint: lagrangian, learning_rate: 0.5, warmup: 60%}",
    "train.stages={pruning: 24k, continued: 36k}",
)
SHEARED = (
    *GATES,
    "prune.criterion=learned_gates",
    "prune.space=[hidden, layer, ffn]",
)
SHAPES = {
    "100M": "prune.target={shape: {hidden: 504, layer: 27, ffn: 1328}}",
    "68M": "prune.target={shape: {hidden: 416, layer: 24, ffn: 1072}}",
}
"""Sheared-LLaMA takes a shape: the source's made smaller in proportion, KV heads as they are (a
third of them would be the least to go).
"""
COFI = (
    *GATES,
    "prune.criterion=common_offset",
    "prune.selector={name: least_salient, normalise: raw}",
    "prune.space=[{name: attention, scope: per_layer}, attention_block, "
    "{name: ffn, scope: per_layer}, mlp_block]",
)
DYNAMIC = ("data.mixture={name: dynamic, every: 20, sequences: 4, reference: source}",)
PER_LAYER = "prune.space=[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]"
FLAP = (
    *ONCE,
    "prune.criterion={name: flap, metric: WIFV}",
    "prune.space=[{name: attention, scope: global, minimum: 1}, "
    "{name: ffn, scope: global, minimum: 1}]",
    "prune.selector={name: least_salient, normalise: raw}",
    "prune.repair=[bias_mean]",
)
"""``recipes/baselines/flap.yaml``. Its authors do not train; here it is trained as the others."""
# Width alone: the authors prefer it to depth below 15 billion parameters. Which widths is the
# search of their tool (ModelOpt): the largest shapes of a grid below the target, of these the one
# of the lowest loss. The steps are as fine as the recipe's rounding, so that nearly every hidden
# size is among the twenty. At 68M a limit of 40 % of a width (theirs) would leave a single corner.
MINITRON = (
    *ONCE,
    "prune.criterion=minitron",
    "prune.space=[hidden, ffn]",
    "prune.search={grid: {hidden: 8, ffn: 8}, max_width: 60%, top: 20}",
    "prune.selector=null",
    "prune.repair=[]",
)
"""``recipes/baselines/minitron_search.yaml``."""
REFIT = ("prune.refit=least_squares_bias",)
"""``recipes/baselines/one_shot.yaml``: damping chosen on held-out text, 128 sequences."""
ADAPT_ACCEL = (
    *TAYLOR,
    PER_LAYER,
    "prune.measure={source: calibration, sequences: 32}",
    "prune.selector={name: adaptive, amplitude: 1.0}",
    "prune.schedule={name: interleaved, stages: 5, rounds: 2}",
    "prune.repair=[]",
)
"""``recipes/baselines/adapt_accel.yaml``."""
SLICEGPT = (
    *ONCE,
    "prune.criterion=null",
    "prune.selector=null",
    "prune.space=[{name: hidden, round_to: 2}]",
    "prune.rotate={name: slicegpt, orientation: random, damp: 0.01, tie: keep, signal: stream}",
    "prune.measure.sequences=128",
    "prune.repair=[]",
)
"""``recipes/baselines/slicegpt.yaml``, in steps of 2 channels: theirs of 8 miss 68M by 1.4 %."""
RATE = "learning_rate: {peak: 2e-4, schedule: trapezoidal, warmup: 5%, decay: 50%}"


def recover(method: str, *, rate: str = RATE, more: str = "") -> tuple[str, ...]:
    """The protocol's training as ``recover``, so that a teacher or low-rank updates take part."""
    loop = f"batch_size: 2, {rate}, weight_decay: 0.01, precision: bf16, fused: true"
    return ("train=null", f"recover={{method: {method}, tokens: 60k, {loop}{more}}}")


KD = recover("distill", more=", distill: {temperature: 1.0, text_weight: 0.0}")
"""Minitron's: forward KL of the next token's distribution alone, temperature 1."""
KD_LM = recover("distill", more=", distill: {temperature: 1.0, text_weight: 1.0}")
"""And the loss on the text, with the same weight."""
LORA = recover(
    "lora",
    # SliceGPT's own: 2e-4, decayed linearly, rank 32, alpha 10, dropout 0.05, betas 0.9 and 0.95.
    rate="learning_rate: {peak: 2e-4, schedule: trapezoidal, warmup: 10%, decay: 90%}",
    more=", lora: {rank: 32, alpha: 10, dropout: 0.05}",
)

CHANNEL, GROUP = 3 * 576, 64 * 576 * (3 + 1 + 1 + 3)
"""Parameters of an FFN channel and of a KV group (with its three query heads) of one layer."""


def _shape(job: Job, folder_of: FolderOf) -> list[str]:
    return [SHAPES[job.size]]


def _widths_of_a(job: Job, folder_of: FolderOf) -> list[str]:
    """The shape that A found with this seed, as one for all layers: the mean of its KV groups,
    rounded, and as many FFN channels as make the same size.
    """
    run = _a_of(job, folder_of)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    widths = next(line for line in lines if line["event"] == "end")["widths"]
    groups, channels = (
        statistics.mean(n for name, n in widths.items() if name.startswith(f"{kind}."))
        for kind in ("attention", "ffn")
    )
    ffn = round(channels + (groups - round(groups)) * GROUP / CHANNEL)
    kinds = {"attention": round(groups), "ffn": ffn}
    # A kind that loses nothing has no gates.
    kinds = {kind: n for kind, n in kinds.items() if n < {"attention": 3, "ffn": 1536}[kind]}
    space = ", ".join(kinds)
    return [f"prune.space=[{space}]", f"prune.target={{shape: {json.dumps(kinds)}}}"]


def _a_of(job: Job, folder_of: FolderOf) -> Path:
    """A's finished run with this seed. Raises NotYet."""
    run = folder_of(replace(job, row="A", equal="tokens"))
    if not (run / "config.json").exists():
        raise NotYet(f"{run} is not there: run the row A with this seed first")
    return run


def _a_from_scratch(job: Job, folder_of: FolderOf) -> list[str]:
    found = _a_of(job, folder_of)
    return [f"model={{folder: {json.dumps(str(found))}, random: true}}"]


HAND = {
    "100M": {"hidden_size": 477, "intermediate_size": 1264},
    "68M": {
        "hidden_size": 384,
        "intermediate_size": 1072,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
}
"""The source's shape made smaller in proportion, in the family's own manner."""


def _by_hand(job: Job, folder_of: FolderOf) -> list[str]:
    sets = [f"model.shape.{key}={value}" for key, value in HAND[job.size].items()]
    return [*sets, "model.random=true"]


ROWS: dict[str, Row] = {
    "Sheared-LLaMA": Row("a", SHEARED, more=_shape),
    "Sheared-LLaMA, dynamic": Row("a", (*SHEARED, *DYNAMIC), more=_shape),
    "Sheared-LLaMA, A's widths": Row("a", SHEARED, more=_widths_of_a),
    "CoFi": Row("a", COFI),
    "A, dynamic": Row("a", DYNAMIC),
    "B, dynamic": Row("b", DYNAMIC),
    "dense, trained": Row("a", ("prune=null",)),
    "A": Row("a"),
    "B": Row("b"),
    "LLM-Pruner once": Row("a", (*TAYLOR, *ONCE)),
    "LLM-Pruner once, dynamic": Row("a", (*TAYLOR, *ONCE, *DYNAMIC)),
    "LLM-Pruner once + KD and LM": Row("a", (*TAYLOR, *ONCE, *KD_LM), "recover"),
    "LLM-Pruner in the loop": Row("a", TAYLOR),
    "FLAP once": Row("a", FLAP, "tokens"),
    "Minitron once": Row("a", MINITRON, "tokens"),
    "Minitron once + KD": Row("a", (*MINITRON, *KD), "recover"),
    "Minitron once + KD and LM": Row("a", (*MINITRON, *KD_LM), "recover"),
    "Adapt-Accel": Row("a", ADAPT_ACCEL, "tokens"),
    "SliceGPT once": Row("a", SLICEGPT, "tokens"),
    "SliceGPT once + LoRA": Row("a", (*SLICEGPT, *LORA), "recover"),
    "A's saliency, once": Row("a", ONCE),
    "A's saliency, once + KD and LM": Row("a", (*ONCE, *KD_LM), "recover"),
    "B's saliency and update, once": Row("b", ONCE),
    "one_shot once": Row("a", (*ONCE, *REFIT), "tokens"),
    "one_shot once, dynamic": Row("a", (*ONCE, *REFIT, *DYNAMIC), "tokens"),
    "one_shot once + KD and LM": Row("a", (*ONCE, *REFIT, *KD_LM), "recover"),
    "magnitude once": Row("a", ("prune.criterion=magnitude", *ONCE)),
    "random once": Row("a", ("prune.criterion=random", *ONCE)),
    "scaled by hand, once": Row("a", (*TAYLOR, *ONCE, *BY_HAND)),
    "from scratch, A's shape": Row("a", SCRATCH, more=_a_from_scratch),
    "from scratch, scaled by hand": Row("a", SCRATCH, more=_by_hand),
}
PUBLISHED = (
    "LLM-Pruner once",
    "FLAP once",
    "Minitron once",
    "Minitron once + KD",
    "Minitron once + KD and LM",
    "Adapt-Accel",
    "SliceGPT once",
    "SliceGPT once + LoRA",
    "Sheared-LLaMA",
    "CoFi",
)
"""Rows of methods that others have published, with training as they describe it."""
OURS_ONCE = (
    "A's saliency, once",
    "A's saliency, once + KD and LM",
    "B's saliency and update, once",
    "one_shot once",
    "one_shot once + KD and LM",
)
"""Our own estimators, cut at once and trained."""


def needs_first(rows: Sequence[str]) -> list[str]:
    """``rows`` in an order in which those that read A's run come behind A."""
    late = [r for r in rows if ROWS[r].more in (_widths_of_a, _a_from_scratch)]
    return [*(r for r in rows if r not in late), *late]
