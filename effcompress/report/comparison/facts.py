"""The facts of one run by which runs are compared."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from effcompress.errors import RunError
from effcompress.record.events import Cut, Evaluation, Run
from effcompress.record.status import run_of_size
from effcompress.report import words
from effcompress.report.gather import Record, gather
from effcompress.types import axis_kind, axis_layer

_ABOVE = re.compile(r"""(?<![^\s'"(])(/[^\s/]+)*/(?=[^\s/]+)""")
"""Folders above the last part of an absolute path: a comparison is shared, local paths are not."""
CALIBRATION = "calibration"


@dataclass(frozen=True)
class Tokens:
    """A tokenised text: its hash (None where it was not recorded) and the number of tokens."""

    hash: str | None
    number: int


@dataclass(frozen=True)
class Facts:
    """One run. None (or an empty mapping): not recorded.

    Perplexities and accuracies (0 to 1) are by domain and by task, ``before`` those of the dense
    model. ``flops`` are operations of training steps, and of calibration, search, repairs and
    refits beside them.
    """

    source: str = ""
    source_hash: str | None = None
    seed: int = 0
    dense_params: int = 0
    params: int = 0
    target: int | None = None
    zeroed: int = 0
    measures: str | None = None
    """Which text saliency and repairs are measured on: nothing, training or calibration."""
    calibration: frozenset[Tokens] = frozenset()
    trained: int = 0
    shares: Mapping[str, float] | None = None
    """Domain -> fraction of the training samples; of the first, where they follow losses."""
    follows_losses: bool = False
    text: Mapping[str, str] | None = None
    """Domain -> hash of the training and held-out tokens."""
    protocol: Mapping[str, Any] | None = None
    heldout: Mapping[str, Tokens] | None = None
    before: Mapping[str, float] | None = None
    after: Mapping[str, float] | None = None
    tasks_before: Mapping[str, float] | None = None
    tasks_after: Mapping[str, float] | None = None
    tasks_protocol: Mapping[str, Any] | None = None
    agreement: float | None = None
    """Fraction of the held-out tokens (0 to 1, mean over the domains) with the source model's most
    likely next token; ``divergence``: the KL divergence of its distribution to the result's.
    """
    divergence: float | None = None
    flops: float | None = None
    prune_seconds: float | None = None
    prune_memory: int | None = None
    """Peak in bytes while pruning."""
    started: str | None = None
    """ISO time."""
    seconds: float | None = None
    on_the_way: bool = False
    """A model that a run left at a size on its way (``export.at``): training and cuts up to there
    are the run's, whose seconds are not divided among its models.
    """
    losses: tuple[tuple[int, float], ...] = ()
    """(tokens, training loss) of every step."""
    layers: frozenset[int] | None = None
    """Layers that lost something."""
    all_layers: int = 0
    environment: Mapping[str, str] | None = None
    method: Mapping[str, str] | None = None
    """Key of the recipe's `prune` section -> what it says."""

    @property
    def removed(self) -> int:
        """Parameters that are gone."""
        return self.dense_params - self.params


@dataclass(frozen=True)
class Attempt:
    """One run of a method: its facts as far as it got, and the reason if it has no result.

    ``target``: parameters that the recipe asks for, known even of a run that never started.
    """

    seed: int
    folder: str
    facts: Facts | None = None
    reason: str = ""
    target: int | None = None

    @property
    def done(self) -> bool:
        """Whether it succeeded."""
        return self.facts is not None and not self.reason


@dataclass(frozen=True)
class Method:
    """A recipe (or a single run) by its label, with all of its runs. ``full``: the label as it was
    given, where the label leaves out what all have in common.
    """

    label: str
    attempts: tuple[Attempt, ...]
    full: str = ""

    @property
    def done(self) -> list[Facts]:
        """Facts of the runs that succeeded."""
        return [a.facts for a in self.attempts if a.done and a.facts is not None]


def read(folder: Path, *, shown: str, seed: int | None = None, reason: str = "") -> Attempt:
    """Reads the run in ``folder``, which tables name ``shown``.

    ``reason``: why its process failed; ``seed``. Where one is not known, the record's own is taken.
    """
    try:
        record = gather(folder)
    except RunError as problem:
        why = reason or f"its record cannot be read: {problem.what}"
        return Attempt(seed or 0, shown, None, _one_line(why))
    if not reason and record.status != "success":
        reason = (record.end and record.end.reason) or "it has not been run to its end"
    if not reason and record.after is None:
        reason = "its record has no evaluation of the result"
    facts = _facts(record, record.run) if record.run else None
    if facts is not None and run_of_size(folder) is not None:
        facts = replace(facts, seconds=None, on_the_way=True)
    if facts is None and not reason:
        reason = "its record is empty"
    if seed is None:
        seed = facts.seed if facts else 0
    return Attempt(seed, shown, facts, _one_line(reason), facts and facts.target)


def _one_line(text: str) -> str:
    return _ABOVE.sub("", " ".join(text.split()))


def _facts(record: Record, run: Run) -> Facts:
    before, after, end = record.before, record.after, record.end
    latest = after or before
    flops = [step.flops for step in record.steps]
    besides = [getattr(event, "flops", None) or 0.0 for event in (*record.costs, *record.mixtures)]
    shares = {name: d.share for name, d in run.data.items() if d.share is not None}
    text = {name: d.hash for name, d in run.data.items() if d.hash is not None}
    seconds, memory = _cost(record)
    return Facts(
        source=_ABOVE.sub("", run.model),
        source_hash=run.model_hash,
        seed=run.seed,
        dense_params=record.params_before or 0,
        params=record.params_after or 0,
        target=record.target,
        zeroed=(end and end.zeroed) or 0,
        measures=CALIBRATION if record.calibrations else run.measures,
        calibration=frozenset(Tokens(c.hash, c.tokens) for c in record.calibrations),
        trained=record.tokens,
        # Of some domains alone they would be compared with those of all.
        follows_losses=bool(record.mixtures),
        shares=shares if shares and len(shares) == len(run.data) else None,
        text=text if text and len(text) == len(run.data) else None,
        protocol=latest and latest.protocol,
        heldout=latest and {n: Tokens(d.hash, d.tokens) for n, d in latest.domains.items()},
        before=_perplexities(before),
        after=_perplexities(after),
        tasks_before=_tasks(before),
        tasks_after=_tasks(after),
        tasks_protocol=latest and latest.tasks and latest.tasks.protocol,
        agreement=_over_domains(after, "agreement"),
        divergence=_over_domains(after, "divergence"),
        flops=sum(flops) + sum(besides) if all(flops) else None,
        prune_seconds=seconds,
        prune_memory=memory,
        started=run.started,
        # As if every run had evaluated the dense model itself: a run that took its evaluation from
        # the cache is charged for it, so that the order of runs does not matter.
        seconds=end and end.seconds + (before.seconds if before and before.known else 0.0),
        losses=tuple((s.tokens, s.loss) for s in record.steps),
        layers=_touched(record),
        all_layers=len(_layers(record)),
        environment={
            "device": run.device,
            "threads": str(run.threads or "?"),
            "effcompress": run.effcompress or "?",
            "torch": run.torch or "?",
            "transformers": run.transformers or "?",
        },
        method=words.method(record.recipe),
    )


def _perplexities(evaluation: Evaluation | None) -> dict[str, float] | None:
    """By domain; None where no token was scored, as earlier versions recorded for prompts alone."""
    scored = evaluation.domains.items() if evaluation else ()
    return {name: d.perplexity for name, d in scored if d.tokens} or None


def _over_domains(evaluation: Evaluation | None, key: str) -> float | None:
    """Mean over the domains; None where not all of them have it."""
    values = [getattr(d, key) for d in evaluation.domains.values()] if evaluation else []
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _tasks(evaluation: Evaluation | None) -> dict[str, float] | None:
    """Task -> accuracy, 0 to 1."""
    scores = evaluation.tasks.scores if evaluation and evaluation.tasks else {}
    return {name: score.value for name, score in scores.items()} or None


def _cost(record: Record) -> tuple[float | None, int | None]:
    """Seconds (0: nothing was pruned) and peak memory of pruning. None: not recorded."""
    if any(isinstance(event, Cut) and event.seconds is None for event in record.costs):
        return None, None
    if not record.costs:
        return (None if record.plans else 0.0), None
    peaks = [event.memory_bytes for event in record.costs if event.memory_bytes is not None]
    return sum(event.seconds or 0.0 for event in record.costs), max(peaks, default=None)


def _layers(record: Record) -> set[int]:
    numbers = (axis_layer(n) for n in record.started_widths if axis_kind(n) == "layer")
    return {number for number in numbers if number is not None}


def _touched(record: Record) -> frozenset[int] | None:
    """Layers that lost something: all of them if units of the residual stream went, which belong to
    no layer. None where weights were zeroed and it is not recorded where.
    """
    made = record.sparsified
    if not record.plans and not made and record.end and record.end.zeroed:
        return None
    names = {name for cut in record.plans for name, units in cut.plan.items() if units}
    numbers = {axis_layer(name) for name in names}
    if None in numbers:
        return frozenset(_layers(record))
    zeroed = (row.layer for row in (made.layers if made else ()) if row.zeroed)
    return frozenset((*(n for n in numbers if n is not None), *zeroed))
