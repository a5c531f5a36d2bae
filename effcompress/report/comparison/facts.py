"""What one run says of itself, as far as runs are compared by it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effcompress.errors import RunError
from effcompress.report import words
from effcompress.report.gather import Record, gather, read_lines
from effcompress.types import axis_kind, axis_layer

Line = Mapping[str, Any]
_ABOVE = re.compile(r"""(?<![^\s'"(])(/[^\s/]+)*/(?=[^\s/]+)""")
"""Folders above the last part of an absolute path: a comparison travels, logs do not."""
NOTHING, TRAINING, CALIBRATION = "nothing", "training", "calibration"
"""What saliency and repairs are taken from."""


@dataclass(frozen=True)
class Tokens:
    """A piece of text as the model reads it. ``hash`` is None where the record has none."""

    hash: str | None
    number: int


@dataclass(frozen=True)
class Facts:
    """One run. What its record does not say is None (or an empty mapping).

    Perplexities and accuracies (0 to 1) are by domain and by task, ``before`` those of the dense
    model. ``flops`` are operations of training, forward and backward.
    """

    source: str = ""
    source_hash: str | None = None
    seed: int = 0
    dense_params: int = 0
    params: int = 0
    target: int | None = None
    zeroed: int = 0
    measures: str | None = None
    calibration: frozenset[Tokens] = frozenset()
    trained: int = 0
    shares: Mapping[str, float] | None = None
    text: Mapping[str, str] | None = None
    """Domain -> hash of the training and held-out tokens."""
    protocol: Mapping[str, Any] | None = None
    heldout: Mapping[str, Tokens] | None = None
    before: Mapping[str, float] | None = None
    after: Mapping[str, float] | None = None
    tasks_before: Mapping[str, float] | None = None
    tasks_after: Mapping[str, float] | None = None
    tasks_protocol: Mapping[str, Any] | None = None
    flops: float | None = None
    prune_seconds: float | None = None
    prune_memory: int | None = None
    """Peak in bytes while pruning."""
    started: str | None = None
    """ISO time."""
    seconds: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    """(tokens, training loss) of every step."""
    layers: frozenset[int] | None = None
    """Layers that lost something."""
    all_layers: int = 0
    environment: Mapping[str, str] | None = None
    method: Mapping[str, str] | None = None
    """Key of the recipe's `prune` section -> what it says."""


@dataclass(frozen=True)
class Attempt:
    """One run of a method: its facts as far as it got, and why it has no result, if it has none.

    ``target``: parameters that were asked for, known even of a run that never began.
    """

    seed: int
    folder: str
    facts: Facts | None = None
    reason: str = ""
    target: int | None = None

    @property
    def done(self) -> bool:
        """Whether it ended well."""
        return self.facts is not None and not self.reason


@dataclass(frozen=True)
class Method:
    """What is compared: a recipe (or a run of one) by its label, with all of its runs."""

    label: str
    attempts: tuple[Attempt, ...]

    @property
    def done(self) -> list[Facts]:
        """Facts of the runs that ended well."""
        return [a.facts for a in self.attempts if a.done and a.facts is not None]


def read(
    folder: Path, *, seed: int, shown: str, reason: str = "", target: int | None = None
) -> Attempt:
    """The run in ``folder``, which people know as ``shown``.

    ``reason`` is what whoever ran it knows of its failure; else the record says it.
    """
    try:
        record = gather(folder)
        lines, plans = (read_lines(folder / f"{n}.jsonl") for n in ("metrics", "plans"))
    except RunError as problem:
        why = reason or f"its record cannot be read: {problem.what}"
        return Attempt(seed, shown, None, _one_line(why), target)
    if not reason and record.status != "success":
        reason = str((record.end or {}).get("reason") or "it has not been run to its end")
    if not reason and record.after is None:
        reason = "its record has no evaluation of the result"
    facts = _facts(record, lines, plans) if record.run else None
    if facts is None and not reason:
        reason = "its record is empty"
    return Attempt(seed, shown, facts, _one_line(reason), (facts and facts.target) or target)


def _one_line(text: str) -> str:
    return _ABOVE.sub("", " ".join(text.split()))


def _facts(record: Record, lines: Sequence[Line], plans: Sequence[Line]) -> Facts:
    run = record.run
    by_kind: dict[str, list[Line]] = {}
    for line in lines:
        by_kind.setdefault(str(line.get("event")), []).append(line)
    measured = {str(e["when"]): e for e in by_kind.get("evaluation", [])}
    before, after = measured.get("before"), measured.get("after")
    steps = by_kind.get("step", [])
    data = run.get("data") or {}
    return Facts(
        source=_ABOVE.sub("", str(run.get("model", ""))),
        source_hash=run.get("model_hash"),
        seed=int(run.get("seed", 0)),
        dense_params=record.params_before or 0,
        params=record.params_after or 0,
        target=record.target,
        zeroed=int((record.end or {}).get("zeroed") or 0),
        measures=CALIBRATION if "calibration" in by_kind else run.get("measures"),
        calibration=frozenset(
            Tokens(e["hash"], e["tokens"]) for e in by_kind.get("calibration", [])
        ),
        trained=record.tokens,
        shares=_each(data, "share"),
        text=_each(data, "hash"),
        **_quality(before, after),
        flops=sum(e["flops"] for e in steps) if all("flops" in e for e in steps) else None,
        **_cost(lines, pruned=bool(plans)),
        started=run.get("started"),
        seconds=_wall(record.end, before),
        losses=tuple((s.tokens, s.loss) for s in record.steps),
        layers=_touched(plans, by_kind.get("sparsify", []), record),
        all_layers=len(_layers(record)),
        environment={
            key: str(run.get(key, "?"))
            for key in ("device", "threads", "effcompress", "torch", "transformers")
        },
        method=words.method(record.recipe),
    )


def _wall(end: Line | None, before: Line | None) -> float | None:
    """As if every run had measured the dense model itself."""
    if end is None:
        return None
    known = before is not None and before.get("known")
    return end["seconds"] + (before["seconds"] if before is not None and known else 0.0)


def _quality(before: Line | None, after: Line | None) -> dict[str, Any]:
    """What was measured, and how."""
    latest = after or before or {}
    return {
        "protocol": latest.get("protocol"),
        "heldout": _heldout(after or before),
        "before": _perplexities(before),
        "after": _perplexities(after),
        "tasks_before": _tasks(before),
        "tasks_after": _tasks(after),
        "tasks_protocol": (latest.get("tasks") or {}).get("protocol"),
    }


def _each(data: Mapping[str, Line], key: str) -> dict[str, Any] | None:
    found = {name: one[key] for name, one in data.items() if key in one}
    return found if found and len(found) == len(data) else None


def _heldout(evaluation: Line | None) -> dict[str, Tokens] | None:
    if evaluation is None:
        return None
    return {n: Tokens(d.get("hash"), d["tokens"]) for n, d in evaluation["domains"].items()}


def _perplexities(evaluation: Line | None) -> dict[str, float] | None:
    if evaluation is None:
        return None
    return {name: domain["perplexity"] for name, domain in evaluation["domains"].items()}


def _tasks(evaluation: Line | None) -> dict[str, float] | None:
    """Task -> accuracy, 0 to 1."""
    found = ((evaluation or {}).get("tasks") or {}).get("scores") or {}
    return {name: float(score["value"]) for name, score in found.items()} or None


def _cost(lines: Sequence[Line], *, pruned: bool) -> dict[str, Any]:
    """Seconds and peak memory of pruning: of all events that say both."""
    spent = [e for e in lines if "memory_bytes" in e and "seconds" in e]
    if not spent:
        return {"prune_seconds": None if pruned else 0.0, "prune_memory": None}
    peaks = [e["memory_bytes"] for e in spent if e["memory_bytes"] is not None]
    return {
        "prune_seconds": sum(e["seconds"] for e in spent),
        "prune_memory": max(peaks, default=None),
    }


def _layers(record: Record) -> set[int]:
    numbers = (axis_layer(n) for n in record.started_widths if axis_kind(n) == "layer")
    return {number for number in numbers if number is not None}


def _touched(
    plans: Sequence[Line], sparsified: Sequence[Line], record: Record
) -> frozenset[int] | None:
    """Layers that lost something; what belongs to no layer (the residual stream) goes through all.

    None where weights were zeroed and nothing says where.
    """
    if not plans and not sparsified and (record.end or {}).get("zeroed"):
        return None
    names = {name for line in plans for name, units in line["plan"].items() if units}
    numbers = {axis_layer(name) for name in names}
    if None in numbers:
        return frozenset(_layers(record))
    zeroed = (row["layer"] for line in sparsified for row in line["layers"] if row["zeroed"])
    return frozenset((*(n for n in numbers if n is not None), *zeroed))
