"""Plugins: plain functions whose signature is their contract.

Positional parameters are injected by the engine, keyword-only parameters are recipe knobs. The
signature is read once, when the decorator runs: an input that does not exist is an error there and
then, and the knobs become a JSON Schema (``recipe/json_schema.py``).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import itertools
import math
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from effcompress.errors import EffcompressError, PluginError, did_you_mean
from effcompress.injectable import (
    ABLATED,
    COMPANION_INPUTS,
    INPUTS,
    OF_WEIGHTS,
    PLACE,
    READ,
    ROUTED,
    WITH_STATISTICS,
)
from effcompress.types import Due

if TYPE_CHECKING:
    from torch import Tensor

ENTRY_POINTS = "effcompress.plugins"

BUILTIN_MODULES = (
    "effcompress.saliency.criteria",
    "effcompress.saliency.reduce",
    "effcompress.measure.hessian",
    "effcompress.groups.spaces",
    "effcompress.selection.schedules",
    "effcompress.selection.selectors",
    "effcompress.removal.repairs",
    "effcompress.sparsity.magnitude",
)
COMPANIONS = {
    **dict.fromkeys(("schedule", "sparsifier", "gate"), "check"),
    "selector": "observe",
}
"""Kind -> what its decorator takes beside the function: another function of the same plugin."""


STREAM, OUTPUT = frozenset({"before", "after"}), frozenset({"output", "gate", "gates"})
SOURCES = (frozenset({"x"}), STREAM, OUTPUT)
"""What statistics are functions of: inputs of linear layers, the residual stream, experts."""

AUTO = "auto"
"""What a recipe writes for a knob whose value is chosen on held-out text."""
Tried = Annotated[float, "number from 0, or auto"]
"""Type of such a knob in a recipe; the function itself gets a number."""

Knob = inspect.Parameter
"""A keyword-only parameter, its annotation evaluated. Where the default is ``empty``, a recipe must
give it.
"""


@dataclass(frozen=True)
class Plugin:
    """A registered function with what its signature says."""

    kind: str
    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    knobs: Mapping[str, Knob]
    paper: str
    where: str
    companion: Plugin | None = None
    """Its second function, of the kind ``selector.observe``, say (``COMPANIONS``)."""
    statistics: Mapping[str, Plugin] = field(default_factory=dict[str, "Plugin"])
    """The registered statistics among what it and its companion need."""
    replaces: bool = False
    """Of a family: whether it is used in place of a built-in declaration."""
    tries: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """Of a refit: knob -> the values that ``auto`` tries."""
    only_where: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of a criterion: statistic -> the knob without which it is not needed."""

    def knowing(self, knobs: Mapping[str, Any]) -> Plugin:
        """Returns the plugin without the statistics that it does not need with these knobs."""
        idle = {name for name, knob in self.only_where.items() if not knobs[knob]}
        kept = {name: s for name, s in self.statistics.items() if name not in idle}
        return replace(self, statistics=kept)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def inputs(self) -> dict[str, str]:
        """What must be injected -> what that is; a statistic says so itself."""
        words = inputs_of(self.kind)
        return {n: words[n] if n in words else self.statistics[n].summary for n in self.needs}

    @property
    def of_inputs(self) -> dict[str, Plugin]:
        """Its statistics of what linear layers read."""
        return {name: s for name, s in self.statistics.items() if "x" in s.needs}

    @property
    def of_layers(self) -> dict[str, Plugin]:
        """Its statistics of the residual stream before and after layers and blocks."""
        return {name: s for name, s in self.statistics.items() if STREAM.intersection(s.needs)}

    @property
    def of_experts(self) -> dict[str, Plugin]:
        """Its statistics of the outputs of a mixture's experts."""
        return {name: s for name, s in self.statistics.items() if OUTPUT.intersection(s.needs)}

    @property
    def reads_inputs(self) -> bool:
        """Whether it needs a statistic of what linear layers read."""
        return bool(self.of_inputs) or bool(READ.intersection(self.needs))

    @property
    def cumulative(self) -> bool:
        """Whether it scores a whole layer: by the error once a mini-group and all before it go."""
        return self.kind == "criterion" and "gram" in self.needs

    @property
    def reads_experts(self) -> bool:
        """Whether it needs a statistic of experts, or how many tokens each was sent."""
        return bool(self.of_experts) or bool(ROUTED.intersection(self.needs))

    @property
    def reads_forward(self) -> bool:
        """Whether it needs forward passes over calibration text, or only where a mini-group is."""
        measured = self.reads_inputs or self.reads_experts or bool(self.statistics)
        return measured or self._asks(PLACE | ABLATED)

    @property
    def says_of_depth(self) -> bool:
        """Whether it is a criterion of forward passes that scores layers and blocks."""
        return bool(self.of_layers) or self._asks(ABLATED | {"layer"})

    def _asks(self, names: frozenset[str]) -> bool:
        return bool(names.intersection(self.needs))

    def called(self, available: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        """Calls the function with what it needs of ``available``; what it yields comes as a list.

        Raises PluginError, with the line of its file, where it fails. Memory that runs out is the
        run's failure.
        """
        try:
            found = self.function(*map(available.__getitem__, self.needs), **knobs)
            return list(found) if isinstance(found, Iterator) else found
        except (EffcompressError, MemoryError):
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be imported
                raise
            where = _line_in(self.where.rpartition(":")[0], error) or self.where
            said = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
            failed = replace(self, where=where).error(f"fails: {said}")
            raise failed from error

    def error(self, said: str, fix: str | None = None) -> PluginError:
        """An error that names the plugin and where it is: it ``said``."""
        return PluginError(f"{self.kind} '{self.name}' {said}", where=self.where, fix=fix)

    def require_shape(
        self, found: object, wanted: str, *shapes: Iterable[int], fix: str | None = None
    ) -> None:
        """Raises PluginError where it returned something else than a tensor of one of ``shapes``
        (in words: ``wanted``).
        """
        from torch import Tensor

        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if got not in [tuple(shape) for shape in shapes]:
            raise self.error(f"returned {got} {wanted}", fix)


@dataclass(frozen=True)
class Bound:
    """A plugin with the knobs a recipe gave it: call it with the injected inputs it ``needs``."""

    plugin: Plugin
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.plugin.name

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be injected."""
        return self.plugin.needs

    @property
    def candidates(self) -> list[Bound]:
        """This plugin with every combination of the values that it tries for knobs which are
        ``auto``; empty where none is.
        """
        open_ = [name for name, value in self.knobs.items() if value == AUTO]
        if not open_:
            return []
        values = itertools.product(*(self.plugin.tries[name] for name in open_))
        return [
            replace(self, knobs={**self.knobs, **dict(zip(open_, each, strict=True))})
            for each in values
        ]

    @property
    def tried(self) -> dict[str, float]:
        """Values of the knobs that could be ``auto``."""
        return {name: self.knobs[name] for name in self.plugin.tries if name in self.knobs}

    def __call__(self, **available: Any) -> Any:
        """Calls it. Raises PluginError, with the line of its file, where it fails."""
        return self.plugin.called(available, self.knobs)

    def due(self, **place: Any) -> Due | None:
        """Asks a schedule at a place in the run. Raises PluginError for an answer of another type,
        or where it fails.
        """
        due = self.plugin.called(place, self.knobs)
        given = [due.groups, due.params] if isinstance(due, Due) else []
        if due is None or sum(isinstance(n, int) for n in given) == given.count(None) == 1:
            return due
        fix = "Return Due(groups=...), Due(params=...) or None."
        raise self.plugin.error(f"returned {due!r}", fix)

    def corrected(self, weight_OI: Tensor, **moments: Any) -> tuple[Tensor, Tensor | None]:
        """Asks a repair or refit of a linear layer: the new weight, and what its bias gains ``[O]``
        (None: nothing). Raises PluginError for other shapes, or where it fails.
        """
        found: Any = self(weight=weight_OI, **moments)
        new_OI: Any = found
        more_O: Any = None
        if type(found) is tuple and len(found) == 2:
            new_OI, more_O = found
        wanted = f"for a weight of shape {tuple(weight_OI.shape)}"
        fix = f"A {self.plugin.kind} of a linear layer returns the weight, changed, in its shape"
        fix += "; with `mean`, also what its bias gains."
        self.plugin.require_shape(new_OI, wanted, weight_OI.shape, fix=fix)
        if more_O is not None:
            self.plugin.require_shape(more_O, f"{wanted}'s bias", weight_OI.shape[:1], fix=fix)
        return new_OI, more_O

    def refusal(self, **available: Any) -> tuple[str, str] | None:
        """Asks the plugin's ``check``: what is wrong and what to type instead, or None. Raises
        PluginError for another answer, or where it fails.
        """
        said = self.companion(**available)
        if said is None or (isinstance(said, tuple) and [type(x) for x in said] == [str, str]):
            return said
        fix = "Return what is wrong and what to type instead, or None."
        raise self.plugin.error(f"has a check that returned {said!r}", fix)

    @contextmanager
    def keeping(self, **inputs: Tensor) -> Iterator[None]:
        """Raises PluginError if one of these is changed in place inside."""
        # Views share their base's counter, so this sees a change of weights or gradients too.
        before = {name: t._version for name, t in inputs.items()}
        yield
        for name, t in inputs.items():
            if t._version != before[name]:
                raise self.plugin.error(f"changes its {name}")

    def companion(self, **available: Any) -> Any:
        """Calls the plugin's second function; None where it has none."""
        second = self.plugin.companion
        if second is None:
            return None
        return second.called(available, {name: self.knobs[name] for name in second.knobs})


class Registry:
    """Kind and name -> plugin. One instance, ``REGISTRY``; tests make their own."""

    def __init__(self) -> None:
        self._plugins: dict[str, dict[str, Plugin]] = {kind: {} for kind in INPUTS}
        self._loaded: set[str] = set()
        self._open: list[Plugin] | None = None
        """While files are imported: plugins whose statistics may be registered after them."""

    def add(
        self,
        kind: str,
        name: str,
        function: Callable[..., Any],
        paper: str,
        companion: Callable[..., Any] | None = None,
        *,
        replaces: bool = False,
        tries: Mapping[str, Sequence[float]] | None = None,
        only_where: Mapping[str, str] | None = None,
    ) -> Plugin:
        """Reads the signature and keeps the function.

        Raises PluginError: an input that cannot be injected, a missing type of a knob, a name that
        another function has, values to try (``tries``) that are none, or a condition
        (``only_where``) that names no statistic or no knob which is true or false.
        """
        where = _where(function)
        needs, knobs = _contract(kind, function, f"{kind} '{name}'", where)
        plugin = Plugin(kind, name, function, needs, knobs, paper, where, replaces=replaces)
        plugin = replace(_trying(plugin, tries or {}), only_where=dict(only_where or {}))
        if companion is not None:
            plugin = replace(plugin, companion=_companion(plugin, companion))
        old = self._plugins[kind].get(name)
        # A module that is imported again (a reload) brings the same function from the same line.
        if old is not None and old.where != where:
            what = f"{kind} '{name}' exists already, from {old.where}"
            raise PluginError(what, where=where, fix="Give one of the two another name.")
        if any(self._unknown(plugin)):
            self.load_builtins()  # the statistic may be another plugin's
        if self._open is not None and any(self._unknown(plugin)):
            self._open.append(plugin)
        else:
            plugin = self._resolved(plugin)
        self._plugins[kind][name] = plugin
        return plugin

    def _unknown(self, plugin: Plugin) -> Iterator[PluginError]:
        """Yields an error for every input that is neither the engine's own nor a statistic."""
        for part in filter(None, (plugin, plugin.companion)):
            statistics = self._plugins["statistic"] if part.kind in WITH_STATISTICS else ()
            names = [*inputs_of(part.kind), *statistics]
            for need in part.needs:
                if need not in names:
                    what = f"{plugin.kind} '{plugin.name}': cannot inject '{need}'"
                    fix = f"{did_you_mean(need, names)} Put a recipe knob after '*'."
                    yield PluginError(what, where=part.where, fix=fix)

    def _resolved(self, plugin: Plugin) -> Plugin:
        """The plugin with its statistics. Raises PluginError for an input that does not exist."""
        for error in self._unknown(plugin):
            raise error
        known = self._plugins["statistic"]
        asked = [*plugin.needs, *(plugin.companion.needs if plugin.companion else ())]
        found = {n: known[n] for n in asked if n in known and n not in inputs_of(plugin.kind)}
        plugin = replace(plugin, statistics=found)
        _require_one_source(plugin)
        _require_conditions(plugin)
        return plugin

    def get(self, kind: str, name: str) -> Plugin:
        """Raises PluginError naming the nearest known plugin."""
        self.load_builtins()
        if name not in self._plugins[kind]:
            fix = did_you_mean(name, self._plugins[kind])
            raise PluginError(f"no {kind} named '{name}'", fix=fix)
        return self._plugins[kind][name]

    def all(self, kind: str | None = None) -> list[Plugin]:
        """Every plugin (of one kind), by kind and name."""
        self.load_builtins()
        kinds = [kind] if kind else list(self._plugins)
        return [self._plugins[k][n] for k in kinds for n in sorted(self._plugins[k])]

    def load_builtins(self) -> None:
        """Imports the built-in modules and what installed packages register, this one included."""
        if self is not REGISTRY or "builtins" in self._loaded:
            return
        self._loaded.add("builtins")
        with self._importing():
            for module in BUILTIN_MODULES:
                importlib.import_module(module)
            for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
                _import_or_say(entry.load, f"entry point {entry.name} = {entry.value}")

    def load_file(self, path: Path) -> None:
        """Runs one plugin file. Raises PluginError with the file's line when it fails to import."""
        path = path.resolve()
        if str(path) in self._loaded:
            return
        self.load_builtins()
        spec = importlib.util.spec_from_file_location(f"effcompress_plugin_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise PluginError("not a Python file", where=str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        with self._importing():
            _import_or_say(partial(spec.loader.exec_module, module), str(path))
        self._loaded.add(str(path))

    @contextmanager
    def _importing(self) -> Iterator[None]:
        """Lets a plugin name a statistic that is registered later in the same file, or by another
        package; at the end all of them must exist.
        """
        before, self._open = self._open, []
        try:
            yield
            while self._open:
                plugin = self._open.pop()
                del self._plugins[plugin.kind][plugin.name]  # stays so where an input is unknown
                self._plugins[plugin.kind][plugin.name] = self._resolved(plugin)
        finally:
            self._open = before


REGISTRY = Registry()

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _register(
    kind: str, name: str, paper: str, companion: Callable[..., Any] | None = None
) -> Decorator:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY.add(kind, name, function, paper, companion)
        return function

    return register


def _decorator(kind: str) -> Callable[..., Decorator]:
    def named(name: str, *, paper: str = "new") -> Decorator:
        return _register(kind, name, paper)

    named.__name__ = kind
    named.__doc__ = f"Registers a function as the {kind} ``name``; ``paper`` is its source."
    return named


reduction = _decorator("reduction")
statistic = _decorator("statistic")
hessian = _decorator("hessian")
space = _decorator("space")
repair = _decorator("repair")
rotation = _decorator("rotation")
mixture = _decorator("mixture")
constraint = _decorator("constraint")
allocation = _decorator("allocation")


def criterion(
    name: str, *, paper: str = "new", only_where: Mapping[str, str] | None = None
) -> Decorator:
    """Registers a function as the criterion ``name``; ``paper`` is its source.

    ``only_where``: statistic -> a knob of type bool. Where a recipe leaves the knob false, the
    statistic is not measured, and the function gets None for it.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY.add("criterion", name, function, paper, only_where=only_where)
        return function

    return register


def refit(
    name: str, *, paper: str = "new", tries: Mapping[str, Sequence[float]] | None = None
) -> Decorator:
    """Registers a function as the refit ``name``; ``paper`` is its source.

    ``tries``: knob -> values from 0. A recipe may then write ``auto`` for the knob, which is its
    default: the engine calls the function with each value and the moments of a part of the text,
    takes the value with the lowest error on the rest, and calls it with the moments of all text.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY.add("refit", name, function, paper, tries=tries)
        return function

    return register


def family(model_type: str, *, replaces: bool = False, paper: str = "new") -> Decorator:
    """Registers a function of no arguments as the declaration of an architecture: it returns the
    ``Family`` of configurations with this ``model_type``.

    ``replaces``: it is used though effcompress declares the architecture itself.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        made = REGISTRY.add("family", model_type, function, paper, replaces=replaces)
        if made.knobs:
            raise made.error("takes arguments", "Read sizes from the configuration that is given.")
        return function

    return register


Check = Callable[..., tuple[str, str] | None]
"""What is wrong and what to type instead, or None."""


def schedule(name: str, *, paper: str = "new", check: Check | None = None) -> Decorator:
    """Registers a function as the schedule ``name``; ``paper`` is its source.

    ``check`` is called when a recipe is read, with what it asks for of ``injectable.py`` and those
    of the schedule's knobs that it names. It returns what is wrong and what to type instead, or
    None.
    """
    return _register("schedule", name, paper, check)


def gate(name: str, *, paper: str = "new", check: Check | None = None) -> Decorator:
    """Registers a function as the gate ``name``; ``paper`` is its source. It returns the gates'
    values and their probabilities of not being 0, ``[N]`` each. ``check``: as of a schedule.
    """
    return _register("gate", name, paper, check)


def sparsifier(name: str, *, paper: str = "new", check: Check | None = None) -> Decorator:
    """Registers a function as the sparsifier ``name``; ``paper`` is its source. ``check``: as of a
    schedule.
    """
    return _register("sparsifier", name, paper, check)


def selector(
    name: str, *, paper: str = "new", observe: Callable[..., Any] | None = None
) -> Decorator:
    """Registers a function as the selector ``name``; ``paper`` is its source.

    ``observe``: called once in front of every cut with its last answer (``state``) and statistics
    of layers. It returns the new state, plain JSON values, which the selector may take as ``state``
    and checkpoints keep.
    """
    return _register("selector", name, paper, observe)


def inputs_of(kind: str) -> Mapping[str, str]:
    """What may be injected into functions of a kind (``selector``), or into the second function of
    one (``selector.observe``), besides statistics.
    """
    return COMPANION_INPUTS[kind] if "." in kind else INPUTS[kind]


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _contract(
    kind: str, function: Callable[..., Any], what: str, where: str
) -> tuple[tuple[str, ...], dict[str, Knob]]:
    """Positional parameters and knobs. Raises PluginError for parameters that are neither."""
    needs: list[str] = []
    knobs: dict[str, Knob] = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            annotation = _evaluate(p.annotation, function, f"{what}: knob '{p.name}'", where)
            knobs[p.name] = p.replace(annotation=annotation)
        elif p.kind is p.POSITIONAL_OR_KEYWORD:
            needs.append(p.name)
        else:
            fix = f"Name the inputs: {', '.join(inputs_of(kind))}."
            raise PluginError(f"{what}: cannot inject '{p.name}'", where=where, fix=fix)
    return tuple(needs), knobs


def _trying(plugin: Plugin, tries: Mapping[str, Sequence[float]]) -> Plugin:
    """Returns a plugin whose knobs in ``tries`` may be ``auto``, their default in a recipe."""
    knobs = dict(plugin.knobs)
    for name, values in tries.items():
        if name not in knobs:
            fix = did_you_mean(name, knobs)
            raise plugin.error(f"tries values of '{name}', which is no knob of it", fix)
        numbers = [v for v in values if isinstance(v, int | float) and 0 <= v < math.inf]
        if not numbers or len(numbers) < len(values):
            fix = f"Write e.g. tries={{'{name}': (0.1, 1.0)}}."
            raise plugin.error(f"tries {values!r} for '{name}', but needs numbers from 0", fix)
        knobs[name] = knobs[name].replace(annotation=Tried, default=AUTO)
    held = {name: tuple(float(v) for v in values) for name, values in tries.items()}
    return replace(plugin, knobs=knobs, tries=held)


def _companion(plugin: Plugin, function: Callable[..., Any]) -> Plugin:
    where, role = _where(function), COMPANIONS[plugin.kind]
    parameters = inspect.signature(function).parameters.values()
    asked = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if unknown := [name for name in asked if name not in plugin.knobs]:
        what = f"{plugin.kind} '{plugin.name}': its {role} takes the knob '{unknown[0]}', which the"
        fix = did_you_mean(unknown[0], plugin.knobs)
        raise PluginError(f"{what} {plugin.kind} has not", where=where, fix=fix)
    needs = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    knobs = {name: plugin.knobs[name] for name in asked}
    kind = f"{plugin.kind}.{role}"
    return Plugin(kind, plugin.name, function, needs, knobs, plugin.paper, where)


def _require_one_source(plugin: Plugin) -> None:
    """Raises PluginError for a criterion whose inputs are not measured together, and a statistic
    that is not of linear layers' inputs, the stream or experts alone.
    """
    needs = plugin.needs
    engine = READ | ROUTED | PLACE | ABLATED
    forward = [n for n in needs if n in engine or n in plugin.statistics]
    backward = OF_WEIGHTS.intersection(needs)
    what = fix = ""
    alone = [n for n in ("mask_grad", "logit") if plugin.kind == "criterion" and n in needs]
    if alone and len(needs) > 1:
        other = next(n for n in needs if n != alone[0])
        what = f"{alone[0]} is per mini-group, {other} per weight"
        fix = f"Take {alone[0]} alone."
    elif plugin.kind == "criterion" and forward and backward:
        what = f"{min(forward)} is measured layer by layer, {min(backward)} is not"
        fix = "Take one of the two."
    elif (
        plugin.kind == "statistic" and sum(bool(s & {*needs}) for s in ({"x"}, STREAM, OUTPUT)) != 1
    ):
        what = (
            "it is either of what linear layers read (x), of the residual stream (before, after) "
        )
        what += "or of experts (output, gate, gates)"
        fix = "Take x, or before and after, or output and what the router says of it."
    elif plugin.kind == "selector" and plugin.of_layers != plugin.statistics:
        other = next(n for n in plugin.statistics if n not in plugin.of_layers)
        what = f"its observe takes {other}, which is no statistic of layers"
        fix = "Take a statistic of before and after."
    if what:
        said = f"{plugin.kind} '{plugin.name}': {what}"
        raise PluginError(said, where=plugin.where, fix=fix)


def _require_conditions(plugin: Plugin) -> None:
    """Raises PluginError for a condition (``only_where``) that can decide nothing."""
    switches = [name for name, knob in plugin.knobs.items() if knob.annotation is bool]
    for statistic, knob in plugin.only_where.items():
        if statistic not in plugin.statistics:
            said = f"measures '{statistic}' only with a knob, which is no statistic that it takes"
            raise plugin.error(said, did_you_mean(statistic, plugin.statistics))
        if knob not in switches:
            said = f"measures '{statistic}' only with '{knob}', which is no knob of type bool"
            raise plugin.error(said, did_you_mean(knob, switches))


def _evaluate(annotation: Any, function: Callable[..., Any], what: str, where: str) -> Any:
    if annotation is inspect.Parameter.empty:
        fix = "Write e.g. `alpha: float = 0.5`."
        raise PluginError(f"{what} has no type", where=where, fix=fix)
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**vars(typing), **function.__globals__})
    except NameError as error:
        raise PluginError(f"{what} has an unknown type: {error}", where=where) from error


def _line_in(file: str, error: BaseException) -> str | None:
    """``file:line`` of the innermost call in the file that led to the error, if any did."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f"{file}:{frames[-1].lineno}" if frames else None


def _import_or_say(load: Callable[[], Any], origin: str) -> None:
    try:
        load()
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        else:
            where = _line_in(origin, error) or origin
        what = f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        fix = "Mend the file, or take it out of the recipe's `plugins:`."
        raise PluginError(what, where=where, fix=fix) from error
