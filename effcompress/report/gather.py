"""The files of a run folder -> one frozen ``Record``, which page and card are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path
from typing import Any

from effcompress.errors import RunError
from effcompress.record.kind_labels import of
from effcompress.report.solved import Solved, solved_of
from effcompress.report.sparsity import Sparsified
from effcompress.types import axis_kind

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    step: int
    tokens: int
    loss: float
    learning_rate: float
    params: int
    tokens_per_second: float
    flops: float = 0.0
    """Operations; 0 in records of earlier versions."""


@dataclass(frozen=True)
class Removal:
    """One cut: what went, how much of each kind is gone, the lowest saliency of each kind."""

    step: int
    tokens: int
    params: int
    removed: Mapping[str, int]
    share_removed: Mapping[str, float]
    saliency: Mapping[str, float]


@dataclass(frozen=True)
class Stage:
    """A part of the training (warmup, pruning, continued) and the tokens at which it began."""

    name: str
    tokens: int


@dataclass(frozen=True)
class Score:
    """One domain's perplexity."""

    perplexity: float
    loss: float
    tokens: int
    sequences: int


@dataclass(frozen=True)
class Evaluation:
    """What one model scored, how it continued the prompt, and the tasks it solved."""

    params: int
    domains: Mapping[str, Score]
    prompt: str
    text: str
    protocol: Mapping[str, Any]
    solved: Solved | None = None
    """Tasks, where the recipe has some."""


@dataclass(frozen=True)
class Export:
    """What was saved: ``container`` is the class, ``why`` it is that one, ``form`` how it was done
    (``export/forms.py``).
    """

    container: str
    why: str
    parameters: int
    bytes: int
    form: str = "uniform"


@dataclass(frozen=True)
class Proof:
    """What the saved model showed when a fresh process loaded it."""

    max_logit_difference: float
    tokens_equal: bool
    cache_equal: bool

    @property
    def holds(self) -> bool:
        """It generates the same tokens, with and without the cache."""
        return self.tokens_equal and self.cache_equal


@dataclass(frozen=True)
class Record:
    """Everything a run folder says."""

    run: Line
    """The ``run`` event as it is: names, versions, data. Empty if the run never got that far."""
    steps: tuple[Step, ...] = ()
    cuts: tuple[Removal, ...] = ()
    stages: tuple[Stage, ...] = ()
    """In their order; empty where the recipe names none."""
    sparsified: Sparsified | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    export: Export | None = None
    proof: Proof | None = None
    warnings: tuple[str, ...] = ()
    commit_difference: float | None = None
    """Largest change of a logit when masked weights were physically removed."""
    cutting_seconds: float = 0.0
    """What cuts and commits took."""
    end: Line | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    """Axis -> units now."""
    recipe: str = ""

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.run.get("name", "run"))

    @property
    def params_before(self) -> int | None:
        """Parameters of the source model, without biases that were added for a repair."""
        return self.run.get("source_params", self.run.get("params"))

    @property
    def params_after(self) -> int | None:
        """Parameters now."""
        if self.end and self.end.get("params"):
            return self.end["params"]
        latest = [*self.cuts[-1:], *self.steps[-1:]]
        return max(latest, key=lambda line: line.step).params if latest else self.params_before

    @property
    def target(self) -> int | None:
        """Parameters that were asked for."""
        return self.run.get("target_params")

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return max([0, *(s.tokens for s in self.steps), *(c.tokens for c in self.cuts)])

    @property
    def status(self) -> str:
        """``success``, ``failed`` or ``unfinished``."""
        return str(self.end["status"]) if self.end else "unfinished"

    @property
    def started_widths(self) -> Mapping[str, int]:
        """Axis -> units of the source model."""
        return self.run.get("widths") or {}


def gather(folder: Path) -> Record:
    """Read ``metrics.jsonl``, ``plans.jsonl`` and ``recipe.resolved.yaml`` of a run folder."""
    if not (folder / "metrics.jsonl").is_file():
        raise RunError(
            "this folder holds no run: metrics.jsonl is missing",
            where=str(folder),
            fix="Name the folder of a run, e.g. runs/quickstart.",
        )
    lines = read_lines(folder / "metrics.jsonl")
    plans = read_lines(folder / "plans.jsonl")
    recipe = folder / "recipe.resolved.yaml"
    try:
        return _record(lines, plans, recipe.read_text("utf-8") if recipe.is_file() else "")
    except (KeyError, TypeError, AttributeError) as problem:
        raise RunError(
            f"the record is not one that this version reads: {problem!r}",
            where=str(folder / "metrics.jsonl"),
            fix="Make the report with the version that made the run.",
        ) from problem


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a jsonl file. A half-written last one is left out: a run was killed there."""
    if not path.is_file():
        return []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    parsed: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError as problem:
            if number == len(lines):  # complete lines end in a newline, so this one is not
                break
            raise RunError(
                f"not JSON: {problem.msg}",
                where=f"{path}:{number}",
                fix="Remove the line, or restore the file.",
            ) from problem
    return parsed


def _record(lines: list[dict[str, Any]], plans: list[dict[str, Any]], recipe: str) -> Record:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_kind.setdefault(line.get("event", ""), []).append(line)
    run = (by_kind.get("run") or [{}])[0]
    end = (by_kind.get("end") or [None])[-1]
    evaluations = {e["when"]: _evaluation(e) for e in by_kind.get("evaluation", [])}
    export = [_pick(Export, e) for e in by_kind.get("export", [])]
    proof = [_pick(Proof, e) for e in by_kind.get("proof", [])]
    differences = [c["max_logit_difference"] for c in by_kind.get("commit", [])]
    return Record(
        run=run,
        steps=tuple(_pick(Step, e) for e in by_kind.get("step", [])),
        cuts=tuple(_pick(Removal, e) for e in by_kind.get("cut", [])),
        stages=tuple(_pick(Stage, e) for e in by_kind.get("stage", [])),
        sparsified=next((_pick(Sparsified, e) for e in by_kind.get("sparsify", [])), None),
        before=evaluations.get("before"),
        after=evaluations.get("after"),
        export=export[-1] if export else None,
        proof=proof[-1] if proof else None,
        warnings=(
            *(e["text"] for e in by_kind.get("warning", [])),
            *_approximate(by_kind.get("approximate", [])),
        ),
        commit_difference=max((d for d in differences if d is not None), default=None),
        cutting_seconds=sum(
            e.get("seconds") or 0.0 for kind in ("cut", "commit") for e in by_kind.get(kind, [])
        ),
        end=end,
        widths=(end or {}).get("widths") or _widths(run.get("widths") or {}, plans),
        recipe=recipe,
    )


def _approximate(events: list[dict[str, Any]]) -> list[str]:
    """One sentence about removals that changed more than what the removed units did."""
    if not events:
        return []
    moved = max(e["max_logit_difference"] for e in events)
    kinds = dict.fromkeys(axis_kind(name) for e in events for name in e["sets"])
    named = ", ".join(of(kind).plural for kind in kinds)
    return [
        f"Removing {named} rescaled what stays, because a norm spans all of them: logits moved by "
        f"up to {moved:.2g} more than by their absence alone."
    ]


def _pick(kind: Any, line: Line) -> Any:
    """The fields that the dataclass ``kind`` wants of an event."""
    wanted = kind.__dataclass_fields__
    # Records of earlier versions lack what has a default now.
    return kind(**{name: line[name] for name in wanted if name in line or _required(wanted[name])})


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _evaluation(line: Line) -> Evaluation:
    words = line.get("generation") or {}
    return Evaluation(
        line["params"],
        {name: _pick(Score, score) for name, score in line["domains"].items()},
        words.get("prompt", ""),
        words.get("text", ""),
        line.get("protocol") or {},
        solved_of(line),
    )


def _widths(start: Mapping[str, int], plans: list[dict[str, Any]]) -> dict[str, int]:
    """Widths of a run that has not said its final ones: the start less what the plans took."""
    gone = dict.fromkeys(start, 0)
    for line in plans:
        for name, units in line["plan"].items():
            gone[name] = gone.get(name, 0) + len(units)
    return {name: width - gone[name] for name, width in start.items()}
