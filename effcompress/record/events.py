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
from typing import Any, ClassVar, TypeVar, Union, cast, dataclass_transform

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
    hub: str | None = field(default=None, metadata=OMITTED)
    """Id of the data set, where the text is from the hub."""


class SourceFacts(Recorded):
    """What the source model says about itself: its id on the hub, and what its model card states
    of license (an identifier of the hub; of one called ``other`` a name and a link) and languages.
    """

    base_model: str | None = field(default=None, metadata=OMITTED)
    license: str | None = field(default=None, metadata=OMITTED)
    license_name: str | None = field(default=None, metadata=OMITTED)
    license_link: str | None = field(default=None, metadata=OMITTED)
    languages: tuple[str, ...] = ()


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
    facts: SourceFacts | None = field(default=None, metadata=OMITTED)
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
    agreement: float | None = field(default=None, metadata=OMITTED)
    """Fraction of the tokens for which the source model's most likely next token is the same."""
    divergence: float | None = field(default=None, metadata=OMITTED)
    """KL divergence of the source model's next-token distribution to this one's, nats per token."""


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


class Mixture(Recorded, event="mixture"):
    """The weights of the domains from this step on, and the held-out losses (nats per token) that
    they follow, beside their references.
    """

    step: int = 0
    tokens: int
    weights: Mapping[str, float]
    losses: Mapping[str, float] = field(default_factory=dict)
    """Empty where nothing was measured: at the start, with references that the recipe gives."""
    reference: Mapping[str, float]
    seconds: float | None = None
    flops: float | None = field(default=None, metadata=OMITTED)


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
    flops: float | None = field(default=None, metadata=OMITTED)
    """Operations beside training steps since the last event that has any: of measuring, search and
    repairs. Matrix products, attention and factorisations count; None in records that do not say.
    """


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
    """Calibration text was read; ``hash`` is that of its tokens, ``precision`` that of passes."""

    step: int = 0
    sequences: int
    tokens: int
    hash: str
    precision: str = "fp32"


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
    flops: float | None = field(default=None, metadata=OMITTED)


class Fitted(Recorded):
    """How one fit was chosen: the values of its knobs, None where the weights stay as they are
    because no value lowers the error on held-out text. Errors on that text, before, and of a fit to
    the other text: mean squares over that of what should be put out; None where no text is held
    out.
    """

    knobs: Mapping[str, float] | None = None
    error_before: float | None = None
    error_after: float | None = None


class Refit(Recorded, event="refit"):
    """Projections into the residual stream were fitted to the source model, on so many sequences;
    knobs were chosen on ``held_out`` of them, which only the last fit has seen.
    """

    step: int = 0
    seconds: float
    memory_bytes: int | None = None
    flops: float | None = field(default=None, metadata=OMITTED)
    weights: int
    change: Mapping[str, float] = field(default_factory=dict)
    """Weight -> norm of its change over its norm."""
    sequences: int | None = None
    held_out: int = 0
    fits: Mapping[str, Fitted] = field(default_factory=dict)
    """Weight -> how its fit was chosen."""


class Sliced(Recorded):
    """The residual stream in front of a block (``attention``, ``feed-forward``; the last one lies
    behind the layers): ``energy`` is the fraction of its mean square in the directions that stay.
    """

    layer: int
    block: str
    energy: float


class Rotated(Recorded, event="rotated"):
    """The residual stream was rotated and sliced from ``channels`` to ``width``; ``tied``: the
    embedding is still the output matrix. Logits differ by so much from those of the source model
    with projections in place of slices.
    """

    step: int = 0
    method: str
    signal: str
    refit: str | None = None
    tied: bool
    channels: int
    width: int
    params: int
    places: tuple[Sliced, ...] = ()
    fits: tuple[Fitted, ...] = ()
    """Of the residual additions, in their order, where they are refitted."""
    max_logit_difference: float
    seconds: float
    memory_bytes: int | None = None
    flops: float | None = field(default=None, metadata=OMITTED)


class GateFamily(Recorded):
    """Learned gates of one kind: mean expected sparsity of its rows and the target then (0 to 1),
    the multipliers of the constraint, and the fraction of gates whose probability of being open is
    from .05 to .95.
    """

    expected: float
    target: float
    linear: float
    quadratic: float
    undecided: float


class Gates(Recorded, event="gates"):
    """Learned gates, as they were when this step was taken."""

    step: int
    tokens: int
    families: Mapping[str, GateFamily]


class Absorbed(Recorded, event="absorbed"):
    """Learned gates were absorbed (multiplied into the weights): losses in nats per token with all
    gates open, under the gates of the cut, and of the cut model, which computes the same as the
    second. ``low``: kept gates below 0.1.
    """

    step: int
    kept: int
    low: int
    loss_open: float
    loss_masked: float
    loss_cut: float
    max_logit_difference: float


class Allocation(Recorded, event="allocation"):
    """A width was chosen for every block at once. Costs are in ``unit`` (parameters, bytes or
    seconds): ``asked`` by the recipe, ``predicted`` of the choice, ``before`` it, and the ``least``
    that the space allows.
    """

    step: int = 0
    method: str
    errors: str
    """Where the errors of levels come from: saliency, or one block replaced in the whole model."""
    unit: str
    asked: float
    predicted: float
    before: float
    least: float
    aimed: float | None = None
    """What was asked for in place of ``asked``, after a model of the first choice was timed."""
    widths: Mapping[str, int]
    """Set -> units left; 0: the block goes."""
    error: float
    """Errors of the levels, added up."""
    loss: float | None = None
    """KL divergence of the source model to the one with these levels, where it was computed."""
    comparisons: int = 0
    """How often that was computed for any levels."""
    seconds: float = 0.0


class Latency(Recorded, event="latency"):
    """The cut model timed beside one of the source model's shape, in seconds: of a prefill up to
    the first new token, or of one token of a decode. Medians over rounds; ``low`` and ``high``:
    over the rounds of the cut model.
    """

    step: int = 0
    phase: str
    batch: int
    length: int
    threads: int
    rounds: int
    asked: float
    predicted: float
    measured: float
    low: float
    high: float
    dense: float
    asked_speed_up: float | None = None
    speed_up: float
    """Median of the ratios within rounds."""


class TriedShape(Recorded):
    """A shape that a search has tried: units left of each kind, parameters, and the loss of the
    masked model in nats per token.
    """

    units: Mapping[str, int]
    params: int
    loss: float
    active: int = 0
    """Parameters that a token meets; 0 where the target does not ask for them."""


class Search(Recorded, event="search"):
    """Shapes were tried on so many calibration sequences; ``chosen`` is the target from now on."""

    step: int = 0
    tried: tuple[TriedShape, ...]
    chosen: Mapping[str, int]
    sequences: int
    seconds: float


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
    (``export/forms.py``). ``parameters`` include padding. ``hashes``: SHA-256 of each file of
    weights.
    """

    form: str = "uniform"
    container: str
    why: str
    parameters: int
    bytes: int
    hashes: Mapping[str, str] = field(default_factory=dict)


class Gguf(Recorded, event="gguf"):
    """The model was also written as a file for llama.cpp; ``why``: what is stored otherwise."""

    file: str
    dtype: str
    why: str
    bytes: int


class Proof(Recorded, event="proof"):
    """What the saved model showed when a fresh process loaded it. ``by_layers``: it was read layer
    by layer, as it would not have fitted into memory; ``generated``: tokens that were compared.
    """

    max_logit_difference: float
    tolerance: float | None = None
    tokens_equal: bool
    cache_equal: bool
    seconds: float = 0.0
    by_layers: bool = False
    generated: int | None = None

    @property
    def holds(self) -> bool:
        """Whether it generates the same tokens, with and without the cache."""
        return self.tokens_equal and self.cache_equal


class Exported(Recorded, event="exported"):
    """One line of ``exports.jsonl``: ``effcompress export`` wrote the result of the run again.

    ``output`` is the name of the folder or file, ``numbers`` the type of most weights in it. Of a
    quantised file, ``before`` and ``after`` are the scores of the run's held-out text: of the model
    as it was, and of the weights that the file holds.
    """

    form: str
    output: str
    container: str | None = None
    parameters: int | None = None
    bytes: int
    numbers: str | None = None
    why: str = ""
    max_logit_difference: float | None = None
    """Of the proof in a fresh process; None where there was none."""
    before: Mapping[str, DomainScore] = field(default_factory=dict)
    after: Mapping[str, DomainScore] = field(default_factory=dict)
    seconds: float = 0.0


class Size(Recorded, event="size"):
    """A model at a size that the run passed (``export.at``), written and proven."""

    name: str
    """The size as the recipe writes it, e.g. 469M."""
    asked: int
    params: int
    step: int
    """Steps and tokens of the run when the size was passed."""
    tokens: int
    continued: int
    """Tokens that the model was trained on after that."""
    perplexity: Mapping[str, float]
    """Domain -> perplexity on its held-out text."""
    folder: str
    """Where the model lies, from the folder of the run."""
    seconds: float


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


Costly = Cut | Commit | Sparsify | Refit | Rotated
"""Events of pruning whose time and peak memory are recorded."""
InTraining = (
    Step | Stage | Mixture | Calibration | Search | Approximate | Gates | Absorbed | Compiled
)
Chosen = Allocation | Latency
"""Events of a choice of levels, and of what it led to."""
AtStep = Costly | InTraining | Chosen | Checkpoint | Size
"""Events that happen at an optimizer step."""
Event = AtStep | Run | Evaluation | Export | Gguf | Proof | Exported | Size | Warn | End | Other

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
    """The event of one line. Raises ValueError where it is not JSON, Unreadable (a ValueError, too)
    where something that every version writes is missing or of another type.
    """
    return typed(loaded(text))


def typed(values: Mapping[str, Any]) -> Event:
    """The event of one line that was parsed already. Raises Unreadable."""
    kind = str(values.get(_KIND, "")) if isinstance(values, Mapping) else "run"
    if kind not in _EVENTS:
        return Other(kind, {key: value for key, value in values.items() if key != _KIND})
    return build(_EVENTS[kind], values)


def loaded(text: str | bytes) -> Any:
    """The value of JSON text. Raises ValueError for anything else, and for a number that is not
    finite or, if whole, has more than 18 digits.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_short)
    except RecursionError as problem:
        raise ValueError("too many brackets within each other") from problem


def _finite(word: str) -> float:
    if math.isfinite(number := float(word)):
        return number
    raise ValueError(f"{word:.40} is not finite")


def _short(word: str) -> int:
    if len(word) < 19:
        return int(word)
    raise ValueError(f"{word:.40} is too large")


def read(path: Path) -> list[Event]:
    """All events of a record. Raises RunError for a line that cannot be read, except for a last one
    that is only half there: a run was killed while it wrote it.
    """
    return [*_lines(path, typed)]


def read_plans(path: Path) -> list[Decision]:
    """All cuts of ``plans.jsonl``; damaged lines are treated as by ``read``."""
    return [*_lines(path, lambda values: build(Decision, values))]


def _lines(path: Path, build: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    if not path.is_file():
        return
    lines = path.read_text("utf-8", errors="replace").split("\n")
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            yield build(loaded(text))
        except Unreadable as problem:
            raise RunError(
                f"the record is not one that this version reads: {problem}",
                where=f"{path}:{number}",
                fix="Make the report with the version that made the run.",
            ) from problem
        except ValueError as problem:
            if number == len(lines):  # complete lines end in a newline, so this one is not
                return
            raise RunError(
                f"not JSON: {getattr(problem, 'msg', problem)}",
                where=f"{path}:{number}",
                fix="`run --resume` puts the checkpoint's copy in its place; else remove the line.",
            ) from problem


def _json(values: Mapping[str, Any]) -> str:
    """One line; halves of surrogate pairs, which no file can hold, become ``?``."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


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


def build(kind: type[T], values: Any) -> T:
    """A dataclass from plain values; unknown keys are dropped, or go into its spread field. Raises
    Unreadable where a value is missing or of another type.
    """
    if not isinstance(values, Mapping):
        raise Unreadable(f"a line is an object, not {values!r:.40}")
    fields = _fields(kind)
    what = getattr(kind, _KIND, kind.__name__)
    given: dict[str, Any] = {}
    try:
        for one, convert in fields:
            if "spread" in one.metadata:
                known = {other.name for other, _ in fields if other is not one}
                given[one.name] = convert({k: v for k, v in values.items() if k not in known})
            elif one.name in values:
                given[one.name] = convert(values[one.name])
            elif one.default is one.default_factory is dataclasses.MISSING:
                raise Unreadable(f"'{what}' without '{one.name}'")
    except TypeError as problem:
        raise Unreadable(f"'{what}': {problem}") from problem
    return kind(**given)


@cache
def _fields(kind: Any) -> list[tuple[dataclasses.Field[Any], Callable[[Any], Any]]]:
    """Fields of a dataclass, and how a plain value becomes each."""
    hints = typing.get_type_hints(kind)
    return [(one, _converter(hints[one.name])) for one in dataclasses.fields(kind)]


def _converter(hint: Any) -> Callable[[Any], Any]:
    """Makes a plain JSON value one of this type; the result raises TypeError for other values."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: value
    if dataclasses.is_dataclass(hint):
        return lambda value: build(cast(Any, hint), value)
    if origin in (Union, types.UnionType):
        one = _converter(next(kind for kind in inside if kind is not type(None)))
        return lambda value: None if value is None else one(value)
    if origin in (tuple, list):
        one = _converter(inside[0])
        return lambda value: origin(map(one, _of(list, value)))
    if origin in (Mapping, dict):
        one = _converter(inside[1])
        return lambda value: {key: one(item) for key, item in _of(dict, value).items()}
    return lambda value: _of(hint, value)


def _of(kind: type[T], value: Any) -> T:
    """``value``, if it is of that kind: a whole number is a float, too, but a bool is no number."""
    wanted: Any = {int: Integral, float: Real}.get(kind, kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return cast(T, value)
