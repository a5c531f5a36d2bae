"""The events of ``metrics.jsonl`` and the lines of ``plans.jsonl``: one frozen dataclass each, one
writer, one reader.

The order of fields is the order of keys in the file. A field that records of earlier versions lack
has a default. ``OMITTED`` fields leave no key where they are None (all others are written as null),
the entries of a ``SPREAD`` field are written beside the other fields.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, dataclass_transform

from effcompress.errors import RunError
from effcompress.types import Cut as Decision

T = TypeVar("T")
_KIND = "event"
OMITTED = {"omitted": True}
"""Metadata of a field that leaves no key where it is None."""
SPREAD = {"spread": True}
"""Metadata of a mapping whose entries are written beside the other fields."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Recorded:
    """Makes its subclasses frozen dataclasses of keywords; ``event`` names those of events."""

    event: ClassVar[str]

    def __init_subclass__(cls, *, event: str = "") -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        if event:
            cls.event = event


class DomainData(Recorded):
    """Text of one domain: amounts that the run trains on, ``share`` of the mixture (0 to 1), and
    the hash of all training and held-out tokens.
    """

    documents: int = 0
    tokens: int = 0
    hash: str | None = None
    share: float | None = None
    source: str | None = None


class Run(Recorded, event="run"):
    """The first event: what is run, from which weights, with which versions."""

    name: str
    seed: int
    effcompress: str = ""
    torch: str = ""
    transformers: str = ""
    started: str | None = None
    """UTC, ISO 8601."""
    model: str
    model_hash: str | None = None
    params: int
    """Parameters before the first cut, with biases added for a repair."""
    source_params: int | None = None
    """Parameters of the source model, without such biases."""
    target_params: int | None = None
    """None where nothing is pruned."""
    total_tokens: int | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    """Axis -> units before the first cut."""
    device: str
    threads: int | None = None
    processes: int = 1
    measures: str | None = None
    """What saliency is taken from: nothing, training or calibration."""
    data: Mapping[str, DomainData] = field(default_factory=dict)


class DomainScore(Recorded):
    """Held-out text of one domain: ``loss`` in nats per token, ``hash`` of the tokens."""

    perplexity: float
    loss: float
    tokens: int
    sequences: int
    hash: str | None = None


class Generation(Recorded):
    """A greedy continuation of the recipe's prompt."""

    prompt: str = ""
    text: str = ""


class TaskScore(Recorded):
    """Accuracy of one task (0 to 1) by its main ``metric``, with its standard error, over
    ``examples`` of the ``of`` that the split has.
    """

    metric: str
    value: float
    stderr: float | None
    metrics: Mapping[str, float | None] = field(default_factory=dict, metadata=SPREAD)
    """All metrics as the harness names them, each followed by ``<metric>_stderr``."""
    examples: int
    of: int = 0
    split: str = ""
    shots: int = 0
    version: str = ""


class TaskMean(Recorded):
    """Unweighted mean of the main metrics of ``tasks``; ``of``: the same in words."""

    value: float
    stderr: float | None
    of: str
    tasks: tuple[str, ...]


class Tasks(Recorded):
    """Scores by task, and the protocol that makes them comparable."""

    scores: Mapping[str, TaskScore]
    mean: TaskMean | None
    """None for fewer than two tasks."""
    protocol: Mapping[str, Any]


class Evaluation(Recorded, event="evaluation"):
    """The model evaluated ``before`` the first cut or ``after`` the last step."""

    when: str
    params: int
    domains: Mapping[str, DomainScore]
    generation: Generation | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    tasks: Tasks | None = field(default=None, metadata=OMITTED)
    seconds: float = 0.0
    known: bool | None = field(default=None, metadata=OMITTED)
    """True: taken from the cache of dense evaluations, with the ``seconds`` of who measured it."""


class Stage(Recorded, event="stage"):
    """A stage of training (warmup, pruning, continued) begins."""

    name: str
    step: int = 0
    tokens: int


class Step(Recorded, event="step"):
    """One optimizer step. ``tokens`` are those trained on so far, losses are nats per token."""

    step: int
    tokens: int
    loss: float
    """Next-token loss."""
    objective: float | None = field(default=None, metadata=OMITTED)
    """What is minimised instead, where a teacher takes part."""
    domain_loss: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float
    grad_norm: float | None = None
    """Before clipping."""
    params: int
    tokens_per_second: float
    flops: float = 0.0
    """Operations of this step, forward and backward; 0 in records that do not say."""
    seconds: float = 0.0
    """Since the run began, over all processes that took it up."""


class Cut(Recorded, event="cut"):
    """Units were masked. Of one step, the cut comes after it."""

    step: int
    tokens: int
    params: int
    removed: Mapping[str, int]
    """Kind -> mini-groups of this cut."""
    share_removed: Mapping[str, float]
    """Kind -> fraction that is gone by now, mean over its sets."""
    saliency: Mapping[str, float]
    """Kind -> lowest saliency per freed parameter."""
    seconds: float | None = None
    memory_bytes: int | None = None
    """Peak on the device; None where the system does not tell."""


class Commit(Recorded, event="commit"):
    """Masked units were cut out of the tensors; logits moved by at most so much."""

    step: int = 0
    params: int = 0
    seconds: float | None = None
    memory_bytes: int | None = None
    max_logit_difference: float | None = None


class Approximate(Recorded, event="approximate"):
    """Removing units of ``sets`` also rescales what stays, which moved logits by so much more."""

    step: int = 0
    sets: tuple[str, ...]
    max_logit_difference: float


class Calibration(Recorded, event="calibration"):
    """Calibration text was read; ``hash`` is that of its tokens."""

    step: int = 0
    sequences: int
    tokens: int
    hash: str


class LayerZeros(Recorded):
    """Linear layers of one layer (its number in the source model)."""

    layer: int
    weights: int
    zeroed: int


class Sparsify(Recorded, event="sparsify"):
    """Zeros were made in linear layers. ``weights``: those of the layers that were made sparse."""

    step: int = 0
    method: str
    sparsity: float
    pattern: str | None
    params: int = 0
    weights: int
    zeroed: int
    layers: tuple[LayerZeros, ...] = ()
    seconds: float
    memory_bytes: int | None = None


class Refit(Recorded, event="refit"):
    """Projections into the residual stream were fitted to the source model."""

    step: int = 0
    seconds: float
    memory_bytes: int | None = None
    weights: int
    change: Mapping[str, float] = field(default_factory=dict)
    """Weight -> norm of its change over its norm."""


class Compiled(Recorded, event="compiled"):
    """Layers were compiled; ``graphs`` counts all so far."""

    step: int = 0
    graphs: int


class Checkpoint(Recorded, event="checkpoint"):
    """A checkpoint is on disk; ``seconds`` is how long training stood still for it."""

    step: int
    seconds: float
    bytes: int


class Export(Recorded, event="export"):
    """The model was saved: ``container`` is its class, ``why`` it is that one, ``form`` how
    (``export/forms.py``). ``parameters`` include padding.
    """

    form: str = "uniform"
    container: str
    why: str
    parameters: int
    bytes: int


class Proof(Recorded, event="proof"):
    """What the saved model showed when a fresh process loaded it."""

    max_logit_difference: float
    tolerance: float | None = None
    tokens_equal: bool
    cache_equal: bool
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it generates the same tokens, with and without the cache."""
        return self.tokens_equal and self.cache_equal


class Warn(Recorded, event="warning"):
    """Something the user should know; it stays in the record and in the report."""

    text: str


class End(Recorded, event="end"):
    """How the run ended: success, failed or stopped. A run that did not succeed has a reason, one
    that did the size of the result.
    """

    status: str
    reason: str | None = field(default=None, metadata=OMITTED)
    seconds: float
    params: int | None = field(default=None, metadata=OMITTED)
    widths: Mapping[str, int] | None = field(default=None, metadata=OMITTED)
    zeroed: int | None = field(default=None, metadata=OMITTED)
    """Zeros in the linear layers that the recipe made sparse."""


@dataclass(frozen=True)
class Other:
    """An event of another version, kept as it is; readers pass over it."""

    event: str
    values: Mapping[str, Any] = field(default_factory=dict, metadata=SPREAD)


Costly = Cut | Commit | Sparsify | Refit
"""Events of pruning whose time and peak memory are recorded."""
AtStep = Costly | Step | Stage | Calibration | Approximate | Compiled | Checkpoint
"""Events that happen at an optimizer step."""
Event = AtStep | Run | Evaluation | Export | Proof | Warn | End | Other

_EVENTS: dict[str, Any] = {kind.event: kind for kind in typing.get_args(Event) if kind is not Other}


class Unreadable(ValueError):
    """A line that is JSON, but not an event as this version knows it."""


def step_of(event: Event) -> int | None:
    """The optimizer step at which the event happened; None where it has none."""
    return event.step if isinstance(event, AtStep) else None


def of_type(found: Iterable[Event | None], kind: type[T]) -> tuple[T, ...]:
    """The events of one class, in their order."""
    return tuple(event for event in found if isinstance(event, kind))


def line(event: Event) -> str:
    """Returns the line of ``metrics.jsonl``, without newline. NaN and infinity raise RunError."""
    step = step_of(event)
    where = event.event if step is None else f"{event.event} at step {step}"
    return _json({_KIND: event.event, **_plain(event, "", where)})


def plain(event: Event) -> dict[str, Any]:
    """The fields of an event as JSON values, as they are written."""
    return _plain(event, "", None)


def plan_line(cut: Decision) -> str:
    """Returns the line of ``plans.jsonl``, without its newline. NaN and infinity raise RunError."""
    return _json(_plain(cut, "", f"plan at step {cut.step}"))


def parse(text: str | bytes) -> Event:
    """The event of one line. Raises json.JSONDecodeError where it is not JSON, Unreadable where
    something that every version writes is missing (both are ValueErrors).
    """
    return typed(json.loads(text))


def typed(values: Mapping[str, Any]) -> Event:
    """The event of one line that was parsed already. Raises Unreadable."""
    if not isinstance(values, Mapping):
        raise Unreadable(f"a line is an object, not {values!r:.40}")
    kind = str(values.get(_KIND, ""))
    if kind not in _EVENTS:
        return Other(kind, {key: value for key, value in values.items() if key != _KIND})
    return _build(_EVENTS[kind], values)


def read(path: Path) -> list[Event]:
    """All events of a record. Raises RunError for a line that cannot be read, except for a last one
    that is only half there: a run was killed while it wrote it.
    """
    return [*_lines(path, typed)]


def read_plans(path: Path) -> list[Decision]:
    """All cuts of ``plans.jsonl``; damaged lines are treated as by ``read``."""
    return [*_lines(path, lambda values: _build(Decision, values))]


def _lines(path: Path, build: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    if not path.is_file():
        return
    lines = path.read_text("utf-8", errors="replace").split("\n")
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            yield build(json.loads(text))
        except json.JSONDecodeError as problem:
            if number == len(lines):  # complete lines end in a newline, so this one is not
                return
            raise RunError(
                f"not JSON: {problem.msg}",
                where=f"{path}:{number}",
                fix="Remove the line, or restore the file.",
            ) from problem
        except Unreadable as problem:
            raise RunError(
                f"the record is not one that this version reads: {problem}",
                where=f"{path}:{number}",
                fix="Make the report with the version that made the run.",
            ) from problem


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _plain(value: Any, path: str, where: str | None) -> Any:
    """``value`` as JSON values, those of numpy too; without ``where`` they need not be finite."""
    if dataclasses.is_dataclass(value):
        value = dict(_items(value))
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, f"{path}.{key}" if path else str(key), where)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]", where) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if where is not None and not math.isfinite(value):
            raise RunError(
                f"'{path}' is {float(value)}; the record takes finite numbers only",
                where=where,
                fix="Look at the text or the plugin that this number comes from; --resume goes on "
                "from the newest checkpoint.",
            )
        return float(value)
    raise TypeError(f"{where}: '{path}' is a {type(value).__name__}, which JSON cannot say")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a dataclass as they are written."""
    for one in dataclasses.fields(value):
        held = getattr(value, one.name)
        if "spread" in one.metadata:
            yield from held.items()
        elif held is not None or "omitted" not in one.metadata:
            yield one.name, held


def _build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from plain values; unknown keys are dropped, or go into its spread field."""
    fields = _fields(kind)
    what = getattr(kind, _KIND, kind.__name__)
    given: dict[str, Any] = {}
    try:
        for one, convert in fields:
            if "spread" in one.metadata:
                known = {other.name for other, _ in fields if other is not one}
                given[one.name] = {key: item for key, item in values.items() if key not in known}
            elif one.name in values:
                value = values[one.name]
                given[one.name] = convert(value) if convert and value is not None else value
            elif one.default is one.default_factory is dataclasses.MISSING:
                raise Unreadable(f"'{what}' without '{one.name}'")
    except (TypeError, AttributeError) as problem:
        raise Unreadable(f"'{what}': {problem}") from problem
    return kind(**given)


@cache
def _fields(kind: Any) -> list[tuple[dataclasses.Field[Any], Callable[[Any], Any] | None]]:
    """Fields of a dataclass, and how a plain value becomes each."""
    hints = typing.get_type_hints(kind)
    return [(one, _converter(hints[one.name])) for one in dataclasses.fields(kind)]


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """How a plain JSON value becomes one of this type; None where it is that already."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: _build(hint, value)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in inside if kind is not type(None)]
        return _converter(kinds[0]) if len(kinds) == 1 else None
    if origin is tuple:
        one = _converter(inside[0])
        return (lambda value: tuple(map(one, value))) if one else tuple
    if origin is Mapping and (each := _converter(inside[1])):
        return lambda value: {key: each(item) for key, item in value.items()}
    return None
